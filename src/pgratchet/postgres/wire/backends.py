"""Other sessions at work: finding them, describing them in one line, waiting for their end."""

import re
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime

import asyncpg

from pgratchet.core.model import HistoryRow
from pgratchet.core.plan.halfway import HALF_DONE
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.ledger.lock import HOLDERS
from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.roles import as_login
from pgratchet.postgres.link.session import AT_WORK, Connection
from pgratchet.postgres.link.sql import CONCAT, EQ, GT, MINUS, NE

SESSIONS = (
    "SELECT a.pid, a.usename, a.application_name, a.state, "
    f"EXTRACT(epoch FROM pg_catalog.clock_timestamp() {MINUS} COALESCE(a.xact_start, a.backend_start))"
    "::pg_catalog.int4 AS age, "
    "a.query FROM pg_catalog.pg_stat_activity a WHERE "
)
"""The columns that `told` describes; a condition follows."""

QUERY_CHARACTERS = 100
"""The part of a session's query that is shown."""

# A runner is idle between two statements, too, but not for long, and its session has the name of its step. A session
# that is idle for longer, without the lock, may be one that a pooler has given to another client after the runner was
# gone.
# Without pg_read_all_stats the backend_start of other roles' sessions is hidden: then the pid and the login role are
# the best match.
_RUNNER = (
    f"{SESSIONS} a.pid {EQ} $1 AND a.pid {NE} pg_catalog.pg_backend_pid() "
    f"AND a.datname {EQ} pg_catalog.current_database() "
    f"AND COALESCE(a.backend_start {EQ} $2::pg_catalog.timestamptz, "
    f"pg_catalog.starts_with($3, a.usename::pg_catalog.text {CONCAT} '@'), true) "
    f"AND (COALESCE(a.state {NE} 'idle', true) "
    f"OR a.state_change {GT} (pg_catalog.clock_timestamp() {MINUS} '1 second'::pg_catalog.interval) "
    f"AND pg_catalog.starts_with(a.application_name, '{AT_WORK}') "
    f"OR a.pid {EQ} ANY (SELECT l.pid FROM {HOLDERS.replace('$1', '$4')}))"
)

LOCKS = (
    f"pg_catalog.pg_locks l WHERE l.locktype {EQ} 'relation' AND l.granted AND l.database {EQ} "
    f"(SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname {EQ} pg_catalog.current_database())"
)
"""The locks on tables of this database: a table of another one may have the same oid."""

# A session that builds or drops an index concurrently holds such a lock from its first step to its last. So does
# autovacuum, which has no user, and gives way.
_BUILDERS = (
    f"{SESSIONS} a.usesysid IS NOT NULL AND a.pid {NE} pg_catalog.pg_backend_pid() AND a.pid {EQ} ANY ("
    f"SELECT l.pid FROM {LOCKS} AND l.relation {EQ} $1 AND l.mode {EQ} ANY ('{{ShareUpdateExclusiveLock,ShareLock,"
    "ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'::pg_catalog.text[]))"
)

_AGE = re.compile(r"(?<= for )\d+(?= s: )")


async def runner(connection: Connection, row: HistoryRow, history: History) -> str:
    """Return the session that is at work on a half-done version, described.

    Empty if its runner is gone, or is idle and does not hold the lock.
    """
    facts = row.backend_pid, row.backend_start, row.applied_by, history.table.lock_key
    async with as_login(connection, history.owner):
        return told(await own.fetch(connection, _RUNNER, *facts))


async def at_work(connection: Connection, rows: Iterable[HistoryRow], history: History) -> frozenset[str]:
    """Return the versions whose rows are half done and whose runners are at work; asks only about half-done rows."""
    half_done = [row for row in rows if row.state in HALF_DONE]
    return frozenset([row.version for row in half_done if await runner(connection, row, history)])


async def builders(connection: Connection, table: int) -> str:
    """Return the sessions that may be building an index of the table with that oid, described; empty if none is."""
    return told(await own.fetch(connection, _BUILDERS, table))


async def until_gone(who: Callable[[], Awaitable[str]], budget: Budget, what: str) -> bool:
    """Return once `who` names no session any more; True: it did before.

    Polls, because a session that waits in a blocked statement keeps a snapshot (see `RunnerLock.try_acquire`).
    """
    wait: Wait | None = None
    while somebody := await who():
        wait = wait or Wait()
        if wait.is_new(somebody):
            budget.tell(f"{what}: waiting since {wait.since:%H:%M:%SZ} for {somebody}")
        await budget.poll(f"{what}: waiting for {somebody}")
    return wait is not None


class Wait:
    """A wait for other sessions, `since` a time: each description of them is told once, whatever ages are in it."""

    def __init__(self) -> None:
        self.since = datetime.now(UTC)
        self._told = set[str]()

    def is_new(self, description: str) -> bool:
        """Return whether a description was not told yet; from now on it was."""
        known = len(self._told)
        self._told.add(_AGE.sub("", description))
        return len(self._told) > known


def told(rows: Iterable[asyncpg.Record]) -> str:
    """Return a description of the sessions and of their work; empty if there are none."""
    return "; ".join(map(_session, rows))


def _session(row: asyncpg.Record) -> str:
    query = " ".join((row["query"] or "").split())[:QUERY_CHARACTERS]
    name = row["application_name"] or "no application name"
    if row["state"] is None:
        # Hidden from a role that is neither the session's own nor a member of pg_read_all_stats.
        return f"pid {row['pid']} ({row['usename']}, {name}; GRANT pg_read_all_stats shows what it does)"
    return f"pid {row['pid']} ({row['usename']}, {name}, {row['state']} for {row['age']} s: {query})"
