"""Other sessions: which of them are at work, as a log line tells it, and waiting until they are gone."""

import logging
from collections.abc import Awaitable, Callable, Iterable

import asyncpg

from pgratchet.core.model import HistoryRow
from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import TELL_EVERY, Budget, Interval
from pgratchet.postgres.link.roles import as_login
from pgratchet.postgres.link.session import Connection
from pgratchet.postgres.link.sql import CONCAT, EQ, GT, MINUS, NE

SESSIONS = (
    "SELECT a.pid, a.usename, a.application_name, a.state, "
    f"EXTRACT(epoch FROM pg_catalog.clock_timestamp() {MINUS} COALESCE(a.xact_start, a.backend_start))"
    "::pg_catalog.int4 AS age, "
    "a.query FROM pg_catalog.pg_stat_activity a WHERE "
)
"""Asks for what `told` tells."""

QUERY_CHARACTERS = 100
"""How much of a session's query is told."""

# A runner is idle between its statements too, but not for long, and has the name of its step then: a pooler hands
# the session of one that is gone to others, who may look for the lock in it again and again. The start of others'
# sessions is hidden from a role that may not see what they do: who has the number then, and may have logged in as
# the runner did, may be the one looked for.
_RUNNER = (
    f"{SESSIONS} a.pid {EQ} $1 AND a.pid {NE} pg_catalog.pg_backend_pid() "
    f"AND a.datname {EQ} pg_catalog.current_database() "
    f"AND COALESCE(a.backend_start {EQ} $2::pg_catalog.timestamptz, "
    f"pg_catalog.starts_with($3, a.usename::pg_catalog.text {CONCAT} '@'), true) "
    f"AND (COALESCE(a.state {NE} 'idle', true) "
    f"OR a.state_change {GT} (pg_catalog.clock_timestamp() {MINUS} '1 second'::pg_catalog.interval) "
    "AND pg_catalog.starts_with(a.application_name, 'pgratchet since '))"
)

LOCKS = (
    f"pg_catalog.pg_locks l WHERE l.locktype {EQ} 'relation' AND l.granted AND l.database {EQ} "
    f"(SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname {EQ} pg_catalog.current_database())"
)
"""The locks on this database's tables: another's may have the same number."""

# What builds or drops an index concurrently holds such a lock from before its first to after its last step. So
# does autovacuum, which has no user, and gives way.
_BUILDERS = (
    f"{SESSIONS} a.usesysid IS NOT NULL AND a.pid {NE} pg_catalog.pg_backend_pid() AND a.pid {EQ} ANY ("
    f"SELECT l.pid FROM {LOCKS} AND l.relation {EQ} $1 AND l.mode {EQ} ANY ('{{ShareUpdateExclusiveLock,ShareLock,"
    "ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'::pg_catalog.text[]))"
)

_log = logging.getLogger("pgratchet")


async def runner(connection: Connection, row: HistoryRow, owner: str | None) -> str:
    """Return who is still at work on a version, empty where its runner has gone, or has stopped working."""
    async with as_login(connection, owner):
        return told(await own.fetch(connection, _RUNNER, row.backend_pid, row.backend_start, row.applied_by))


async def builders(connection: Connection, table: int) -> str:
    """Return who may be building an index of the table, given its oid, at this moment; empty where nobody is."""
    return told(await own.fetch(connection, _BUILDERS, table))


async def until_gone(who: Callable[[], Awaitable[str]], budget: Budget, what: str) -> bool:
    """Return when `who` names nobody; True: it did before. Polls, for the reason that the lock is polled for."""
    often, waited = Interval(TELL_EVERY), False
    while somebody := await who():
        waited = True
        reason = f"{what}: waiting for {somebody}"
        if often.is_over():
            _log.warning("%s", reason)
        await budget.poll(reason)
    return waited


def told(rows: Iterable[asyncpg.Record]) -> str:
    """Return who the sessions are and what they do; empty where there are none."""
    return "; ".join(map(_session, rows))


def _session(row: asyncpg.Record) -> str:
    query = " ".join((row["query"] or "").split())[:QUERY_CHARACTERS]
    name = row["application_name"] or "no application name"
    if row["state"] is None:
        # Others' activity is hidden from a role that is neither theirs nor a member of pg_read_all_stats.
        return f"pid {row['pid']} ({row['usename']}, {name}; GRANT pg_read_all_stats shows what it does)"
    return f"pid {row['pid']} ({row['usename']}, {name}, {row['state']} for {row['age']} s: {query})"
