"""The commands that docs/frameworks.md gives for its recipes, word for word, as processes."""

import ast
import asyncio
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.frameworks.drivers import RECIPES
from tests.support import connected, free_port

pytestmark = pytest.mark.third_party

PATIENCE = 40.0

COMMANDS = {
    command: path
    for path in sorted(RECIPES.glob("*.py"))
    for command in re.findall("`([^`]+)`", str(ast.get_docstring(ast.parse(path.read_text()))))
}
ELSEWHERE = {
    "faststream run faststream_app:app": "its broker is at the usual port of Redis; tests/frameworks runs `app.run()`",
    "python aiohttp_app.py": "it listens on the usual port of aiohttp; tests/frameworks runs the application",
    "taskiq worker taskiq_app:broker": "it needs a broker that other processes reach, as the page says",
}
PORTS = {"hypercorn": "--bind 127.0.0.1:{}", "sanic": "--port {}"}
"""The options for another port than the usual one; uvicorn takes a variable."""


SAYS = {"arq": "Starting worker for 1 functions", "fastmcp": "Starting MCP server"}
"""The lines that programs without requests log once they have started."""


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ELSEWHERE])
def test_the_command_of_a_recipe_starts_it_on_its_schema(
    command: str, project: Path, dsn: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    shutil.copy(COMMANDS[command], project)
    program, port, log = command.split(maxsplit=1)[0], free_port(), tmp_path / "log"
    settings = {"DATABASE_URL": dsn, "UVICORN_PORT": str(port), "PYTHONPATH": os.pathsep.join(sys.path)}
    if program == "arq":
        settings["REDIS_URL"] = request.getfixturevalue("redis")
    words = shlex.split(f"{command} {PORTS.get(program, '').format(port)}")
    words[0] = str(Path(sys.executable).with_name(program))

    with (
        log.open("wb") as file,
        subprocess.Popen(
            words,
            env={**os.environ, **settings},
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            start_new_session=True,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + PATIENCE
            while not (
                migrated(dsn) and (SAYS[program] in log.read_text() if program in SAYS else serving(program, port))
            ):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def migrated(dsn: str) -> bool:
    async def ask() -> bool:
        async with connected(dsn) as connection:
            return bool(await connection.fetchval("SELECT to_regclass('tenants') IS NOT NULL"))

    return asyncio.run(ask())


def serving(program: str, port: int) -> bool:
    # Sanic's own server has no gate.
    path = "tenants" if program == "sanic" else "readyz"
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
