"""What happens in a run, told as it happens: frozen values, each with the sentence that the log has for it.

The values hold texts as they are; the sentences are printable.
"""

from collections.abc import Callable
from typing import NamedTuple

from pgratchet.core.errors import MigrationFailedError, PgratchetError
from pgratchet.core.model import Direction, Failure, Finished
from pgratchet.core.printing import printable, printable_lines


class Looked(NamedTuple):
    """Files and history were compared: how many versions are applied, and which are not.

    `unknown` are versions that only the database knows.
    """

    applied: int
    pending: tuple[str, ...]
    running: tuple[str, ...]
    failed: tuple[str, ...]
    unknown: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.applied} applied, {len(self.pending) + len(self.running) + len(self.failed)} to do"


class Waiting(NamedTuple):
    """Another runner has the lock; `holder` says who, and what it is doing."""

    holder: str

    def __str__(self) -> str:
        return printable(f"waiting for {self.holder}")


class Locked(NamedTuple):
    """It is this run's turn, after so many seconds."""

    seconds: float

    def __str__(self) -> str:
        return f"locked after {self.seconds:.1f} s"


class Started(NamedTuple):
    """A step was sent to the server. Short steps share a message: `together` of them, which are told at once.

    Those run one after the other; the first begins now.
    """

    version: str
    name: str
    direction: Direction
    statements: int
    together: int = 1

    def __str__(self) -> str:
        return printable(f"{self.direction} {self.version} {self.name}")


class StatementFinished(NamedTuple):
    """A step's first so many statements are done; in a transaction they are not committed by that."""

    version: str
    name: str
    direction: Direction
    statement: int
    statements: int

    def __str__(self) -> str:
        done = f"{self.statement} of {self.statements} statements"
        return printable(f"{self.direction} {self.version} {self.name}: {done}")


class Retried(NamedTuple):
    """Something failed that may pass, and is tried again; `blockers` says who was in the way, empty where unknown."""

    version: str
    what: str
    attempt: int
    reason: str
    blockers: str

    @property
    def why(self) -> str:
        """What failed, and who was in the way."""
        blocked = f"; blocked by {self.blockers}" if self.blockers else ""
        return f"{self.what}: {self.reason}{blocked}"

    def __str__(self) -> str:
        return printable(f"{self.why}; trying again")


class Done(NamedTuple):
    """A run ended well; `finished` is what it did itself."""

    finished: tuple[Finished, ...]

    def __str__(self) -> str:
        return f"done: {len(self.finished)} step(s)" if self.finished else "nothing to do"


class Failed(NamedTuple):
    """A run ended with an error of the class `error`, CancelledError for one that was cancelled."""

    error: str
    message: str
    failure: Failure | None = None

    @property
    def cancelled(self) -> bool:
        """Whether somebody has ended it, and nothing was wrong."""
        return self.error == "CancelledError"

    def __str__(self) -> str:
        return "cancelled" if self.cancelled else printable_lines(f"{self.error}: {self.message}")


Event = Looked | Waiting | Locked | Started | StatementFinished | Retried | Finished | Done | Failed
"""A `Finished` is itself what is told when a step is."""

Tell = Callable[[Event], None]


def failed(error: BaseException) -> Failed:
    """Return what there is to tell of an error that ended a run."""
    text = str(error)
    return Failed(
        type(error).__name__,
        text if isinstance(error, PgratchetError) else printable(text),
        error.failure if isinstance(error, MigrationFailedError) else None,
    )
