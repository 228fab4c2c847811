"""The nouns: frozen values that every other module speaks in.

They are named tuples: at import, which every start of the command line pays for, a class costs a tenth of a frozen
dataclass, and so do its instances, of which there are some for each of ten thousand files.
"""

from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from pgratchet.core.printing import printable

Rank: TypeAlias = tuple[int | str, ...]
"""The place of a version among others: tuples of one layout compare with each other."""

Ranking: TypeAlias = Callable[[str], Rank | None]
"""Gives the rank of a version by its text alone, None where the text does not say it."""


class Kind(StrEnum):
    """What a migration is written in."""

    SQL = "sql"
    PYTHON = "python"


class Direction(StrEnum):
    """Which way a step turns the ratchet."""

    UP = "up"
    DOWN = "down"


class Mode(StrEnum):
    """How a script is run."""

    TRANSACTION = "transaction"
    STATEMENTS = "statements"


class Lock(StrEnum):
    """What keeps runners apart, beside the claims in the history."""

    SESSION = "session"
    TRANSACTION = "transaction"
    NONE = "none"


class State(StrEnum):
    """What files and history together say of one version."""

    APPLIED = "applied"
    PENDING = "pending"
    RUNNING = "running"
    FAILED = "failed"
    CHANGED = "changed"
    LATE = "late"
    UNKNOWN = "unknown"


class RecordState(StrEnum):
    """What a history row says of its version."""

    RUNNING = "running"
    APPLIED = "applied"
    FAILED = "failed"
    REVERTING = "reverting"
    PENDING = "pending"
    """A person has said that nothing of it is there; the row keeps the reason."""


class Verdict(StrEnum):
    """What a person says of a version that no run can judge: of all of it, or of the statement in doubt."""

    APPLIED = "applied"
    NOT_APPLIED = "not-applied"
    AGAIN = "again"
    SKIP = "skip"


class File(NamedTuple):
    """One file of a migration directory, as it was found: `path` is for people, `name` is for rules."""

    name: str
    path: str
    content: bytes


class Problem(NamedTuple):
    """Something in a file that its author has to fix, and how. Lines count from 1."""

    path: str
    message: str
    cure: str
    line: int | None = None

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}:{self.line}"
        return printable(f"{place}: {self.message}; {self.cure}")


class Options(NamedTuple):
    """What the directives in a file's head ask for. Timeouts are in seconds, 0 means none."""

    no_transaction: bool = False
    lock_timeout: float | None = None
    statement_timeout: float | None = None
    compatible_with: str | None = None


class Source(NamedTuple):
    """The text of one file: LF line endings, no byte order mark."""

    path: str
    text: str
    options: Options = Options()


class Migration(NamedTuple):
    """One version on disk.

    `version` is the text by which the history knows it, in the one form that its layout gives it; `rank` orders it.
    """

    version: str
    rank: Rank
    name: str
    kind: Kind
    checksum: str
    up: Source
    down: Source | None = None


class Catalogue(NamedTuple):
    """All migrations of a directory, oldest first, and what is odd but not wrong about them."""

    migrations: tuple[Migration, ...]
    warnings: tuple[Problem, ...] = ()


class HistoryRow(NamedTuple):
    """One version in the database: a row of the history, whose columns have these names.

    None stands for NULL, and for a column that the table does not have.
    """

    version: str
    name: str
    kind: str
    checksum: str
    state: RecordState
    statements_done: int
    statements_total: int
    cursor: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    applied_by: str | None = None
    backend_pid: int | None = None
    backend_start: datetime | None = None
    token: str | None = None
    tool_version: str | None = None
    compatible_with: str | None = None
    reason: str | None = None
    error: str | None = None


class Entry(NamedTuple):
    """Both sides of one version; at least one of them is there."""

    version: str
    state: State
    migration: Migration | None = None
    row: HistoryRow | None = None

    @property
    def name(self) -> str:
        """What the file calls it, or the history where there is no file."""
        if self.migration is not None:
            return self.migration.name
        return self.row.name if self.row is not None else ""


class Segment(NamedTuple):
    """A run of whole statements of a script: offsets in characters, `first` counts statements from 1."""

    start: int
    end: int
    first: int
    statements: int
    refuses: str | None = None


class Script(NamedTuple):
    """A source that has been read, judged and cut: segments in order, each sent whole.

    `begin` holds the transaction options that the file asked for. A Python script has no segments.
    """

    source: Source
    mode: Mode
    segments: tuple[Segment, ...] = ()
    statements: int = 0
    begin: str = ""

    def text_of(self, segment: Segment) -> str:
        """Return the text of one of its segments."""
        return self.source.text[segment.start : segment.end]


class Step(NamedTuple):
    """One migration in one direction.

    The first `done` statements were committed by an earlier run, whose row it takes `over` where that counts them. It
    `replaces` the row of an attempt that left nothing behind.
    """

    migration: Migration
    direction: Direction
    script: Script
    done: int = 0
    over: HistoryRow | None = None
    replaces: bool = False


class Plan(NamedTuple):
    """What a run would do, in order, and what a person should know before."""

    steps: tuple[Step, ...]
    warnings: tuple[str, ...] = ()


class Finished(NamedTuple):
    """A step that is committed, durably, and recorded.

    `seconds` is how long it took; for a step that shared a message, the time between claim and record by the server's
    clock. None where that could not be read.
    """

    version: str
    name: str
    direction: Direction
    statements: int
    seconds: float | None

    def __str__(self) -> str:
        return printable(f"{self.direction} {self.version} {self.name}: done")


class ForeignRow(NamedTuple):
    """A home-made runner's row about one file; its version may be written in any way."""

    version: int | str | None
    description: str | None
    filename: str | None
    executed_at: datetime | None
    success: bool | None
    error_message: str | None


class AdoptedRow(NamedTuple):
    """What the history is to say of a version that another tool has applied."""

    version: str
    name: str
    kind: Kind
    checksum: str
    executed_at: datetime | None


class Adoption(NamedTuple):
    """Another tool's history taken over, or how it would be: versions, by what becomes of them.

    `unknown` are among the adopted: they have a row there, and no file here.
    """

    source: str
    target: str
    adopted: tuple[str, ...]
    already: tuple[str, ...]
    skipped: tuple[str, ...]
    unknown: tuple[str, ...]
    dry_run: bool


class Failure(NamedTuple):
    """Why a step did not succeed, and where. Lines, columns and statements count from 1."""

    version: str
    name: str
    direction: Direction
    path: str
    message: str
    mode: Mode = Mode.TRANSACTION
    sqlstate: str | None = None
    detail: str | None = None
    hint: str | None = None
    context: str | None = None
    line: int | None = None
    column: int | None = None
    statement: int | None = None
    statements: int | None = None
    excerpt: tuple[tuple[int, str], ...] = ()
