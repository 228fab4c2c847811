from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving.processes import Starting
from tests.support import Write

OTHERS = ("gunicorn", "hypercorn", "granian")

Start = Callable[[dict[str, str]], Starting]


@pytest.fixture
def start(dsn: str, write: Write, tmp_path: Path) -> Start:
    """Return a way to start servers on the test's database with these migrations."""
    return lambda files: Starting(dsn, write(files), tmp_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases of servers other than uvicorn: uvicorn's case of the same test proves what pgratchet does."""
    for item in items:
        if item.path.parent == Path(__file__).parent and isinstance(item, pytest.Function):
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            if str(parameters.get("name")).startswith(OTHERS):
                item.add_marker(pytest.mark.third_party)
