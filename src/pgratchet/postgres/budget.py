"""One allowance for waiting of every kind; work under way is never cut short by it, and takes nothing of it."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from pgratchet.core.errors import BudgetExceededError


class Budget:
    """Seconds that may be spent waiting; None means for ever."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._spent = 0.0

    @property
    def remaining(self) -> float | None:
        """The seconds left, never below 0; None where there is no limit."""
        return None if self.seconds is None else max(0.0, self.seconds - self._spent)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Take the time that the block takes."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.spend(time.monotonic() - began)

    def spend(self, seconds: float) -> None:
        """Take time that was spent waiting."""
        self._spent += seconds

    async def pause(self, least: float, most: float, why: str) -> None:
        """Sleep between `least` and `most` seconds, at random, so that replicas do not march in step.

        Raises BudgetExceededError, with `why`, when nothing is left to sleep in.
        """
        left = self.remaining
        if left is not None and left <= 0:
            raise BudgetExceededError(f"gave up after {self.seconds:g} s: {why}")
        delay = random.uniform(least, most)  # noqa: S311 - jitter needs no secrecy
        with self.waiting():
            await anyio.sleep(delay if left is None else min(delay, left))


def backoff(attempt: int) -> tuple[float, float]:
    """Return the bounds, in seconds, of the pause before attempt number `attempt` + 1."""
    base = min(0.1 * 2 ** min(attempt, 10), 5.0)
    return base / 2, base
