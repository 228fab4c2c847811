"""One replica: migrates, and says as JSON what it did, also where that failed; exits as a command line would."""

import json
import logging
import multiprocessing
import os
import sys
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pgratchet import Migrator, PgratchetError
from pgratchet.cli.interruption import InterruptedBySignalError, run

LOCK_TIMEOUT = 0.4


def start(options: dict[str, Any], path: Path) -> BaseProcess:
    """Return a new process that runs a migrator with these options, and writes to `path`.out and .log.

    It is forked from one that has everything imported, which is most of what a start costs: replicas get to the
    server together, not one after the other as there are processors to import with.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=live, args=(options, path), daemon=True)
    process.start()
    return process


def live(options: dict[str, Any], path: Path) -> None:
    """Be one replica, to the end of the process."""
    for number, suffix in ((1, ".out"), (2, ".log")):
        os.dup2(os.open(path.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sys.exit(_migrate(Migrator(lock_timeout=LOCK_TIMEOUT, **options)))


def _migrate(migrator: Migrator) -> int:
    try:
        finished = run(partial(migrator.up))
    except PgratchetError as error:
        _say([step.version for step in error.finished], type(error).__name__, str(error))
        return 1
    except InterruptedBySignalError as error:
        _say([], type(error).__name__, str(error))
        return 128 + error.signal
    _say([step.version for step in finished])
    return 0


def _say(finished: list[str], error: str = "", text: str = "") -> None:
    print(json.dumps({"finished": finished, "error": error, "text": text}), flush=True)  # noqa: T201 - to the trial
