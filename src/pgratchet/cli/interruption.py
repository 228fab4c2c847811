"""From plain functions into the asynchronous library: one way in, which signals can cut short."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedBySignalError(Exception):
    """A signal ended the work; by now the session is closed, and its statement cancelled on the server."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(
            f"interrupted by {self.signal.name}: what was under way has been cancelled; what was committed stays, "
            "and `pgratchet status` shows it"
        )


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Return what the work returns; raises InterruptedBySignalError when a signal came first."""
    try:
        return anyio.run(_unless_interrupted, work)
    except KeyboardInterrupt:  # where the loop takes no signal handlers
        raise InterruptedBySignalError(signal.SIGINT) from None


async def _unless_interrupted(work: Callable[[], Awaitable[T]]) -> T:
    numbers: list[int] = []
    with anyio.CancelScope() as scope:

        def interrupt(number: int) -> None:
            numbers.append(number)
            scope.cancel()

        with _handled_by(interrupt):
            return await work()
    raise InterruptedBySignalError(numbers[0])


@contextmanager
def _handled_by(interrupt: Callable[[int], None]) -> Iterator[None]:
    # Not anyio.open_signal_receiver: it needs a task beside the work, whose group would wrap the work's errors.
    loop = asyncio.get_running_loop()
    handled = []
    try:
        for number in SIGNALS:
            try:
                loop.add_signal_handler(number, interrupt, number)
            except NotImplementedError:  # Windows
                continue
            handled.append(number)
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
