"""Work that an application does not wait for beyond its server's patience."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from pgratchet.postgres.link.cancelling import undisturbed

OnFailure = Callable[[BaseException], object]

STOP_SECONDS = 10.0
"""How long the end of an application waits for cancelled work; closing its session takes half of that at most."""

_log = logging.getLogger("pgratchet")


@asynccontextmanager
async def in_background(
    work: Callable[[], Awaitable[object]], patience: float, on_failure: OnFailure | None
) -> AsyncIterator[None]:
    """Enter the block when the work is done, or after `patience` seconds in any case; at its end cancel the work.

    Raises what the work raises up to then; what it raises later goes to `on_failure`.
    """
    # Not a task group: one that is entered here and left behind a yield would cancel its host's task when the work
    # fails, and some frameworks leave their lifespans in another task than the one that has entered them.
    task = asyncio.ensure_future(work())
    tell = partial(_tell_failure, on_failure)
    try:
        await asyncio.wait({task}, timeout=patience)
        if task.done():
            task.result()
        else:
            _log.warning("the schema is not ready after %g s; the application starts without it", patience)
            task.add_done_callback(tell)
        yield
    finally:
        task.remove_done_callback(tell)
        await _stop(task)


def _tell_failure(on_failure: OnFailure | None, task: "asyncio.Future[object]") -> None:
    error = _error(task)
    if error is not None and on_failure is not None:
        on_failure(error)


def _error(task: "asyncio.Future[object]") -> BaseException | None:
    """Return what a task has ended with, if that was an error; the loop complains of one that nobody has looked at."""
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def _stop(task: "asyncio.Future[object]") -> None:
    if not task.cancel():
        return
    try:
        # A second cancellation must not leave the end of the session to a loop that is about to close. Bounded: a
        # Python migration may not heed its cancellation.
        await undisturbed(asyncio.wait({task}, timeout=STOP_SECONDS))
    finally:
        if task.done():
            _error(task)
