"""The lock that lets at most one runner work at a time, and its holder."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple

import asyncpg

from pgratchet.core.arguments import spelled
from pgratchet.core.errors import ServerError
from pgratchet.core.model import Lock
from pgratchet.postgres.ledger.records import Records
from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.own import Guards
from pgratchet.postgres.link.session import AT_WORK, Connection, describe, last_words, outlives
from pgratchet.postgres.link.sql import EQ, Table, become
from pgratchet.postgres.link.unreachable import may_pass

LOCK_ROWS = (
    f"l.locktype {EQ} 'advisory' AND l.granted AND l.objsubid {EQ} 1 "
    "AND pg_catalog.int8or(pg_catalog.int8shl(l.classid::pg_catalog.int8, 32), l.objid::pg_catalog.int8) "
    f"{EQ} $1::pg_catalog.int8"
)
"""The rows of pg_locks for the 64-bit key $1, of which they show each half (PostgreSQL's manual, chapter 54)."""

HOLDERS = (
    f"pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid {EQ} l.database "
    f"AND d.datname {EQ} pg_catalog.current_database() WHERE {LOCK_ROWS}"
)
"""The rows of pg_locks in this database for the key $1."""

HELD = (
    "EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE "
    + LOCK_ROWS.replace("$1", "'{key}'")
    + f" AND l.pid {EQ} pg_catalog.pg_backend_pid())"
)
"""The SQL condition that the backend which evaluates it holds the lock, as pg_locks has it.

Behind a pooler that may be another backend than the one that took it.
"""

_SHARED = (
    "EXISTS (SELECT FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) a "
    f"WHERE a.backend_type {EQ} 'standalone backend')"
)
"""The SQL condition that the server has one process, and one session, for all of its clients, as PGlite."""

_HOLDER = (
    f"SELECT a.pid, a.usename, a.application_name, a.wait_event_type {EQ} 'Lock' AS is_blocked "
    f"FROM pg_catalog.pg_stat_activity a WHERE a.pid {EQ} ANY (SELECT l.pid FROM {HOLDERS})"
)

_log = logging.getLogger("pgratchet")


class BusyError(Exception):
    """Another runner has the lock."""


class Holder(NamedTuple):
    """The session that holds the lock. It `is_blocked` while it waits for a lock itself; None if that is hidden."""

    pid: int
    role: str | None
    application: str
    is_blocked: bool | None

    def __str__(self) -> str:
        name, at_work = self.application, ""
        if name.startswith(AT_WORK):
            since, _, name = name.removeprefix(AT_WORK).partition(": ")
            at_work = f", at work since {since}"
        blocked = ", blocked by a lock of another session" if self.is_blocked else ""
        return f"{name or 'a session without a name'} (role {self.role}, server process {self.pid}{at_work}{blocked})"


async def is_free(connection: Connection, key: int) -> bool:
    """Return whether no other session holds the lock; this one then holds it until the transaction ends."""
    return bool((await own.ask(connection, f"SELECT pg_catalog.pg_try_advisory_xact_lock({key}) AS free"))["free"])


@asynccontextmanager
async def exclusively(
    connection: Connection, key: int | None, budget: Budget, owner: str | None = None
) -> AsyncIterator[None]:
    """Run the block as one transaction as the role `owner`, that holds the lock; wait for it. No lock without a key."""
    since = datetime.now(UTC)
    while True:
        async with connection.transaction(isolation="read_committed"):
            if key is None or await is_free(connection, key):
                if owner is not None:
                    await own.execute(connection, become(owner, local=True))
                yield
                return
        held = await holder(connection, key)
        if held is not None:
            budget.tell(f"waiting since {since:%H:%M:%SZ} for {held}")
        await budget.poll(f"waiting for the lock of {held or 'another session'}")


async def holder(connection: Connection, key: int) -> Holder | None:
    """Return the session that holds the lock; None if there is none."""
    rows = await own.fetch(connection, _HOLDER, key)
    return Holder(*rows[0]) if rows else None


class RunnerLock:
    """The lock of one run.

    `records` is the SQL of the history that goes with it; `records.lock` changes where a pooler is found in between.
    """

    def __init__(self, table: Table, wanted: Lock | None) -> None:
        self.records = Records(table, wanted or Lock.SESSION, Guards())
        self._key = table.lock_key
        self._is_detected = wanted is None

    async def try_acquire(self, connection: Connection) -> bool:
        """Return True if this run holds the lock now, or could have it for a transaction; never waits for it.

        Callers poll, because a session that blocks inside pg_advisory_lock() keeps a snapshot open, and the holder's
        CREATE INDEX CONCURRENTLY would wait for that snapshot: a deadlock (golang-migrate/migrate#960).
        """
        if self.records.lock is Lock.SESSION:
            # The lock is taken twice, so that the SQL of records.STILL_HELD proves it. Nothing is taken where another
            # server process answers: behind a pooler the lock would stay with a session that is handed to strangers.
            here = f"pg_catalog.pg_backend_pid() {EQ} {connection.get_server_pid()}" if self._is_detected else "true"
            take = f"pg_catalog.pg_try_advisory_lock({self._key})"
            # In a session that all clients share, each of them would get the lock of another one.
            free = f"NOT ({_SHARED} AND {HELD.format(key=self._key)})"
            twice = f"CASE WHEN {here} THEN CASE WHEN {free} AND {take} THEN {take} ELSE false END END"
            row = await own.ask(connection, f"SELECT {twice} AS taken, {_SHARED} AS shared")
            taken: bool | None = row["taken"]
            if taken is not None and row["shared"]:
                _refuse_second(connection, taken=taken)
            if taken is not None:
                return taken
            _log.info("a pooler is in between: the lock is taken by each transaction for itself")
            await _refuse_statement_pooling(connection)
            self.records = self.records._replace(lock=Lock.TRANSACTION)
        return self.records.lock is Lock.NONE or await is_free(connection, self._key)

    async def raise_if_busy(self, connection: Connection) -> None:
        """Raise BusyError if another runner holds the lock and this one takes it for each transaction."""
        if self.records.lock is Lock.TRANSACTION and not await is_free(connection, self._key):
            raise BusyError

    async def holder(self, connection: Connection) -> Holder | None:
        """Return the session that holds the lock; None if there is none."""
        return await holder(connection, self._key)


def _refuse_second(connection: Connection, *, taken: bool) -> None:
    """Raise ServerError unless this run is the only one in the session that all clients of a server share."""
    if not taken:
        raise ServerError(
            "another runner is at work, and all clients of this server share one session, as of PGlite behind its "
            "socket server: run one process at a time. If that runner has crashed, its lock is still there: restart "
            "the server, or SELECT pg_advisory_unlock_all()"
        )
    outlives(connection)


async def _refuse_statement_pooling(connection: Connection) -> None:
    """Raise ServerError if a pooler in between hands each statement to another session."""
    try:
        await own.execute(connection, "BEGIN")
        await own.execute(connection, "COMMIT")
    except asyncpg.PostgresError as error:
        # The pooler ends the session with it, as it does when the server behind it is gone.
        refusal = last_words(error)
        if not isinstance(refusal, asyncpg.ProtocolViolationError) or may_pass(refusal):
            raise
        raise ServerError(
            f"{describe(refusal)}: nothing can be applied through this pooler; give a DSN that leads straight to the "
            f"server as {spelled('direct_dsn')}, or one to a pool in transaction or session mode"
        ) from error
