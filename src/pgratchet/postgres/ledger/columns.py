"""The history's columns: name, type, order, how a value is read, and the release that added it.

The columns that are NOT NULL make a table a history; they are those of the first release for ever. A later release adds
nullable columns only: a release that does not know a column does not write it, and reads the others.
"""

from enum import StrEnum
from typing import NamedTuple


class Type(StrEnum):
    """The types of columns; `history` reads the text of each in its own way."""

    TEXT = "pg_catalog.text"
    NUMBER = "pg_catalog.int4"
    MOMENT = "pg_catalog.timestamptz"


class Column(NamedTuple):
    """A column: its type, and the rest of its definition, which is empty for a nullable column.

    No run writes a history without an `essential` column: its guarantees rest on that.
    """

    type: Type
    more: str = ""
    essential: bool = False
    since: str = "0.1.0"


_TEXT, _NUMBER, _MOMENT = Column(Type.TEXT), Column(Type.NUMBER), Column(Type.MOMENT)

COLUMNS = {
    "version": _TEXT._replace(more="PRIMARY KEY"),
    "name": _TEXT._replace(more="NOT NULL"),
    "kind": _TEXT._replace(more="NOT NULL"),
    "checksum": _TEXT._replace(more="NOT NULL"),
    "state": _TEXT._replace(more="NOT NULL"),
    "statements_done": _NUMBER._replace(more="NOT NULL DEFAULT 0"),
    "statements_total": _NUMBER._replace(more="NOT NULL DEFAULT 0"),
    # Without it no run knows which statements are finished.
    "cursor": _TEXT._replace(essential=True),
    "started_at": _MOMENT,
    "finished_at": _MOMENT,
    "applied_by": _TEXT,
    # Without it a run takes over a version whose runner is still at work.
    "backend_pid": _NUMBER._replace(essential=True),
    "backend_start": _MOMENT,
    # Without it a run does not know its own row.
    "token": _TEXT._replace(essential=True),
    "tool_version": _TEXT,
    # Without it an image starts that a migration has excluded.
    "compatible_with": _TEXT._replace(essential=True),
    "reason": _TEXT,
    "error": _TEXT,
}
"""By name, in the order of a new table."""

REQUIRED = tuple(name for name, column in COLUMNS.items() if column.more)
"""The columns without which a table is another tool's."""
