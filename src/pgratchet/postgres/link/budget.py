"""One allowance for waiting of every kind; work under way is never cut short by it, and takes nothing of it."""

import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from pgratchet.core.errors import BudgetExceededError

LEAST_PAUSE = 0.1
MOST_PAUSE = 0.3
"""Bounds, in seconds, of the pause between two looks at what somebody else does."""

TELL_EVERY = 5.0
"""Seconds between two lines of the log about the same wait."""


class Interval:
    """So many seconds, again and again; the first time is over at once."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = -math.inf

    def is_over(self) -> bool:
        """Say whether the seconds are over since this was last so."""
        now = time.monotonic()
        over = now - self._last >= self._seconds
        if over:
            self._last = now
        return over


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

    async def poll(self, why: str) -> None:
        """Sleep until the next look at what somebody else does, as `pause` does."""
        await self.pause(LEAST_PAUSE, MOST_PAUSE, why)

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
