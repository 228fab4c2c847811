import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.frameworks.drivers import RECIPES, SEEDS, Load
from tests.support import Write, missing


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(autouse=True)
def routers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each application of BlackSheep its own router: they refuse to share the default one."""
    monkeypatch.setenv("APP_DEFAULT_ROUTER", "0")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """The URL of a private Redis."""
    program = shutil.which("redis-server")
    if program is None:
        missing("Redis is not installed (Debian and Ubuntu: apt-get install redis-server)")
    socket = tmp_path / "redis"
    options = ("--port", "0", "--unixsocket", str(socket), "--save", "")
    with subprocess.Popen([program, *options], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert any("ready to accept connections" in line for line in process.stdout)
            yield f"unix://{socket}"
        finally:
            process.terminate()


@pytest.fixture
def project(write: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with migrations where the recipes look for them."""
    tenants = "CREATE TABLE tenants (name text);"
    folder = write({"migrations/versions/001_tenants.sql": tenants, "migrations/versions/002_seeds.sql": SEEDS})
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def load(dsn: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Load:
    """Loads a recipe as a new process would."""
    monkeypatch.setenv("DATABASE_URL", dsn)

    def load(name: str) -> ModuleType:
        if name == "arq_app":
            monkeypatch.setenv("REDIS_URL", request.getfixturevalue("redis"))
        spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load
