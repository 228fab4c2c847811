"""The example service as a process, where its schema does not come."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.topology import image

BROKEN, FIXED = "SELECT 1 / 0;", "SELECT 1 / 1;"


def server(folder: Path, dsn: str, **settings: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "uvicorn", "--app-dir", "examples/service", "app:app", "--port", "0"]
    environment = {**os.environ, "DATABASE_URL": dsn, **settings}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("slow_after", ["60", "0"])
def test_a_migration_that_fails_ends_the_process_before_its_start_and_after_it(
    dsn: str, tmp_path: Path, slow_after: str
) -> None:
    folder = image(tmp_path / "image", {"migrations/versions/009_divide.sql": BROKEN})
    process = server(folder, dsn, MIGRATION_SLOW_AFTER=slow_after)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 3
    assert "division by zero" in errors
    assert ("Application startup complete" in errors) == (slow_after == "0")
    (folder / "migrations/versions/009_divide.sql").write_text(FIXED)
    job = [sys.executable, "-m", "pgratchet", "up", "--json"]
    environment = {**os.environ, "PGRATCHET_DSN": dsn}
    done = subprocess.run(job, cwd=folder, env=environment, capture_output=True, check=True, timeout=60)
    assert [step["version"] for step in json.loads(done.stdout)["finished"]] == ["9"]
