"""Whether an application may serve: what all that was told so far comes to."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from threading import RLock
from typing import NamedTuple

from pgratchet.core.errors import UsageError
from pgratchet.core.events import Done, Event, Failed, Looked, Started, Tell
from pgratchet.core.model import Direction, Finished, Ranking


class Condition(StrEnum):
    """What is known of the schema, as the last run has left it."""

    UNKNOWN = "unknown"
    """Nothing was looked at yet."""
    PENDING = "pending"
    """Something is missing, and not being applied here."""
    RUNNING = "running"
    """Something is being applied here."""
    APPLIED = "applied"
    """All that the files promise is there."""
    FAILED = "failed"
    """The last run ended with an error, or was cancelled; only another one changes that."""


class Readiness(NamedTuple):
    """How it stands: how many versions are applied, and which are not."""

    state: Condition = Condition.UNKNOWN
    applied: int = 0
    pending: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether the application may serve."""
        return self.state is Condition.APPLIED


class Course:
    """The course of all runs so far; `readiness` is what it has come to, whichever thread asks.

    Versions are told by rank; those that have none, in the order in which they became known.
    """

    def __init__(self, rank: Ranking) -> None:
        self._rank = rank
        # Not a Lock: a signal handler that asks may have interrupted the very thread that has it.
        self._lock = RLock()
        self._known: Readiness | None = None
        self._state = Condition.UNKNOWN
        self._applied = 0
        self._unknown: tuple[str, ...] = ()
        # Not the tuples of a Readiness: to take each of 10,000 versions out of one takes 10,000 times too long.
        self._missing: dict[str, Condition] = {}
        self._reverting: set[str] = set()
        self._at_work = 0
        self._begun = 0

    @property
    def readiness(self) -> Readiness:
        """How it stands now."""
        with self._lock:
            # Summed up when it is asked for: after each event it would take 10,000 times too long, too.
            if self._known is None:
                self._known = self._sum_up()
            return self._known

    def _sum_up(self) -> Readiness:
        def those(condition: Condition) -> tuple[str, ...]:
            versions = (version for version, its in self._missing.items() if its is condition)
            return tuple(sorted(versions, key=lambda version: self._rank(version) or ()))

        missing = those(Condition.PENDING), those(Condition.RUNNING), those(Condition.FAILED)
        return Readiness(self._state, self._applied, *missing, self._unknown)

    @contextmanager
    def working(self) -> Iterator[Tell]:
        """Yield what takes the events of a run that may change the schema; meanwhile it is the only one that counts."""
        self._at_work += 1
        self._begun += 1
        try:
            yield self.take
        finally:
            self._at_work -= 1

    def looking(self) -> Tell:
        """Return what takes the events of a run that only looks: those that are no older than what others have done."""
        latest = self._latest()

        def take(event: Event) -> None:
            nonlocal latest
            if isinstance(event, Looked):
                latest = self._latest()
            if latest is not None and latest == self._latest():
                self.take(event)

        return take

    def _latest(self) -> int | None:
        """Return a number that stays the same as long as nobody changes anything, None while somebody does."""
        return None if self._at_work else self._begun

    def forget(self) -> None:
        """Take nothing for applied any more: whoever starts next has to look for itself."""
        with self._lock:
            if self._state is Condition.APPLIED:
                self._state, self._applied, self._unknown = Condition.UNKNOWN, 0, ()
                self._known = None

    def take(self, event: Event) -> None:
        """Take an event into account."""
        with self._lock:
            match event:
                case Looked():
                    self._look(event)
                case Started():
                    self._start(event)
                case Finished():
                    self._finish(event)
                case Done():
                    self._state = Condition.PENDING if self._missing else Condition.APPLIED
                case Failed():
                    self._fail(event)
                case _:
                    pass
            self._known = None

    def _look(self, event: Looked) -> None:
        found = {
            Condition.PENDING: event.pending,
            Condition.RUNNING: event.running,
            Condition.FAILED: event.failed,
        }
        self._missing = {version: condition for condition, versions in found.items() for version in versions}
        self._applied, self._unknown = event.applied, event.unknown
        self._reverting.clear()
        if self._missing or self._state is not Condition.APPLIED:
            self._state = Condition.PENDING

    def _start(self, step: Started) -> None:
        if step.version not in self._missing:
            self._applied -= 1
            self._reverting.add(step.version)
        self._state = self._missing[step.version] = Condition.RUNNING

    def _finish(self, step: Finished) -> None:
        # What a lost connection has left unanswered is told after the look that has found it in the history.
        self._reverting.discard(step.version)
        if step.direction is Direction.DOWN:
            self._missing[step.version] = Condition.PENDING
        elif self._missing.pop(step.version, None):
            self._applied += 1

    def _fail(self, event: Failed) -> None:
        if event.error == UsageError.__name__ and self._state is Condition.APPLIED:
            return  # the caller's mistake says nothing of the schema
        for version in self._reverting:
            del self._missing[version]
        self._applied += len(self._reverting)
        self._reverting.clear()
        for version, condition in self._missing.items():
            if condition is Condition.RUNNING:
                self._missing[version] = Condition.PENDING
        if event.failure is not None and event.failure.direction is Direction.UP:
            self._missing[event.failure.version] = Condition.FAILED
        self._state = Condition.FAILED
