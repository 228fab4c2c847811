"""The cursor of a file that runs statement by statement: the part of its history row that a later run resumes from.

Its text has the form `DIGEST[ SESSION][>DIGEST[ {OIDS}] TIME]`:

- the digest of the finished statements, empty before the first;
- the role, settings and temporary objects that these have left in their session;
- from the beginning of a statement outside a transaction until it is counted: the digest that includes it, the oids of
  the objects that it is about, and the time of its beginning.
"""

from typing import NamedTuple

from pgratchet.core.model import HistoryRow

MARK = ">"
"""Separates the digest of the finished statements from the one that includes the statement in progress."""

SESSION = "pgratchet.session"
"""The setting that holds what was last noted of the session."""

TARGET = "pgratchet.target"
"""The setting that holds, in a transaction that begins a statement, the oids of the objects that it is about."""

UNMARKED = f"pg_catalog.split_part(cursor, '{MARK}', 1)"
"""SQL: the cursor of a row without the statement in progress."""

MARKED = f"pg_catalog.strpos(cursor, '{MARK}') OPERATOR(pg_catalog.>) 0"
"""SQL: the condition that a row has a statement in progress."""

_NOW = "pg_catalog.to_char(pg_catalog.clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS+00')"


class Begun(NamedTuple):
    """A statement outside a transaction that was begun and is not counted: nobody knows whether it took effect.

    `digest` stands for it and the statements before it; `there` are the oids of the objects that it is about, None
    where they are not known.
    """

    digest: str
    at: str
    there: tuple[int, ...] | None = None


class Cursor(NamedTuple):
    """The finished statements of a row, and the one in progress; `session` is None where that is not recorded."""

    digest: str
    session: str | None = None
    begun: Begun | None = None

    @property
    def unmarked(self) -> str:
        """The text that says that the statement in progress did not take effect."""
        return _text(self.digest, self.session)

    @property
    def counted(self) -> str:
        """The text that says that the statement in progress took effect."""
        return _text(self.begun.digest if self.begun else self.digest, self.session)


def of(row: HistoryRow | None) -> Cursor | None:
    """Return the cursor of a row, None for one that counts no statements."""
    return None if row is None or row.cursor is None else read(row.cursor)


def read(text: str) -> Cursor:
    """Return the cursor that a row has as text."""
    finished, mark, progress = text.partition(MARK)
    digest, blank, session = finished.partition(" ")
    return Cursor(digest, session if blank else None, _begun(progress) if mark else None)


def _begun(text: str) -> Begun:
    digest, _, at = text.partition(" ")
    if not at.startswith("{"):
        return Begun(digest, at)
    oids, _, at = at[1:].partition("} ")
    return Begun(digest, at, tuple(int(oid) for oid in oids.split(",") if oid))


def _text(digest: str, session: str | None) -> str:
    return digest if session is None else f"{digest} {session}"


def written(digest: str) -> str:
    """Return the SQL of a cursor behind the statements of a digest, in the session as it was last noted."""
    return f"pg_catalog.concat('{digest} ', pg_catalog.current_setting('{SESSION}'))"


def written_at_beginning(before: str, after: str) -> str:
    """Return the SQL of a cursor that says that the statement between two digests is about to run."""
    target = f"pg_catalog.current_setting('{TARGET}')"
    return f"pg_catalog.concat({written(before)}, '{MARK}{after} ', {target}, ' ', {_NOW})"
