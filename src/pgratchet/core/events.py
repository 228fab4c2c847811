"""The events of a run: frozen values. The str() of each is its sentence for the log, and printable.

The values hold texts as they are.
"""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from pgratchet.core.errors import MigrationFailedError, PgratchetError
from pgratchet.core.model import Direction, Failure, Finished, State
from pgratchet.core.printing import printable, printable_lines


class Looked(NamedTuple):
    """Files and history were compared: the number of applied versions, and the versions that are not applied.

    `unknown` are versions that have no file here.
    """

    applied: int
    pending: tuple[str, ...]
    running: tuple[str, ...]
    failed: tuple[str, ...]
    unknown: tuple[str, ...]
    interrupted: tuple[str, ...] = ()
    in_doubt: tuple[str, ...] = ()

    def __str__(self) -> str:
        missing = (self.pending, self.running, self.failed, self.interrupted, self.in_doubt)
        return f"{self.applied} applied, {sum(map(len, missing))} to do"


class Waiting(NamedTuple):
    """A run waits for another one, `since` a time of its own clock; `holder` describes the other one and its work.

    Told when the wait begins, and with each change of that description.
    """

    holder: str
    since: datetime

    def __str__(self) -> str:
        return printable(f"waiting since {self.since:%H:%M:%SZ} for {self.holder}")


class Locked(NamedTuple):
    """The run has the lock, after a wait of `seconds`."""

    seconds: float

    def __str__(self) -> str:
        return f"locked after {self.seconds:.1f} s"


class Started(NamedTuple):
    """A step has begun: its version is claimed, and its script is next. Told once, however often the run tries it."""

    version: str
    name: str
    direction: Direction
    statements: int

    def __str__(self) -> str:
        return printable(f"{self.direction} {self.version} {self.name}")


class StatementFinished(NamedTuple):
    """The first `statement` statements of a step are done; in a transaction they are not committed yet."""

    version: str
    name: str
    direction: Direction
    statement: int
    statements: int

    def __str__(self) -> str:
        done = f"{self.statement} of {self.statements} statements"
        return printable(f"{self.direction} {self.version} {self.name}: {done}")


class Retried(NamedTuple):
    """The run tries again after a temporary failure; `blockers` describes the sessions in its way, empty if unknown."""

    version: str
    what: str
    attempt: int
    reason: str
    blockers: str

    @property
    def why(self) -> str:
        """The failure, and the sessions in its way."""
        blocked = f"; blocked by {self.blockers}" if self.blockers else ""
        return f"{self.what}: {self.reason}{blocked}"

    def __str__(self) -> str:
        return printable(f"{self.why}; trying again")


class Done(NamedTuple):
    """A run succeeded; `finished` are the steps that it did itself."""

    finished: tuple[Finished, ...]

    def __str__(self) -> str:
        return f"done: {len(self.finished)} step(s)" if self.finished else "nothing to do"


class Failed(NamedTuple):
    """A run ended with an error of the class `error`; CancelledError for a cancelled run.

    `left` is the state of the version under way, interrupted or in doubt; None if it is as it was before the run.
    """

    error: str
    message: str
    failure: Failure | None = None
    left: State | None = None

    @property
    def cancelled(self) -> bool:
        """True if the run was cancelled: nothing was wrong with it."""
        return self.error == "CancelledError"

    def __str__(self) -> str:
        return "cancelled" if self.cancelled else printable_lines(f"{self.error}: {self.message}")


Event = Looked | Waiting | Locked | Started | StatementFinished | Retried | Finished | Done | Failed
"""A `Finished` is both the result of a step and its event."""

Tell = Callable[[Event], None]


def failed(error: BaseException, left: State | None = None) -> Failed:
    """Return the event of an error that ended a run."""
    text = str(error)
    return Failed(
        type(error).__name__,
        text if isinstance(error, PgratchetError) else printable(text),
        error.failure if isinstance(error, MigrationFailedError) else None,
        left,
    )
