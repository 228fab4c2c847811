"""One replica: migrates, and prints a JSON report, also of a failure; exits like the command line."""

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from pgratchet import Migrator, PgratchetError
from pgratchet.cli.interruption import InterruptedBySignalError, run
from tests.chaos.plan import Manner

LOCK_TIMEOUT = 0.4

T = TypeVar("T")


class CancellationLostError(Exception):
    """Cancelled work went on, and ended in another way."""


def start(options: dict[str, Any], path: Path, manner: Manner) -> BaseProcess:
    """Return a new process that runs a migrator with these options, and writes to `path`.out and .log.

    It is forked from one that has everything imported, which is most of what a start costs: replicas get to the
    server together, not one after the other as there are processors to import with.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=live, args=(options, path, manner), daemon=True)
    process.start()
    return process


def live(options: dict[str, Any], path: Path, manner: Manner) -> None:
    """Run one replica until the process ends."""
    for number, suffix in ((1, ".out"), (2, ".log")):
        os.dup2(os.open(path.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sys.exit(_migrate(Migrator(lock_timeout=LOCK_TIMEOUT, **options), manner))


def run_as_a_server(work: Callable[[], Awaitable[T]]) -> T:
    """Return the result of the work. SIGTERM cancels it once, as uvicorn and gunicorn do a lifespan.

    Raises InterruptedBySignalError when the work has ended of that, CancellationLostError when it has not.
    """
    return asyncio.run(_cancelled_once(work))


async def _cancelled_once(work: Callable[[], Awaitable[T]]) -> T:
    task = asyncio.ensure_future(work())
    loop = asyncio.get_running_loop()
    asked: list[bool] = []

    def interrupt() -> None:
        if not asked:
            asked.append(task.cancel())

    loop.add_signal_handler(signal.SIGTERM, interrupt)
    await asyncio.wait([task])
    if not any(asked):  # nobody, or too late: the work was done
        return task.result()
    if task.cancelled():
        raise InterruptedBySignalError(signal.SIGTERM)
    raise CancellationLostError(repr(task.exception() or task.result()))


_RUNNERS = {Manner.COMMAND_LINE: run, Manner.SERVER: run_as_a_server}


def _migrate(migrator: Migrator, manner: Manner) -> int:
    try:
        finished = _RUNNERS[manner](migrator.up)
    except CancellationLostError as error:
        _say([], type(error).__name__, str(error))
        return 1
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
