"""The nouns: frozen values that all other modules pass to each other.

They are named tuples. At import, which every start of the command line pays for, such a class takes a tenth of the time
of a frozen dataclass; so do its instances, and each of ten thousand files has several.
"""

from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from pgratchet.core.printing import printable

Rank: TypeAlias = tuple[int | str, ...]
"""The place of a version among others: the ranks of one layout compare with each other."""

Ranking: TypeAlias = Callable[[str], Rank | None]
"""Returns the rank of a version by its text alone; None for a text without a rank."""


class Kind(StrEnum):
    """The language of a migration."""

    SQL = "sql"
    PYTHON = "python"


class Direction(StrEnum):
    """The direction of a step: up applies a version, down reverts it."""

    UP = "up"
    DOWN = "down"


class Mode(StrEnum):
    """How a script runs: in one transaction, or statement by statement."""

    TRANSACTION = "transaction"
    STATEMENTS = "statements"


class Lock(StrEnum):
    """The lock that keeps runners apart, in addition to the claims in the history."""

    SESSION = "session"
    TRANSACTION = "transaction"
    NONE = "none"


class WaitFor(StrEnum):
    """The things that a run waits for, within its budget, when others make them."""

    SERVER = "server"
    """The server alone."""
    DATABASE = "database"
    """Also the database, the roles, the schema of the history, and the rights to them."""


class State(StrEnum):
    """The state of one version, according to files, history and the sessions of the server."""

    APPLIED = "applied"
    PENDING = "pending"
    RUNNING = "running"
    """Begun and not finished, and a session is at work on it."""
    INTERRUPTED = "interrupted"
    """Begun and not finished, and nobody is at work on it: the next run in its direction goes on with it."""
    IN_DOUBT = "in doubt"
    """The same, but the next run stops and asks a person."""
    FAILED = "failed"
    CHANGED = "changed"
    LATE = "late"
    UNKNOWN = "unknown"


class RecordState(StrEnum):
    """The state of one version, according to its history row."""

    RUNNING = "running"
    APPLIED = "applied"
    FAILED = "failed"
    REVERTING = "reverting"
    PENDING = "pending"
    """By a person's verdict no part of it is in the database; the row keeps the reason."""


class Verdict(StrEnum):
    """A person's decision that no run can take: about a whole version, its statement in doubt, or its edited file."""

    APPLIED = "applied"
    NOT_APPLIED = "not-applied"
    AGAIN = "again"
    SKIP = "skip"
    ACCEPT = "accept"


class Destination(NamedTuple):
    """A history table, and the server and the database that hold it, None where they are not known.

    `host` is a name, an address, or the directory of a socket.
    """

    host: str | None
    port: int | None
    database: str | None
    table: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.host and ":" in self.host else self.host
        return printable(f"database {self.database} at {host}:{self.port}, {self.table}")


class File(NamedTuple):
    """One file of a migration directory, as it was found: `path` is for people, `name` is for rules."""

    name: str
    path: str
    content: bytes


class Problem(NamedTuple):
    """A fault of a file that its author has to fix, and how. Lines count from 1."""

    path: str
    message: str
    cure: str
    line: int | None = None

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}:{self.line}"
        return printable(f"{place}: {self.message}; {self.cure}")


class Options(NamedTuple):
    """The options that the directives in a file's head set. Timeouts are in seconds, 0 means none.

    An `empty` file has no statement on purpose.
    """

    no_transaction: bool = False
    lock_timeout: float | None = None
    statement_timeout: float | None = None
    compatible_with: str | None = None
    empty: bool = False


class Source(NamedTuple):
    """The text of one file without its byte order mark: SQL with the line endings of the file, Python with LF."""

    path: str
    text: str
    options: Options = Options()


class Migration(NamedTuple):
    """One version on disk.

    `version` is its key in the history, a text in the one form that its layout gives it; `rank` orders it.
    """

    version: str
    rank: Rank
    name: str
    kind: Kind
    checksum: str
    up: Source
    down: Source | None = None


class Catalogue(NamedTuple):
    """All migrations of a directory, oldest first, and warnings about oddities that are no faults."""

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
        """The name in its file, or in its row where it has no file."""
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
    """A source that has been checked and cut into segments, in order; each is sent whole.

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

    An earlier run has committed the first `done` statements; the step takes `over` the row that counts them. It
    `replaces` the row of an attempt that left nothing behind.
    """

    migration: Migration
    direction: Direction
    script: Script
    done: int = 0
    over: HistoryRow | None = None
    replaces: bool = False


class Plan(NamedTuple):
    """The steps of a run, in order, and warnings to read before it."""

    steps: tuple[Step, ...]
    warnings: tuple[str, ...] = ()


class Finished(NamedTuple):
    """A step that is durably committed, and recorded.

    `seconds` is its duration; for a step that shared a message, the time between claim and record by the server's
    clock, None where that could not be read.
    """

    version: str
    name: str
    direction: Direction
    statements: int
    seconds: float | None

    def __str__(self) -> str:
        return printable(f"{self.direction} {self.version} {self.name}: done")


class ForeignRow(NamedTuple):
    """A row of a home-made runner about one file; its version may be written in any way."""

    version: int | str | None
    description: str | None
    filename: str | None
    executed_at: datetime | None
    success: bool | None
    error_message: str | None


class AdoptedRow(NamedTuple):
    """The new history row of a version that another tool has applied."""

    version: str
    name: str
    kind: Kind
    checksum: str
    executed_at: datetime | None


class Adoption(NamedTuple):
    """The result of an adoption, or of its dry run: the versions of another tool's history, grouped by their fate.

    The `unknown` versions are among the adopted: they have a row there, and no file here. `versions` are those of
    both, the history there and the files here, oldest first.
    """

    source: str
    target: str
    adopted: tuple[str, ...]
    already: tuple[str, ...]
    skipped: tuple[str, ...]
    unknown: tuple[str, ...]
    dry_run: bool
    versions: tuple[str, ...] = ()


class Failure(NamedTuple):
    """The reason why a step failed, and the place. Lines, columns and statements count from 1.

    `history` names the history table if the step's row could not be written: its file is not to blame.
    """

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
    history: str | None = None
