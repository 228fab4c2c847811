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

from pgratchet.postgres.link.unreadable import reading

_NULL = "\x01"
AS_TEXT = f"TO STDOUT (FORMAT text, NULL '{_NULL}', ENCODING 'UTF8')"
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


async def copied(connection: Connection, statements: str, patience: float | None = None) -> list[list[str | None]]:
    """Run statements as one message, the last of which is a COPY `AS_TEXT`, and return the columns of that as texts.

    No column where there is no row. Raises TimeoutError after `patience` seconds.
    """
    chunks: list[bytes] = []

    async def take(chunk: bytes) -> None:
        chunks.append(chunk)

    with reading(connection):
        # asyncpg's public methods send a COPY alone.
        await connection._copy_out(statements, take, patience)  # type: ignore[attr-defined]  # noqa: SLF001 - as above
    text = b"".join(chunks).decode()
    columns = zip(*[line.split("\t") for line in text.split("\n")[:-1]], strict=True)
    # Most columns have a value in each row, which is found out faster than it is copied.
    values = [
        [None if field == _NULL else field for field in column] if _NULL in column else list(column)
        for column in columns
    ]
    if "\\" in text:
        return [[field and _unescaped(field) for field in column] for column in values]
    return values


def _unescaped(field: str) -> str:
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), field)


async def executemany(connection: Connection, statement: str, arguments: Iterable[Sequence[object]]) -> None:
    """Run a statement of ours once for each of the arguments: all of them, or none."""
    with reading(connection):
        await connection.executemany(statement, arguments)
