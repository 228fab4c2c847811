import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.demo import VERSIONS, replicas

ROOT = Path(__file__).resolve().parents[2]
MIGRATIONS = sorted(path.stem for path in VERSIONS.glob("[0-9]*") if ".down." not in path.name)
ROW = re.compile(r"^ +(\d+)  (\w+) +(replica-[123]) +[\d.]+ ms$", re.MULTILINE)
PROCESSES = Path("/proc")


@pytest.fixture
def private(memory: Path | None) -> Iterator[Path]:
    """A folder for all temporary files of a demo; short, and open to the account that the server runs as."""
    with tempfile.TemporaryDirectory(prefix="demo-", dir=memory) as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def begin(private: Path, **settings: str) -> "subprocess.Popen[str]":
    """Start the demo in a session of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, ROOT / "examples" / "demo.py"],
        env={**os.environ, "TMPDIR": str(private), **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def left_running(private: Path) -> list[str]:
    """Return the processes that name the folder in their environment, command or working directory."""
    mark = os.fsencode(private)
    found = []
    for process in PROCESSES.glob("[0-9]*"):
        try:
            cwd = os.fsencode((process / "cwd").readlink())
            texts = [(process / name).read_bytes() for name in ("environ", "cmdline")]
        except OSError:  # ended meanwhile, or somebody else's
            continue
        if any(mark in text for text in (cwd, *texts)):
            found.append(process.name)
    return found


def nothing_is_left(private: Path) -> bool:
    return not list(private.iterdir()) and not left_running(private)


def request(address: str, path: str, method: str = "GET", body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(  # noqa: S310 - a replica of ours
        address + path, data, {"Content-Type": "application/json"}, method=method
    )
    with urllib.request.urlopen(call, timeout=10) as response:  # noqa: S310 - the same
        return json.loads(response.read() or "null")


def test_three_replicas_apply_every_migration_exactly_once_and_nothing_is_left(private: Path) -> None:
    demo = begin(private)
    output, errors = demo.communicate(timeout=60)
    assert (demo.returncode, errors) == (0, "")
    assert [f"{int(number):03}_{name}" for number, name, _ in ROW.findall(output)] == MIGRATIONS
    assert "each applied exactly once" in output
    assert f"{len(MIGRATIONS)} applied" in output.splitlines()
    assert nothing_is_left(private)


def test_an_interrupted_demo_leaves_nothing_behind(private: Path) -> None:
    demo = begin(private)
    assert demo.stdout is not None
    while "replicas" not in (line := demo.stdout.readline()):
        assert line
    if PROCESSES.is_dir():
        assert left_running(private)
    os.killpg(demo.pid, signal.SIGINT)  # which is what Ctrl-C does
    _, errors = demo.communicate(timeout=30)
    assert (demo.returncode, errors) == (130, "")
    assert nothing_is_left(private)


def test_a_replica_that_cannot_start_fails_the_demo_with_its_log(private: Path, tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise RuntimeError('no such luck')\n")
    demo = begin(private, PYTHONPATH=str(tmp_path))
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert re.search(r"the demo failed: replica-\d ended with exit code 1", errors)
    assert "no such luck" in errors
    assert nothing_is_left(private)


def test_a_job_migrates_and_three_replicas_that_only_wait_serve_the_schema(dsn: str, tmp_path: Path) -> None:
    job = [sys.executable, "-m", "pgratchet", "up", f"--dir={VERSIONS}", "--json"]
    environment = {**os.environ, "PGRATCHET_DSN": dsn}
    document = json.loads(subprocess.run(job, env=environment, capture_output=True, check=True, timeout=60).stdout)
    assert len(document["finished"]) == len(MIGRATIONS)
    with replicas(dsn, tmp_path, mode="wait") as fleet:
        first, second, third = (replica.address for replica in fleet)
        assert all("pgratchet: up " not in replica.log for replica in fleet)
        tenant = request(first, "/tenants", "POST", {"name": "Café", "slug": "cafe"})["id"]
        user = request(second, f"/tenants/{tenant}/users", "POST", {"email": "a@example.org"})["id"]
        for value in ("de", "en"):
            request(third, f"/users/{user}/preferences/language", "PUT", {"value": value})
        request(first, f"/tenants/{tenant}/knowledge-base?enabled=true", "PUT")
        assert request(first, f"/users/{user}/preferences") == {"language": "en"}
        listed = {"id": tenant, "name": "Café", "slug": "cafe", "knowledge_base_enabled": True}
        assert request(second, "/tenants") == [listed]
        with pytest.raises(urllib.error.HTTPError) as caught:
            request(third, "/tenants", "POST", {"name": "Café", "slug": "other"})
        assert caught.value.code == 409
        caught.value.close()
    # Having shut down, uvicorn ends itself by the signal that asked for it.
    assert [replica.process.returncode for replica in fleet] == [-signal.SIGTERM] * 3
    assert all("Application shutdown complete" in replica.log for replica in fleet)
