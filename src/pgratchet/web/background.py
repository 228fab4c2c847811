"""Work beside the application, after the application has waited for it for a while."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from pgratchet.core.errors import StartInterruptedError
from pgratchet.postgres.link.budget import WATCH, Watch
from pgratchet.postgres.link.cancelling import undisturbed
from pgratchet.web.interruption import Interruption
from pgratchet.web.voice import Voice

OnFailure = Callable[[BaseException], object]

STOP_SECONDS = 10.0
"""Seconds that an application waits at its end for cancelled work; closing a session takes at most half of that."""

_log = logging.getLogger("pgratchet")


@asynccontextmanager
async def in_background(
    work: Callable[[], Awaitable[object]], patience: float | None, on_failure: OnFailure | None
) -> AsyncIterator[None]:
    """Enter the block when `work` is done, or after `patience` seconds; cancel `work` at the end of the block.

    Raises an error of `work` that comes before the block; `on_failure` gets an error that comes later. Before the block
    a signal ends `work` where no step is under way; raises StartInterruptedError then.
    """

    def cancel() -> None:
        task.cancel()

    async def watched() -> object:
        WATCH.set(Watch(interruption.waiting, interruption.working, voice.waits, voice.take, interruption.has_come))
        with interruption.waiting():
            return await work()

    interruption, voice = Interruption(cancel), Voice()
    # Not a task group: if `work` failed, a group around the yield would cancel the task that entered it, and some
    # frameworks leave a lifespan in another task than the one that entered it.
    task = asyncio.ensure_future(watched())
    tell = partial(_tell_failure, on_failure)
    try:
        await asyncio.wait({task}, timeout=patience)
        interruption.end()
        if task.cancelled() and interruption.signal is not None:
            raise StartInterruptedError(f"{interruption.signal.name} has ended the start; no step was under way")
        if task.done():
            task.result()
        else:
            _log.warning("the schema is not ready after %g s; the application starts without it", patience)
            task.add_done_callback(tell)
        yield
    finally:
        interruption.end()
        task.remove_done_callback(tell)
        await _stop(task)


def _tell_failure(on_failure: OnFailure | None, task: "asyncio.Future[object]") -> None:
    error = _error(task)
    if error is not None and on_failure is not None:
        on_failure(error)


def _error(task: "asyncio.Future[object]") -> BaseException | None:
    """Return the error of a task, if it has one; the loop would log an error that nobody has retrieved."""
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
