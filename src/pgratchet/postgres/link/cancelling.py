"""Cancellation that lasts, and work that it does not reach.

anyio has scopes and shields for that, but its backend takes as long to load as all of pgratchet: a start that finds
nothing to do does without.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

TASK = "pgratchet run"
"""The name of the tasks in which a run works."""

PROMPT_TURNS = 100
PAUSE = 0.01
"""A cancellation is repeated at so many turns of the loop; then after so many seconds, because work that it does not
reach may take some, and others need the loop."""


class OwnCancellationError(Exception):
    """Code of others has ended with a CancelledError, the cause of this error, though nobody has cancelled it.

    It has cancelled itself, or awaited a task that was cancelled.
    """

    def __init__(self, cancellation: asyncio.CancelledError) -> None:
        super().__init__(*cancellation.args)
        self.cancellation = cancellation


async def cancelled_for_good(work: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `work`, or raise its error; if this is cancelled, each later await of `work` is, too.

    asyncio's own cancellation, as servers use it, comes once. A ROLLBACK that is awaited after it, asyncpg's at the
    end of a transaction() for example, would wait for ever on a network that is gone; and if the session is lost it
    would fail, with an error in the cancellation's place from which the run recovers, and goes on. So `work` has a task
    of its own, which is cancelled again, at first at each turn of the loop, until it ends.
    """
    returned: list[T] = []
    raised: list[BaseException] = []
    task = asyncio.create_task(_settle(work, returned, raised), name=TASK)
    cancellation: asyncio.CancelledError | None = None
    turns = 0
    while not task.done():
        try:
            if cancellation is None:
                await asyncio.wait({task})
            else:
                task.cancel()
                turns += 1
                await asyncio.wait({task}, timeout=0 if turns <= PROMPT_TURNS else PAUSE)
        except asyncio.CancelledError as error:
            # The first one: a scope of anyio's, or a timeout of asyncio's, recognises its own.
            cancellation = cancellation or error
    if cancellation is not None:
        raise cancellation
    return _settled(returned, raised)


async def shieldable(work: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `work`, or raise its error; inside of `cancelled_for_good` anyio's shields hold in `work`.

    For code of others, such as a Python migration: `work` has a task of its own, with which a cancellation that it asks
    for ends. Raises OwnCancellationError for a CancelledError of `work` that comes from no cancellation of this.
    """
    returned: list[T] = []
    raised: list[BaseException] = []
    cancellations: list[asyncio.CancelledError] = []

    async def settle() -> None:
        try:
            await _settle(work, returned, raised)
        except asyncio.CancelledError as error:
            cancellations.append(error)
            raise

    # If this is cancelled, the group raises that cancellation in the end.
    async with anyio.create_task_group() as group:
        group.start_soon(settle, name=TASK)
    for cancellation in cancellations:
        raise OwnCancellationError(cancellation) from cancellation
    return _settled(returned, raised)


async def undisturbed(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or raise its error; a cancellation does not reach `work`, and is raised after it.

    `work` must end in bounded time.
    """
    task = asyncio.create_task(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancellation = cancellation or error
    if cancellation is not None:
        raise cancellation
    return task.result()


async def _settle(work: Callable[[], Awaitable[T]], returned: list[T], raised: list[BaseException]) -> None:
    """Keep the result or the error of `work`; raises its cancellation only."""
    try:
        returned.append(await work())
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001 - a group would wrap it, and some would end the loop
        raised.append(error)


def _settled(returned: list[T], raised: list[BaseException]) -> T:
    for error in raised:
        raise error
    if not returned:
        raise asyncio.CancelledError  # by the work itself: the task that waits for it was not cancelled
    return returned[0]
