import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import Write

LAZY = (
    "cli",
    "embedded",
    "runs.adoption",
    "runs.turning",
    "core.sql.statements",
    "core.sql.scripts",
    "postgres.steps.execution",
)
"""What a start does not load that finds nothing to do."""


def output(program: str, folder: Path) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout


def test_importing_the_package_loads_no_command_line_and_no_framework(tmp_path: Path) -> None:
    heavy = ["typer", "click", "rich", "pydantic", "fastapi", "starlette", "litestar", "pytest", "hypothesis"]
    heavy += ["sqlalchemy", "psycopg", *(f"pgratchet.{name}" for name in LAZY)]

    assert all(find_spec(f"pgratchet.{name}") for name in LAZY)
    loaded = output(f"import sys, pgratchet; print([name for name in {heavy} if name in sys.modules])", tmp_path)

    assert loaded == "[]\n"


def test_a_start_with_nothing_pending_loads_no_backend_of_anyio(dsn: str, write: Write, tmp_path: Path) -> None:
    migrations = write({"1_a.sql": "SELECT 1;"})
    for expected in (True, False):
        program = (
            "import sys; from pgratchet.cli import main\n"
            f"sys.argv = ['pgratchet', 'up', '--dir', {str(migrations)!r}, '--dsn', {dsn!r}]\n"
            "try: main()\n"
            "except SystemExit: print('anyio._backends._asyncio' in sys.modules)"
        )
        assert output(program, tmp_path).splitlines()[-1] == str(expected)


@pytest.mark.parametrize("arguments", ["status", "up --budget 10s --reader web --reader worker --strict --json"])
def test_a_start_of_the_command_line_loads_nothing_that_only_draws_or_parses(tmp_path: Path, arguments: str) -> None:
    program = (
        f"import sys; from pgratchet.cli import main; sys.argv = ['pgratchet', *{arguments.split()}]\n"
        "try: main()\n"
        "except SystemExit: print(sorted(sys.modules.keys() & {'rich', 'tomllib', 'pygments', 'pydantic'}))"
    )

    assert output(program, tmp_path).splitlines()[-1] == "[]"
