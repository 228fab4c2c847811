"""Waiting and trying again: one budget bounds all pauses of a run; it never interrupts work in progress."""

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from enum import Enum, auto
from typing import NamedTuple, TypeVar

import asyncpg

from pgratchet.core.arguments import spelled
from pgratchet.core.errors import AbsentError, BudgetExceededError
from pgratchet.core.events import Tell

T = TypeVar("T")

_log = logging.getLogger("pgratchet")

LEAST_PAUSE = 0.1
MOST_PAUSE = 0.3
"""Bounds, in seconds, of the pause between two looks at the work of another runner."""

LOOK_EVERY = 2.0
"""Seconds between two looks at the session that a run waits for."""


class Interval:
    """A rate limiter: true at the first call, then at most once in `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = -math.inf

    def is_over(self) -> bool:
        """Return whether `seconds` have passed since the last call that returned true."""
        now = time.monotonic()
        over = now - self._last >= self._seconds
        if over:
            self._last = now
        return over


def _pass_over(*_: object) -> None:
    """Do nothing."""


class Watch(NamedTuple):
    """The functions of somebody beside a run.

    `waiting` returns a block in which the run waits, `working` one in which it works on steps, and may wait, too.
    `waits` gets the sentences of the log about waits, with their levels and the seconds so far; `take` gets the events.
    `hurries` says that the run, which was cancelled while it waited, has to end at once.
    """

    waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    working: Callable[[], AbstractContextManager[None]] = nullcontext
    waits: Callable[[int, str, float], None] = _pass_over
    take: Tell = _pass_over
    hurries: Callable[[], bool] = bool


WATCH: ContextVar[Watch] = ContextVar("watch")
"""Watches the runs that begin in a context."""


class Budget:
    """The seconds that a run may wait in total, and those until a server answers at all; None for no limit.

    With `absent` the run also waits for a database, roles, a schema and rights that others make. `watch` is told of
    each wait.
    """

    def __init__(self, seconds: float | None, unanswered: float | None = None, *, absent: bool = False) -> None:
        self._absent = absent
        self._absences = 0
        self._seconds = seconds
        self._unanswered = unanswered
        self._spent = 0.0
        self._told = ""
        self.watch = WATCH.get(Watch())

    @property
    def _limit(self) -> float | None:
        return min((limit for limit in (self._seconds, self._unanswered) if limit is not None), default=None)

    @property
    def remaining(self) -> float | None:
        """The seconds left, at least 0; None for no limit."""
        return None if self._limit is None else max(0.0, self._limit - self._spent)

    def answered(self) -> None:
        """Bound what follows by the total alone: there is a server, even if it goes away again."""
        self._unanswered = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Charge the time of the block to the budget."""
        began = time.monotonic()
        try:
            with self.watch.waiting():
                yield
        finally:
            self._spent += time.monotonic() - began

    def tell(self, sentence: str, waited: float = 0.0) -> None:
        """Log a sentence about a wait of so many seconds, unless it is the one that was told last."""
        if sentence != self._told:
            self._told = sentence
            _log.warning("%s", sentence)
            self.watch.waits(logging.WARNING, sentence, waited)

    def spend(self, seconds: float) -> None:
        """Charge seconds that were spent waiting."""
        self._spent += seconds

    async def wait_for(self, error: AbsentError) -> None:
        """Wait before another look for what was absent; raises AbsentError unless the run waits for that.

        Raises BudgetExceededError as `pause` does.
        """
        if not self._absent:
            ask = f"if somebody else is making it now, {spelled('wait_for', 'database')} waits for it"
            raise AbsentError(f"{error}; {ask}") from error.__cause__
        self.answered()
        why = str(error)
        self.tell(f"{why}; waiting for it")
        self._absences += 1
        await self.pause(*backoff(self._absences - 1), why)

    async def poll(self, why: str) -> None:
        """Sleep until the next look at the work of another runner, as `pause` does."""
        await self.pause(LEAST_PAUSE, MOST_PAUSE, why)

    async def pause(self, least: float, most: float, why: str) -> None:
        """Sleep between `least` and `most` seconds, at random: replicas that start together then poll at other times.

        Raises BudgetExceededError, with `why`, when nothing is left of the budget.
        """
        left = self.remaining
        if left is not None and left <= 0:
            cure = "" if self._unanswered is None else "; start the server, or correct its address"
            raise BudgetExceededError(f"gave up after {self._limit:g} s: {why}{cure}")
        delay = random.uniform(least, most)  # noqa: S311 - jitter needs no secrecy
        with self.waiting():
            await asyncio.sleep(delay if left is None else min(delay, left))


