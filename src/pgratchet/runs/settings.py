"""The settings of a migrator: everything that stays the same from run to run."""

from typing import NamedTuple

from pgratchet.core.model import Lock
from pgratchet.files.layout import Layout
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.link.session import Connect
from pgratchet.postgres.link.sql import Limits


class Settings(NamedTuple):
    """The settings of every run of one migrator.

    `direct` leads past poolers, for sessions that take the lock. `history` names the table, and the role that `direct`
    works as. `layout` is how the files are written. `lock` is how runners are kept apart, None for the best that the
    connection allows. `readers` are roles that may read the history.
    """

    connect: Connect
    direct: Connect
    history: History
    limits: Limits
    tool_version: str
    layout: Layout
    allow_late: bool = False
    strict: bool = False
    readers: tuple[str, ...] = ()
    lock: Lock | None = None
