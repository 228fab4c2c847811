"""Cancellation that lasts, whoever cancels."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")

TASK = "pgratchet run"
"""The name of the task that work is done in."""


async def cancelled_for_good(work: Callable[[], Awaitable[T]]) -> T:
    """Return what the work returns, or raise what it raises; when cancelled, so is each of its awaits from then on.

    asyncio's own cancellation, as servers use it, comes once. A ROLLBACK that is awaited behind it, asyncpg's at the
    end of a transaction() for example, would wait for ever on a network that is gone; and where the session is lost it
    would fail, with an error in the cancellation's place from which the run recovers, and goes on. In a task of its
    own the work is cancelled by a scope instead, which does not let go.
    """
    returned: list[T] = []
    raised: list[BaseException] = []

    async def do() -> None:
        try:
            returned.append(await work())
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - raised below: the group would wrap it
            raised.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(do, name=TASK)
    for error in raised:
        raise error
    if not returned:
        raise asyncio.CancelledError  # the work's own doing: nobody has cancelled this task
    return returned[0]
