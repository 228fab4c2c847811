"""Whether an application may serve: what all that was told so far comes to."""

from enum import StrEnum
from typing import NamedTuple

from pgratchet.core.events import Done, Event, Failed, Looked, Started
from pgratchet.core.model import Direction, Finished


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

    def after(self, event: Event) -> "Readiness":
        """Return how it stands after an event."""
        match event:
            case Looked():
                still = self.ready and not (event.pending or event.running or event.failed)
                return Readiness(Condition.APPLIED if still else Condition.PENDING, *event)
            case Started(version=version):
                begun = self._without(version)
                return begun._replace(state=Condition.RUNNING, running=(*begun.running, version))
            case Finished():
                return self._after_step(event)
            case Done():
                missing = self.pending or self.running or self.failed
                return self._replace(state=Condition.PENDING if missing else Condition.APPLIED)
            case Failed():
                return self._after_failure(event)
            case _:
                return self

    def _after_step(self, step: Finished) -> "Readiness":
        rest = self._without(step.version)
        if step.direction is Direction.UP:
            return rest._replace(applied=self.applied + 1)
        return rest._replace(applied=self.applied - 1, pending=(*rest.pending, step.version))

    def _after_failure(self, event: Failed) -> "Readiness":
        culprit = (event.failure.version,) if event.failure else ()
        rest = self._without(*culprit)
        left = tuple(sorted(rest.pending + rest.running, key=int))
        return rest._replace(state=Condition.FAILED, pending=left, running=(), failed=(*rest.failed, *culprit))

    def _without(self, *versions: str) -> "Readiness":
        def rest(of: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(version for version in of if version not in versions)

        return self._replace(pending=rest(self.pending), running=rest(self.running), failed=rest(self.failed))
