"""The first steps of README.md, word for word: in a shell, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PGRATCHET = 'pgratchet() { "$PYTHON" -m pgratchet "$@"; }\n'
"""The command of this checkout, which need not be installed."""


def test_the_first_steps_of_the_readme_make_a_table(dsn: str, tmp_path: Path) -> None:
    (block,) = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    first, rest = block.split("\n", 1)
    done = subprocess.run(
        ["/bin/sh", "-euc", PGRATCHET + rest],
        cwd=tmp_path,
        env={**os.environ, "DATABASE_URL": dsn, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert first.startswith("export DATABASE_URL=postgresql://")
    assert done.returncode == 0, done.stderr
    assert "would apply 1 create_users (1 statement, one transaction)" in done.stdout
    assert "applied 1 create_users (1 statement," in done.stdout
    assert done.stdout.endswith("1 applied\n")


def test_the_application_of_the_readme_is_a_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    monkeypatch.setenv("DATABASE_URL", "postgresql://app:secret@localhost/app")
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102 - it is our own

    assert type(names["app"]).__name__ == "FastAPI"
