"""Indexes that are built concurrently: how they are found, waited for, and dropped if they are invalid."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from pgratchet.postgres.link import own
from pgratchet.postgres.link.session import Connection, refused
from pgratchet.postgres.link.sql import CONCAT, EQ, MATCHES, NE, literal
from pgratchet.postgres.wire import backends
from pgratchet.postgres.wire.message import Message
from pgratchet.postgres.wire.sending import Wire

_log = logging.getLogger("pgratchet")

# Not the indexes of partitioned tables (relkind I): they are invalid until each partition has its own. Names mean the
# same as in the script's own session.
_OF_TABLE = f"""
SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname) AS name, i.indrelid AS table, i.indisvalid AS valid,
       COALESCE(c.oid {EQ} pg_catalog.to_regclass(
           pg_catalog.quote_ident(n.nspname::pg_catalog.text) {CONCAT} '.' {CONCAT} $2::pg_catalog.text
       )::pg_catalog.oid, false) AS wanted
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid {EQ} i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
WHERE i.indrelid {EQ} pg_catalog.to_regclass($1)::pg_catalog.oid AND c.relkind {EQ} 'i'
ORDER BY c.oid
"""

_LEFTOVERS = f"""
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) AS name,
       i.indrelid::pg_catalog.regclass::pg_catalog.text AS table
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid {EQ} i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
WHERE NOT i.indisvalid AND c.relkind {EQ} 'i' AND c.relname {MATCHES} '_cc(new|old)[0-9]*$' AND NOT EXISTS (
    SELECT FROM {backends.LOCKS} AND l.relation {EQ} i.indrelid AND l.pid {NE} pg_catalog.pg_backend_pid()
    AND l.mode {EQ} 'ShareUpdateExclusiveLock')
ORDER BY 1
"""

_SUSPEND = """
SELECT s.name, pg_catalog.current_setting(s.name) AS value, pg_catalog.set_config(s.name, '0', false) AS now
FROM pg_catalog.unnest($1::pg_catalog.text[]) AS s(name)
"""


class Index(NamedTuple):
    """One index of a table; a `wanted` one has the name that was asked for."""

    oid: int
    name: str
    table: int
    valid: bool
    wanted: bool


async def of_table(connection: Connection, table: str, name: str | None = None) -> list[Index]:
    """Return the indexes of a table, with names as a script writes them; empty if there is no such table."""
    return [Index(**dict(row)) for row in await own.fetch(connection, _OF_TABLE, table, name)]


async def settled(wire: Wire, table: str, name: str | None, ours: Callable[[Index], bool]) -> list[Index]:
    """Return the indexes of a table that are `ours`, once no session is at work on an invalid one."""
    look = partial(of_table, wire.connection, table, name)
    while True:
        found = list(filter(ours, await look()))
        invalid = [index for index in found if not index.valid]
        if not invalid:
            return found
        who = partial(backends.builders, wire.connection, invalid[0].table)
        if await backends.until_gone(who, wire.budget, f"{invalid[0].name} is not valid"):
            continue
        # It may have become valid before we asked who is at work. If it is still invalid now, its build has failed.
        if found == list(filter(ours, await look())):
            return found


async def drop_invalid(wire: Wire, indexes: Sequence[Index]) -> list[str]:
    """Drop the invalid ones of the indexes, without a time limit, and return their names."""
    invalid = [index.name for index in indexes if not index.valid]
    if invalid:
        was = await suspend(wire.connection, "lock_timeout", "statement_timeout")
        for name in invalid:
            _log.warning("dropping the invalid index %s", name)
            await _drop(wire, name)
        await restore(wire.connection, was)
    return invalid


async def _drop(wire: Wire, name: str) -> None:
    drop = Message(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    await wire.retried(f"DROP INDEX CONCURRENTLY {name}", lambda: wire.send(drop))


async def leftovers(connection: Connection) -> list[str]:
    """Return a sentence for each invalid index that REINDEX CONCURRENTLY has left in the database: how to remove it."""
    return [
        f"{row['name']} on {row['table']} is an invalid leftover of REINDEX CONCURRENTLY; "
        f"remove it with DROP INDEX CONCURRENTLY {row['name']}"
        for row in await own.fetch(connection, _LEFTOVERS)
    ]


async def suspend(connection: Connection, *timeouts: str) -> dict[str, str]:
    """Lift time limits of the session, and return their values, by name."""
    return {
        row["name"]: row["value"]
        for row in await own.fetch(connection, _SUSPEND, sorted({*timeouts} - refused(connection)))
    }


async def restore(connection: Connection, was: dict[str, str]) -> None:
    """Set lifted time limits to their values again."""
    for name, value in was.items():
        await own.execute(connection, f"SET {name} = {literal(value)}")