def backoff(attempt: int) -> tuple[float, float]:
    """Return the bounds, in seconds, of the pause before attempt number `attempt` + 1."""
    base = min(0.1 * 2 ** min(attempt, 10), 5.0)
    return base / 2, base


_BY_CODE = {None, "exec_stmt_raise", "PLy_elog_impl", "dblink_res_error", "pgfdw_report_error"}
"""Functions of the server that raise the error that code, or another server, asks for: PL/pgSQL, PL/Python, dblink.

An exception that was made in Python names no function.
"""

_LOST_RACES = {"tuple concurrently updated", "tuple concurrently deleted"}
"""Messages that PostgreSQL does not translate, and raises with the SQLSTATE of any internal error."""

_ALREADY_THERE = asyncpg.DuplicateSchemaError, asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError


class Cause(Enum):
    """Why work failed that may succeed when it is tried again."""

    LOCK = auto()
    """Another session holds a lock, maybe for long. To ask again harms nobody."""
    CONFLICT = auto()
    """A deadlock, or transactions that cannot be serialized: the next victim may be the application's transaction."""
    RACE = auto()
    """Two sessions changed the same catalog rows at once. Nothing says that the reason will go away."""
    THERE = auto()
    """IF NOT EXISTS fails with this where another session commits between its look and its work."""
    CODE = auto()
    """Code, or another server, has raised one of the errors above by its SQLSTATE, and may do so each time."""


MOST = {Cause.LOCK: math.inf, Cause.CONFLICT: 20, Cause.RACE: 5, Cause.CODE: 5}
"""How often a step is tried again, for each cause."""


class Tries:
    """How often one piece of work has failed so far, for each cause."""

    def __init__(self, most: Mapping[Cause, float] = MOST) -> None:
        self._most = most
        self._failed: Counter[Cause | None] = Counter()

    @property
    def attempt(self) -> int:
        """The number of the attempt that has failed last, from 0."""
        return self._failed.total() - 1

    def may_succeed_after(self, error: Exception) -> bool:
        """Count a failure of the work, and return whether another attempt may succeed."""
        cause = _cause(error)
        self._failed[cause] += 1
        return cause is not None and self._failed[cause] <= self._most.get(cause, 0)


def _cause(error: Exception) -> Cause | None:
    if isinstance(error, asyncpg.LockNotAvailableError | asyncpg.DeadlockDetectedError | asyncpg.SerializationError):
        if error.server_source_function in _BY_CODE:
            return Cause.CODE
        return Cause.LOCK if isinstance(error, asyncpg.LockNotAvailableError) else Cause.CONFLICT
    if isinstance(error, asyncpg.UniqueViolationError):
        return Cause.RACE if error.schema_name == "pg_catalog" else None
    if isinstance(error, asyncpg.InternalServerError):
        return Cause.RACE if error.args[0] in _LOST_RACES else None
    return Cause.THERE if isinstance(error, _ALREADY_THERE) else None


async def retry(
    work: Callable[[], Awaitable[T]],
    tries: Tries,
    pause: Callable[[asyncpg.PostgresError, int], Awaitable[None]],
    server_error: Callable[[Exception], Exception | None] = lambda error: error,
) -> T:
    """Return the result of `work`; an attempt that fails is repeated while `tries` says that another may succeed.

    `pause` runs before each further attempt, given the server's error and the number of the failed attempt, from 0.
    `server_error` returns the server's error inside another exception, None for one that is final. Any other exception
    of `work`, and the last one, is raised as it is.
    """
    while True:
        try:
            return await work()
        except Exception as error:
            cause = server_error(error)
            if not isinstance(cause, asyncpg.PostgresError) or not tries.may_succeed_after(cause):
                raise
        await pause(cause, tries.attempt)
