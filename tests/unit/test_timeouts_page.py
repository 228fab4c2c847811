import importlib
import inspect
import math
import re
from pathlib import Path
from typing import Any

import pytest

from pgratchet import Gate, Migrator, migrated
from pgratchet.postgres.ledger import history
from pgratchet.postgres.link import budget, session
from pgratchet.postgres.wire import sending
from pgratchet.web import background, voice

PAGE = (Path(__file__).parents[2] / "docs" / "timeouts.md").read_text(encoding="utf-8")


def default(of: Any, option: str) -> Any:
    return inspect.signature(of).parameters[option].default


def attribute(module: str, path: str) -> Any:
    """Return what a server has there; its types are its own business."""
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


GUNICORN, UVICORN, GRANIAN = "gunicorn.config", "uvicorn.config", "granian.server"
VALUES = {
    "`budget`": default(Migrator, "budget"),
    "`connect_budget`": default(Migrator, "connect_budget"),
    "`lock_timeout`": default(Migrator, "lock_timeout"),
    "`statement_timeout`": default(Migrator, "statement_timeout") or None,
    "between two looks at the runners' lock": (budget.LEAST_PAUSE, budget.MOST_PAUSE),
    "reading a locked history at the end of a budget": history.LEAST_PATIENCE,
    "until a server that says nothing is told": session.SILENT_SECONDS,
    "a wait of which the hook says nothing": voice.SILENT_SECONDS,
    "until blockers are looked for": sending.LOOK_AFTER,
    "closing a session": session.CLOSE_SECONDS,
    "server's look for its client": float(session.PARAMETERS["client_connection_check_interval"][:-2]) / 1000,
    "keepalives and `TCP_USER_TIMEOUT`": session.VANISHED_AFTER,
    "`slow_after`": default(migrated, "slow_after"),
    "end of an application": background.STOP_SECONDS,
    "`retry_after`": default(Gate, "retry_after"),
    "gunicorn, `--graceful-timeout`": attribute(GUNICORN, "GracefulTimeout.default"),
    "gunicorn, `--timeout`": attribute(GUNICORN, "Timeout.default"),
    "hypercorn, `startup_timeout`": attribute("hypercorn.config", "Config.startup_timeout"),
    "uvicorn, `--timeout-worker-healthcheck`": default(attribute(UVICORN, "Config"), "timeout_worker_healthcheck"),
    "granian, `--respawn-interval`": default(attribute(GRANIAN, "Server"), "respawn_interval"),
    "granian, `--workers-kill-timeout`": default(attribute(GRANIAN, "Server"), "workers_kill_timeout"),
}


@pytest.mark.parametrize("row", VALUES)
def test_the_page_says_what_is_so(row: str) -> None:
    said = re.search(rf"^\| {re.escape(row)}[^|]*\| ([^|,]+)", PAGE, re.MULTILINE)
    value = VALUES[row]

    assert said is not None
    if value is None:
        assert said[1].strip() == "none"
    else:
        seconds = value if isinstance(value, tuple) else (value,)
        assert said[1].strip() == " to ".join(f"{each:g}" for each in seconds) + " s"


def test_the_page_says_how_often_a_run_tries_again() -> None:
    told = re.findall(r"^\| another try because[^|]*\| ([^|]+) \|", PAGE, re.MULTILINE)

    assert told == ["no bound but the budget", *(f"{most} times" for most in budget.MOST.values() if most < math.inf)]
