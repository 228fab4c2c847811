"""Calls of the asynchronous library from plain functions; a signal interrupts the call."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedBySignalError(Exception):
    """A signal ended the work; the session is closed, and its statement is cancelled on the server."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(
            f"interrupted by {self.signal.name}: the statement under way has been cancelled; committed work stays, "
            "and `pgratchet status` shows it"
        )


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `work`; raises InterruptedBySignalError if a signal comes first.

    A second signal has its default action: it ends the process at once, even if the event loop is blocked.
    """
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    try:
        return asyncio.run(_unless_interrupted(work))
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


async def _unless_interrupted(work: Callable[[], Awaitable[T]]) -> T:
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
        raise InterruptedBySignalError(numbers[0]) from None
