"""What a migrator is set to, and what a run hands on."""

from typing import NamedTuple

from pgratchet.core.model import Lock
from pgratchet.files.layout import Layout
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.link.limits import Limits
from pgratchet.postgres.link.session import Connect
from pgratchet.postgres.link.sql import Table


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
