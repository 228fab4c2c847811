"""What a migrator is set to, and what a run hands on."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

from pgratchet.core.model import AppliedMigration, Direction, Entry, Lock
from pgratchet.files.layout import Layout
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.ledger.records import Records
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.limits import Limits
from pgratchet.postgres.link.session import Connect, Connection
from pgratchet.postgres.link.sql import Table
from pgratchet.postgres.wire.progress import Progress


class Settings(NamedTuple):
    """Everything that stays the same from run to run.

    `direct` leads past poolers, for what takes the lock. `layout` is how the files are written. `lock` is what keeps
    runners apart, None for what the connection allows. `owner` is the role that `direct` works as, None for the one
    that logs in.
    """

    connect: Connect
    direct: Connect
    table: Table
    limits: Limits
    tool_version: str
    layout: Layout
    owner: str | None = None
    allow_late: bool = False
    strict: bool = False
    readers: tuple[str, ...] = ()
    trusted_owners: tuple[str, ...] = ()
    lock: Lock | None = None

    @property
    def history(self) -> History:
        """The history of every run."""
        return History(self.table, self.owner, self.trusted_owners)

    def readers_of(self, login: str) -> tuple[str, ...]:
        """Return who may read the history, given the role that logs in: beside an owner it has to be told so."""
        return self.readers if self.owner is None else (*self.readers, login)


class Held(NamedTuple):
    """A session whose turn it is, and what a run knows there.

    `look` compares again, for one direction; `heed` raises where another run has failed at what is to be done;
    `ensure` makes the history for its readers, and returns the SQL that writes it as it is then.
    """

    connection: Connection
    lock: Lock
    settings: Settings
    records: Records
    budget: Budget
    progress: Progress
    look: Callable[[Connection, Direction], Awaitable[tuple[Entry, ...]]]
    heed: Callable[[Iterable[AppliedMigration]], None]
    ensure: Callable[[Connection, Sequence[str]], Awaitable[Records]]
