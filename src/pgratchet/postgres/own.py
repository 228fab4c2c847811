"""The one door through which our own SQL goes to the server.

A role that may create objects in a schema of the session's search_path can make functions, operators and types that
fit better than pg_catalog's, and would run as whoever migrates (CVE-2018-1058). search_path cannot be set against
that: a read is one query, a pooler drops the setting, and a trigger on the history must see the path that psql would
give it. So every statement of ours names everything in full:

- functions and aggregates `pg_catalog.f()`, types `::pg_catalog.text`, also in DDL and in the body of a DO;
- operators by the constants of `sql`;
- collations `COLLATE pg_catalog."C"`, catalogs `pg_catalog.pg_class`.

The grammar looks up operators by name, and nothing can qualify them, in `IN (...)`, `CASE x WHEN`, `BETWEEN`,
`IS [NOT] DISTINCT FROM`, `NULLIF`, `LIKE`, `SIMILAR TO`, `USING` and `NATURAL`: our SQL does not use them. A list is
`EQ ANY (...)`.

Where asyncpg cannot read the answer, what is raised is UnreadableError.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import asyncpg

from pgratchet.postgres.sql import Table
from pgratchet.postgres.unreadable import reading

_NULL = "\x01"
_ESCAPE = re.compile(r"\\(.)")
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
"""COPY's text format (PostgreSQL's manual, COPY, File Formats)."""

# In quotes: asyncpg's class is generic in its stubs only.
Connection: TypeAlias = "asyncpg.Connection[Any]"


async def fetch(
    connection: Connection, query: str, *arguments: object, patience: float | None = None
) -> list[asyncpg.Record]:
    """Return the rows of a query of ours; raises TimeoutError, and cancels it, after `patience` seconds."""
    with reading(connection):
        return await connection.fetch(query, *arguments, timeout=patience)


async def fetchrow(connection: Connection, query: str, *arguments: object) -> asyncpg.Record:
    """Return the only row of a query of ours that always has one."""
    with reading(connection):
        row: asyncpg.Record | None = await connection.fetchrow(query, *arguments)
    if row is None:
        raise AssertionError(f"no row: {query}")
    return row


async def fetchval(connection: Connection, query: str, *arguments: object) -> Any:
    """Return the first value of the first row of a query of ours, None where there is no row."""
    with reading(connection):
        return await connection.fetchval(query, *arguments)


async def execute(connection: Connection, text: str) -> None:
    """Run statements as one message of the simple protocol."""
    with reading(connection):
        await connection.execute(text)


async def copied(
    connection: Connection, table: Table, columns: Sequence[str], patience: float | None = None
) -> list[list[str | None]]:
    """Return all rows of a table as texts, by the server's COPY, which takes one round trip and runs nobody's code.

    A SELECT is planned, and the planner evaluates what whoever owns a table has written into its indexes. Of a view and
    the like COPY raises WrongObjectTypeError, of a partitioned table too; TimeoutError after `patience` seconds.
    """
    chunks: list[bytes] = []

    async def take(chunk: bytes) -> None:
        chunks.append(chunk)

    with reading(connection):
        await connection.copy_from_table(
            table.name,
            schema_name=table.schema,
            columns=columns,
            output=take,
            format="text",
            null=_NULL,
            encoding="utf8",
            timeout=patience,
        )
    lines = b"".join(chunks).decode().split("\n")
    return [_fields(line) for line in lines[:-1]]


def _fields(line: str) -> list[str | None]:
    fields = [None if field == _NULL else field for field in line.split("\t")]
    if "\\" in line:
        return [field and _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), field) for field in fields]
    return fields


async def executemany(connection: Connection, statement: str, arguments: Iterable[Sequence[object]]) -> None:
    """Run a statement of ours once for each of the arguments: all of them, or none."""
    with reading(connection):
        await connection.executemany(statement, arguments)
