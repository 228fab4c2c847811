"""At most one runner at a time, and who that is."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from pgratchet.core.events import Waiting
from pgratchet.core.model import Lock
from pgratchet.postgres.ledger.records import Records
from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.own import Guards
from pgratchet.postgres.link.session import Connection, refuse_statement_pooling
from pgratchet.postgres.link.sql import EQ, Table, become

LOCK_ROWS = (
    f"l.locktype {EQ} 'advisory' AND l.granted AND l.objsubid {EQ} 1 "
    f"AND l.classid {EQ} $1::pg_catalog.oid AND l.objid {EQ} $2::pg_catalog.oid"
)
"""Which rows of pg_locks stand for a 64-bit key, given its halves (PostgreSQL's manual, chapter 54, pg_locks)."""

_WORD = 0xFFFFFFFF

HOLDERS = (
    f"pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid {EQ} l.database "
    f"AND d.datname {EQ} pg_catalog.current_database() WHERE {LOCK_ROWS}"
)
"""The rows of pg_locks in this database that stand for the key with the halves $1 and $2."""

_HOLDER = (
    "SELECT a.pid, a.usename, a.application_name FROM pg_catalog.pg_stat_activity a "
    f"WHERE a.pid {EQ} ANY (SELECT l.pid FROM {HOLDERS})"
)

_log = logging.getLogger("pgratchet")


class BusyError(Exception):
    """Another runner has the lock."""


class PooledError(Exception):
    """Another server process answers than the one that took the connection: something stands in between."""


class Holder(NamedTuple):
    """The session that holds the lock."""

    pid: int
    role: str | None
    application: str

    def __str__(self) -> str:
        return f"{self.application or 'a session without a name'} (role {self.role}, server process {self.pid})"


async def acquire(connection: Connection, key: int, pid: int | None = None) -> bool:
    """Say whether the session holds the lock now; never waits for it.

    Raises PooledError, and takes nothing, where `pid` is given and another server process answers: a lock that
    is taken through a pooler in transaction mode stays with a session that is handed to strangers.

    Callers poll, because a session that blocks inside pg_advisory_lock() keeps a snapshot open, and the
    holder's CREATE INDEX CONCURRENTLY would wait for that snapshot: a deadlock (golang-migrate/migrate#960).
    It is taken twice, for the sake of `still_held`.
    """
    twice = "CASE WHEN pg_catalog.pg_try_advisory_lock($1) THEN pg_catalog.pg_try_advisory_lock($1) ELSE false END"
    here = f"COALESCE(pg_catalog.pg_backend_pid() {EQ} $2, true)"
    held: bool | None = await own.fetchval(connection, f"SELECT CASE WHEN {here} THEN {twice} END", key, pid)
    if held is None:
        raise PooledError
    return held


async def is_free(connection: Connection, key: int) -> bool:
    """Say whether nobody else holds the lock; has it itself until the transaction ends, and no longer."""
    return bool(await own.fetchval(connection, "SELECT pg_catalog.pg_try_advisory_xact_lock($1)", key))


@asynccontextmanager
async def exclusively(
    connection: Connection, key: int | None, budget: Budget, role: str | None = None
) -> AsyncIterator[None]:
    """Run the block as one transaction, as `role`, that holds the lock, as soon as that can be had.

    No lock without a key.
    """
    while True:
        async with connection.transaction(isolation="read_committed"):
            if key is None or await is_free(connection, key):
                if role is not None:
                    await own.execute(connection, become(role, local=True))
                yield
                return
        await budget.poll("waiting for another runner to give back the lock")


async def holder(connection: Connection, key: int) -> Holder | None:
    """Return who holds the lock, None where nobody does."""
    rows = await own.fetch(connection, _HOLDER, *halves(key))
    return Holder(rows[0]["pid"], rows[0]["usename"], rows[0]["application_name"]) if rows else None


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


def taken_for_transaction(key: int) -> str:
    """Return the SQL condition that takes the lock until the transaction ends, false where somebody has it.

    The same lock as the session's: runners with and without a pooler exclude each other.
    """
    return f"pg_catalog.pg_try_advisory_xact_lock({key})"


def held(key: int) -> str:
    """Return the SQL condition under which the backend that evaluates it holds the lock, as pg_locks has it.

    Behind a pooler that may be another backend than the one that took it.
    """
    high, low = halves(key)
    rows = LOCK_ROWS.replace("$1", f"'{high}'").replace("$2", f"'{low}'")
    return f"EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE {rows} AND l.pid {EQ} pg_catalog.pg_backend_pid())"


def records(table: Table, by: Lock) -> Records:
    """Return the history's SQL for one run, whose runners are kept apart by that."""
    key, guards = table.lock_key, Guards()
    match by:
        case Lock.SESSION:
            return Records(table, still_held(key), guards)
        case Lock.TRANSACTION:
            return Records(table, "true", guards, taken_for_transaction(key))
        case Lock.NONE:
            return Records(table, "true", guards, "")


class RunnerLock:
    """The lock of one run. `by` says how runners are kept apart: a pooler that is found in between changes it.

    `records` is the SQL of the history that goes with it.
    """

    def __init__(self, table: Table, wanted: Lock | None) -> None:
        self.by = wanted or Lock.SESSION
        self.records = records(table, self.by)
        self._table = table
        self._wanted = wanted

    async def try_acquire(self, connection: Connection) -> bool:
        """Return True if this run holds the lock now, or could have it for a transaction; never waits for it."""
        key = self._table.lock_key
        if self.by is Lock.SESSION:
            pid = None if self._wanted else connection.get_server_pid()
            try:
                return await acquire(connection, key, pid)
            except PooledError:
                _log.info("a pooler is in between: the lock is taken by each transaction for itself")
                await refuse_statement_pooling(connection)
                self.by = Lock.TRANSACTION
                self.records = records(self._table, self.by)
        return self.by is Lock.NONE or await is_free(connection, key)

    async def raise_if_busy(self, connection: Connection) -> None:
        """Raise BusyError if another runner holds the lock and this one takes it for each transaction."""
        if self.by is Lock.TRANSACTION and not await is_free(connection, self._table.lock_key):
            raise BusyError

    async def waiting(self, connection: Connection, otherwise: str) -> Waiting:
        """Return the event that this run waits for the holder of the lock, or for `otherwise` if nobody holds it."""
        return Waiting(str(await holder(connection, self._table.lock_key) or otherwise))
