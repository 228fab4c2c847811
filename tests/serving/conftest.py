from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving.processes import Starting
from tests.support import Write

Start = Callable[[dict[str, str]], Starting]


@pytest.fixture
def start(dsn: str, write: Write, tmp_path: Path) -> Start:
    """Return a way to start servers on the test's database with these migrations."""
    return lambda files: Starting(dsn, write(files), tmp_path)
