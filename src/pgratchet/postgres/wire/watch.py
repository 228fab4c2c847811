"""Who blocks: looked up from a second session, in autocommit, only to be told."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

import anyio
import asyncpg

from pgratchet.postgres.ledger.lock import HOLDERS, halves
from pgratchet.postgres.link import own
from pgratchet.postgres.link.session import Connect, Connection, describe, open_session
from pgratchet.postgres.link.sql import EQ, MINUS

T = TypeVar("T")

_log = logging.getLogger("pgratchet")

SESSIONS = (
    "SELECT a.pid, a.usename, a.application_name, a.state, "
    f"EXTRACT(epoch FROM pg_catalog.clock_timestamp() {MINUS} COALESCE(a.xact_start, a.backend_start))"
    "::pg_catalog.int4 AS age, "
    "a.query FROM pg_catalog.pg_stat_activity a WHERE "
)
"""Asks for what `told` tells."""

_BLOCKERS = (
    f"{SESSIONS} a.pid {EQ} ANY (SELECT pg_catalog.unnest(pg_catalog.pg_blocking_pids(w.pid)) FROM ("
    "SELECT $3::pg_catalog.int4 AS pid WHERE $3 IS NOT NULL "
    f"UNION ALL SELECT l.pid FROM {HOLDERS} AND $3 IS NULL) AS w)"
)

LONGEST_CONNECTING = 1.0
"""Seconds that a step which is done may have to wait for the second session, that looks who blocks, to connect."""

QUERY_CHARACTERS = 100
"""How much of a blocker's query is told."""


class Blockers:
    """Who was last `seen` to block the runner, empty where nobody was; looked for `every` so many seconds.

    The runner is the server process `pid`; where each transaction may be another one's, as behind a pooler, it is
    who holds the lock `key`.
    """

    def __init__(self, connect: Connect, key: int, pid: int | None) -> None:
        self.seen = ""
        self.every = 1.0
        self.connect = connect
        self._worker = *halves(key), pid

    async def look_out(self) -> None:
        """Look until cancelled. What goes wrong here is logged, and disturbs nobody."""
        await anyio.sleep(self.every)
        try:
            async with open_session(partial(_unhurried, self.connect)) as connection:
                try:
                    while True:
                        await self._look(connection)
                        await anyio.sleep(self.every)
                finally:
                    # Nothing of it is worth a farewell, for which a run that is cancelled would wait as well.
                    connection.terminate()
        except Exception as error:  # noqa: BLE001 - a factory of connections may raise anything
            _log.debug("cannot see who blocks: %s", describe(error))

    async def _look(self, connection: Connection) -> None:
        rows = await own.fetch(connection, _BLOCKERS, *self._worker)
        if seen := told(rows):
            self.seen = seen
            _log.warning("waiting for a lock held by %s", seen)


async def _unhurried(connect: Connect) -> Connection:
    """Return a connection, also where the caller is cancelled meanwhile, after `LONGEST_CONNECTING` at the latest.

    A cancelled asyncpg.connect() may leave a future behind, of which asyncio then logs that nobody has looked at it.
    """
    with anyio.fail_after(LONGEST_CONNECTING, shield=True):
        return await connect()


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


async def beside(watching: Callable[[], Coroutine[Any, Any, None]], work: Callable[[], Awaitable[T]]) -> T:
    """Return what `work` returns, or raise what it raises, with `watching` beside it for as long as it runs."""
    failure: BaseException | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(watching)
        try:
            result = await work()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - a task group would wrap it; it is raised again below
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result
