"""At most one runner at a time, and who that is."""

from typing import NamedTuple

from pgratchet.postgres.session import Connection

LEAST_PAUSE = 0.1
MOST_PAUSE = 0.4
"""Bounds, in seconds, of the pause between two tries."""

LOCK_ROWS = "l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.classid = $1 AND l.objid = $2"
"""Which rows of pg_locks stand for a 64-bit key, given its halves (PostgreSQL's manual, chapter 54, pg_locks)."""

_WORD = 0xFFFFFFFF

_HOLDER = (
    "SELECT a.pid, a.usename, a.application_name "
    "FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid "
    "JOIN pg_catalog.pg_database d ON d.oid = l.database AND d.datname = pg_catalog.current_database() "
    f"WHERE {LOCK_ROWS}"
)


class Holder(NamedTuple):
    """The session that holds the lock."""

    pid: int
    role: str | None
    application: str

    def __str__(self) -> str:
        return f"{self.application or 'a session without a name'} (role {self.role}, server process {self.pid})"


async def acquire(connection: Connection, key: int) -> bool:
    """Say whether the session holds the lock now; never waits for it.

    Callers poll, because a session that blocks inside pg_advisory_lock() keeps a snapshot open, and the
    holder's CREATE INDEX CONCURRENTLY would wait for that snapshot: a deadlock (golang-migrate/migrate#960).
    It is taken twice, for the sake of `still_held`.
    """
    twice = "CASE WHEN pg_catalog.pg_try_advisory_lock($1) THEN pg_catalog.pg_try_advisory_lock($1) ELSE false END"
    return bool(await connection.fetchval(f"SELECT {twice}", key))


async def holder(connection: Connection, key: int) -> Holder | None:
    """Return who holds the lock, None where nobody does."""
    row = await connection.fetchrow(_HOLDER, *halves(key))
    return Holder(row["pid"], row["usename"], row["application_name"]) if row else None


def halves(key: int) -> tuple[int, int]:
    """Return a key as pg_locks shows it: classid and objid."""
    return (key >> 32) & _WORD, key & _WORD


def still_held(key: int) -> str:
    """Return the SQL condition under which a backend that took the lock twice has not lost it since.

    Gives it back once and takes it again, which is true only for its holder and leaves it held all along;
    to read pg_locks takes as long as a small migration, and longer the more locks there are.
    """
    back, again = f"pg_catalog.pg_advisory_unlock({key})", f"pg_catalog.pg_try_advisory_lock({key})"
    return f"CASE WHEN {back} THEN {again} ELSE false END"


def held(key: int) -> str:
    """Return the SQL condition under which the backend that evaluates it holds the lock, as pg_locks has it.

    Behind a pooler that may be another backend than the one that took it.
    """
    high, low = halves(key)
    rows = LOCK_ROWS.replace("$1", f"'{high}'").replace("$2", f"'{low}'")
    return f"EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE {rows} AND l.pid = pg_catalog.pg_backend_pid())"
