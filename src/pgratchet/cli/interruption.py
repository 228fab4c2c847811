"""Calls of the asynchronous library from plain functions; a signal interrupts the call."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)

ASKING = 2.0
"""Seconds, at most, in which the history is asked what an interrupted command has left."""


class InterruptedBySignalError(Exception):
    """A signal ended the work; the session is closed, and its statement is cancelled on the server.

    The message says what is `left` in the database, if that is known.
    """

    def __init__(self, number: int, left: str | None = None) -> None:
        self.signal = signal.Signals(number)
        stays = "committed work stays" + (", and `pgratchet status` shows it" if left is None else f": {left}")
        super().__init__(f"interrupted by {self.signal.name}: the statement under way has been cancelled; {stays}")


def run(work: Callable[[], Awaitable[T]], left: Callable[[], Awaitable[str]] | None = None) -> T:
    """Return the result of `work`; raises InterruptedBySignalError if a signal comes first.

    `left` is then asked what `work` has left in the database. A second signal has its default action: it ends the
    process at once, even if the event loop is blocked.
    """
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    try:
        return asyncio.run(_unless_interrupted(work, left))
    except KeyboardInterrupt:  # if the loop takes no signal handlers
        raise InterruptedBySignalError(signal.SIGINT) from None
    finally:
        # Not earlier: at its end the loop waits for the threads of the work, and a signal must end that too.
        for number, handler in before.items():
            signal.signal(number, handler)


def _let_the_next_one_end_it(*_: object) -> None:
    """Give the signals their default action, which needs neither the loop nor the interpreter."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


async def _unless_interrupted(work: Callable[[], Awaitable[T]], left: Callable[[], Awaitable[str]] | None) -> T:
    numbers: list[int] = []
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def interrupt(number: int) -> None:
        numbers.append(number)
        if task is not None:
            task.cancel()

    for number in SIGNALS:
        try:
            loop.add_signal_handler(number, interrupt, number)
        except NotImplementedError:  # Windows
            continue
        # Replaces the handler of the loop, which does nothing: the loop hears of the signal by its wakeup descriptor.
        signal.signal(number, _let_the_next_one_end_it)
    try:
        return await work()
    except asyncio.CancelledError:
        if not numbers:
            raise
        raise InterruptedBySignalError(numbers[0], left and await _answer(left)) from None


async def _answer(left: Callable[[], Awaitable[str]]) -> str | None:
    """Return the answer of `left`; None if it has none in time."""
    # Another task: this one counts as cancelled.
    task = asyncio.ensure_future(left())
    await asyncio.wait({task}, timeout=ASKING)
    return None if not task.done() or task.exception() else task.result()
