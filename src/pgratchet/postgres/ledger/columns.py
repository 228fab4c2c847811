"""The history's columns: their names, types and order, how each is read, and since which release it is there.

The columns that are NOT NULL make a table a history, and are those of the first release for ever. A later release adds
nullable ones only: a release that does not know a column does not write it, and reads the others.
"""

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

Texts: TypeAlias = list[str | None]
"""The values of a column, one for each row, as PostgreSQL writes them."""


def _as_they_are(texts: Texts) -> list[Any]:
    return texts


def _numbers(texts: Texts) -> list[Any]:
    # Most rows say the same.
    known = {text: None if text is None else _number(text) for text in set(texts)}
    return [known[text] for text in texts]


def _number(text: str) -> int:
    number = int(text)
    if number.bit_length() > _BITS:
        raise ValueError(text)
    return number


def _moments(texts: Texts) -> list[Any]:
    read = datetime.fromisoformat
    return [None if text is None or text in _ENDLESS else read(text) for text in texts]


_BITS = 31
_ENDLESS = {"infinity", "-infinity"}


class Column(NamedTuple):
    """A column: its type, how its texts are read, and what else CREATE TABLE says of it.

    No run writes a history that lacks an `essential` column: its guarantees rest on that. `read` raises ValueError for
    a text that stands for no value.
    """

    type: str
    read: Callable[[Texts], list[Any]]
    more: str = ""
    essential: bool = False
    since: str = "0.1.0"

    @property
    def nullable(self) -> bool:
        """True if a history may lack it."""
        return not self.more


_TEXT = Column("pg_catalog.text", _as_they_are)
_NUMBER = Column("pg_catalog.int4", _numbers)
_MOMENT = Column("pg_catalog.timestamptz", _moments)

COLUMNS = {
    "version": _TEXT._replace(more="PRIMARY KEY"),
    "name": _TEXT._replace(more="NOT NULL"),
    "kind": _TEXT._replace(more="NOT NULL"),
    "checksum": _TEXT._replace(more="NOT NULL"),
    "state": _TEXT._replace(more="NOT NULL"),
    "statements_done": _NUMBER._replace(more="NOT NULL DEFAULT 0"),
    "statements_total": _NUMBER._replace(more="NOT NULL DEFAULT 0"),
    # Without it nobody knows which statements are finished.
    "cursor": _TEXT._replace(essential=True),
    "started_at": _MOMENT,
    "finished_at": _MOMENT,
    "applied_by": _TEXT,
    # Without it a run goes on with what somebody else is still at work on.
    "backend_pid": _NUMBER._replace(essential=True),
    "backend_start": _MOMENT,
    # Without it a run does not know its own row.
    "token": _TEXT._replace(essential=True),
    "tool_version": _TEXT,
    # Without it an image starts that a migration has ruled out.
    "compatible_with": _TEXT._replace(essential=True),
    "reason": _TEXT,
    "error": _TEXT,
}
"""By name, in the order of a new table."""


def required() -> list[str]:
    """Return the columns without which a table is another tool's."""
    return [name for name, column in COLUMNS.items() if not column.nullable]


def defined(names: Collection[str]) -> list[str]:
    """Return the columns of these names as CREATE TABLE and ADD COLUMN take them."""
    return [f"{name} {column.type} {column.more}".rstrip() for name, column in COLUMNS.items() if name in names]
