"""The readiness of an application, according to all events so far."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from threading import RLock
from typing import NamedTuple

from pgratchet.core.errors import UsageError
from pgratchet.core.events import Done, Event, Failed, Looked, Started, Tell
from pgratchet.core.model import Direction, Finished, Ranking, State


class Condition(StrEnum):
    """The condition of the schema, as the last run has left it."""

    UNKNOWN = "unknown"
    """No run has looked yet."""
    PENDING = "pending"
    """A version is missing, and no run of this process is applying it."""
    RUNNING = "running"
    """A run of this process is applying a version."""
    APPLIED = "applied"
    """All versions of the files are applied."""
    FAILED = "failed"
    """The last run ended with an error, or was cancelled; only another run changes that."""


class Readiness(NamedTuple):
    """The state for serving, with its reason: the number of applied versions, and the versions that are not.

    Of another run's versions, the last look at the history decides which are running, interrupted or in doubt.
    """

    state: Condition = Condition.UNKNOWN
    applied: int = 0
    pending: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    interrupted: tuple[str, ...] = ()
    in_doubt: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """True if the application may serve."""
        return self.state is Condition.APPLIED


class Course:
    """The course of all runs so far; any thread may ask for its `readiness`.

    Versions are in the order of their ranks; those without a rank, in the order in which they became known.
    """

    def __init__(self, rank: Ranking) -> None:
        self._rank = rank
        # Not a Lock: a signal handler may ask in the very thread that holds it.
        self._lock = RLock()
        self._known: Readiness | None = None
        self._state = Condition.UNKNOWN
        self._applied = 0
        self._unknown: tuple[str, ...] = ()
        # Not the tuples of a Readiness: to take each of 10,000 versions out of one takes 10,000 times too long.
        self._missing: dict[str, State] = {}
        # The versions that this process has begun, each with its state before that.
        self._under_way: dict[str, State] = {}
        self._at_work = 0
        self._begun = 0

    @property
    def readiness(self) -> Readiness:
        """The readiness at this moment."""
        with self._lock:
            # Built when it is asked for: after each event it would take 10,000 times too long, too.
            if self._known is None:
                versions = sorted(self._missing, key=lambda version: self._rank(version) or ())
                of: dict[State, list[str]] = {state: [] for state in State}
                for version in versions:
                    of[self._missing[version]].append(version)
                self._known = Readiness(
                    self._state,
                    self._applied,
                    pending=tuple(of[State.PENDING]),
                    running=tuple(of[State.RUNNING]),
                    failed=tuple(of[State.FAILED]),
                    unknown=self._unknown,
                    interrupted=tuple(of[State.INTERRUPTED]),
                    in_doubt=tuple(of[State.IN_DOUBT]),
                )
            return self._known

    @contextmanager
    def working(self) -> Iterator[Tell]:
        """Yield the event sink of a run that may change the schema; read-only runs are ignored meanwhile."""
        self._at_work += 1
        self._begun += 1
        try:
            yield self.take
        finally:
            self._at_work -= 1

    def looking(self) -> Tell:
        """Return the event sink of a read-only run; its events are dropped once another run has changed the schema."""
        latest = self._latest()

        def take(event: Event) -> None:
            nonlocal latest
            if isinstance(event, Looked):
                latest = self._latest()
            if latest is not None and latest == self._latest():
                self.take(event)

        return take

    def _latest(self) -> int | None:
        """Return a number that changes with each run that may change the schema; None during such a run."""
        return None if self._at_work else self._begun

    def forget(self) -> None:
        """Take nothing for applied any more: the next run has to look for itself."""
        with self._lock:
            if self._state is Condition.APPLIED:
                self._state, self._applied, self._unknown = Condition.UNKNOWN, 0, ()
                self._known = None

    def take(self, event: Event) -> None:  # noqa: C901 - one table of transitions
        """Take an event into account."""
        with self._lock:
            match event:
                case Looked():
                    self._missing = dict.fromkeys(event.pending, State.PENDING)
                    self._missing |= dict.fromkeys(event.running, State.RUNNING)
                    self._missing |= dict.fromkeys(event.interrupted, State.INTERRUPTED)
                    self._missing |= dict.fromkeys(event.in_doubt, State.IN_DOUBT)
                    self._missing |= dict.fromkeys(event.failed, State.FAILED)
                    self._applied, self._unknown = event.applied, event.unknown
                    if self._missing or self._state is not Condition.APPLIED:
                        self._state = Condition.PENDING
                    begun, self._under_way = self._under_way, {}
                    for version, before in begun.items():
                        done = State.PENDING if before is State.APPLIED else State.APPLIED
                        # Otherwise another run has done it meanwhile.
                        if self._missing.get(version, State.APPLIED) is not done:
                            self._begin(version)
                case Started():
                    self._begin(event.version)
                case Finished():
                    # A step that a lost connection left unanswered is told after the look that found it applied.
                    self._under_way.pop(event.version, None)
                    if event.direction is Direction.DOWN:
                        self._missing[event.version] = State.PENDING
                    elif self._missing.pop(event.version, None):
                        self._applied += 1
                case Done():
                    self._state = Condition.PENDING if self._missing else Condition.APPLIED
                case Failed():
                    # A mistake of the caller says nothing of the schema.
                    if event.error != UsageError.__name__ or self._state is not Condition.APPLIED:
                        self._fail(event)
                case _:
                    pass
            # Not before the event is taken: a signal handler that asks in between would leave half of it here.
            self._known = None

    def _begin(self, version: str) -> None:
        before = self._missing.get(version, State.APPLIED)
        if before is State.APPLIED:
            self._applied -= 1
        self._under_way.setdefault(version, before)
        self._missing[version] = State.RUNNING
        self._state = Condition.RUNNING

    def _fail(self, event: Failed) -> None:
        for version, before in self._under_way.items():
            self._missing[version] = event.left or before
            if self._missing[version] is State.APPLIED:
                del self._missing[version]
                self._applied += 1
        self._under_way.clear()
        if event.failure is not None and event.failure.direction is Direction.UP:
            self._missing[event.failure.version] = State.FAILED
        self._state = Condition.FAILED
