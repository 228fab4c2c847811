"""The one door through which our own SQL goes to the server, and the errors that come back through it.

A role that may create objects in a schema of the session's search_path can make functions, operators and types that
fit better than pg_catalog's, and would run with the rights of the migrating role (CVE-2018-1058). To set search_path is
no cure: a read is one query, a pooler drops the parameter, and a trigger on the history must see the path that it would
see in psql. So every statement of ours names everything in full:

- functions and aggregates `pg_catalog.f()`, types `::pg_catalog.text`, also in DDL and in the body of a DO;
- operators by the constants of `sql`;
- collations `COLLATE pg_catalog."C"`, catalogs `pg_catalog.pg_class`.

The grammar looks up operators by name, and nothing can qualify them, in `IN (...)`, `CASE x WHEN`, `BETWEEN`,
`IS [NOT] DISTINCT FROM`, `NULLIF`, `LIKE`, `SIMILAR TO`, `USING` and `NATURAL`: our SQL does not use them. A list is
`EQ ANY (...)`.

A pooler that splits reads from writes must send to the primary what decides, because a standby may lag. pgpool-II does
so with what reads the catalogs, and with a message of several statements: a COPY is never sent alone.

An answer that asyncpg cannot read raises UnreadableError. Errors that our SQL raises on purpose are those of `Guards`.
"""

import asyncio
import gc
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, TypeAlias
from uuid import uuid4

import asyncpg

from pgratchet.postgres.link.sql import literal

_NEXT, _QUOTE = "\x1f", "\x01"
AS_CSV = f"TO STDOUT (FORMAT csv, HEADER true, DELIMITER '{_NEXT}', QUOTE '{_QUOTE}', ENCODING 'UTF8')"
_HIDE = str.maketrans({"\n": "\0n", _NEXT: "\0d"})
_HIDDEN = re.compile("\0(.)")
_SHOWN = {"n": "\n", "d": _NEXT, "q": _QUOTE, "e": ""}
"""Stand-ins for characters that have another meaning in CSV: no text of the server's has a NUL."""

# Not "asyncpg.Connection[Any]": a module that does not import asyncpg could not resolve its own annotations.
Connection: TypeAlias = asyncpg.Connection

HINT = "asyncpg reads nothing but UTF-8: leave client_encoding as it is, and look for other encodings in the database"


class UnreadableError(asyncpg.PostgresError):
    """An answer of the server's could not be read: the statement may have taken effect, or not.

    The session can be used: asyncpg has skipped everything up to the end of the answer.
    """

    SENTENCE = "the server's answer cannot be read"

    def __init__(self, cause: Exception) -> None:
        answer = cause.object.decode(errors="backslashreplace") if isinstance(cause, UnicodeDecodeError) else cause
        super().__init__(f"{self.SENTENCE}: {answer}")
        self.hint = HINT if isinstance(cause, UnicodeError | LookupError) else None


@contextmanager
def reading(connection: Connection) -> Iterator[None]:
    """Raise UnreadableError for an answer that asyncpg cannot read; an error that ends the session stays as it is."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError):
        raise
    except (ValueError, LookupError, AssertionError) as error:
        if connection.is_closed():
            raise
        raise UnreadableError(error) from error


async def fetch(
    connection: Connection, query: str, *arguments: object, patience: float | None = None
) -> list[asyncpg.Record]:
    """Return the rows of a query of ours, in two round trips; after `patience` seconds cancel it: TimeoutError."""
    with reading(connection):
        return await connection.fetch(query, *arguments, timeout=patience)


async def ask(connection: Connection, query: str, before: str = "") -> dict[str, Any]:
    """Return the only row of a query of ours, by name, as JSON has its values, in one round trip.

    The statements `before` run in the same message, and in the same transaction.
    """
    as_json = f"SELECT pg_catalog.row_to_json(answer.*)::pg_catalog.text AS answer FROM ({query}) AS answer"
    # Without a header the row is the only line: none is lost where client_min_messages asks for debugging.
    as_line = AS_CSV.replace("HEADER true", "HEADER false")
    (line,) = await copied(connection, f"{before or 'SELECT;'}COPY ({as_json}) {as_line}", headed=False)
    row: dict[str, Any] = json.loads(line)
    return row


async def execute(connection: Connection, text: str) -> None:
    """Run statements as one message of the simple protocol."""
    with reading(connection):
        await connection.execute(text)


async def copied(
    connection: Connection, statements: str, patience: float | None = None, *, headed: bool = True
) -> dict[str, list[str | None]]:
    """Run statements as one message, the last of which is a COPY `AS_CSV`, and return its columns, by name, as texts.

    Where it is not `headed`, the first row stands in the place of the names. Raises TimeoutError after `patience`
    seconds.
    """
    columns: dict[str, list[str | None]] = {}
    with reading(connection):
        try:
            # asyncpg's public methods send a COPY alone.
            status: str = await connection._copy_out(statements, partial(_cut, columns), patience)  # type: ignore[attr-defined]  # noqa: SLF001 - as above
        except asyncpg.InternalClientError:
            # The server has ended the session between two requests. Where it sends anything but a COPY, asyncpg closes
            # the connection itself over that, and leaves no future behind: nobody would take this one's exception.
            for left in filter(asyncio.isfuture, gc.get_referents(getattr(connection, "_protocol", None))):
                left.add_done_callback(asyncio.Future.exception)
            connection.terminate()
            raise
        if status != f"COPY {len(next(iter(columns.values()), ())) + (not headed)}":
            # As it does with one of two lines if the server sends anything between them.
            raise ValueError("asyncpg has lost rows of it; leave client_min_messages as it is")
    return columns


async def _cut(columns: dict[str, list[str | None]], rows: bytes) -> None:
    """Add some rows of a COPY `AS_CSV` to its columns, by name, while the server sends more; the first has the names.

    PostgreSQL's protocol never divides a row. Not by the module csv: its longest field is a setting of the whole
    process, and it takes "" for NULL.
    """
    text = rows.decode()
    if _QUOTE in text:
        text = _unquoted(text)
    if not columns:
        header, _, text = text.partition("\n")
        columns.update((_shown(name), []) for name in header.split(_NEXT))
    # One cut through all rows at once is three times as fast as one for each row.
    fields = text.replace("\n", _NEXT).split(_NEXT)
    for at, column in enumerate(columns.values()):
        part: list[Any] = fields[at : -1 : len(columns)]
        if "\0" in text:
            part = [_shown(field) if field else None for field in part]
        # Most columns have a value in each row: to find that out is faster than to copy them.
        elif "" in part:
            part = [field or None for field in part]
        column.extend(part)


def _unquoted(text: str) -> str:
    """Return a text without quotes; the characters that they protect are replaced by their stand-ins."""
    parts = text.split(_QUOTE)
    parts[1::2] = [part.translate(_HIDE) or "\0e" for part in parts[1::2]]
    # Nothing between two quotes: they stand for one quote inside others.
    parts[2:-1:2] = [part or "\0q" for part in parts[2:-1:2]]
    return "".join(parts)


def _shown(field: str) -> str:
    return _HIDDEN.sub(lambda found: _SHOWN[found[1]], field) if "\0" in field else field


async def executemany(connection: Connection, statement: str, arguments: Iterable[Sequence[object]]) -> None:
    """Run a statement of ours once for each of the arguments: all of them, or none."""
    with reading(connection):
        await connection.executemany(statement, arguments)


@asynccontextmanager
async def undone(connection: Connection) -> AsyncIterator[None]:
    """Roll the block back if it raises: an open transaction stays usable, as it was before.

    Outside a transaction the block must be one message, which the server rolls back itself.
    """
    if not connection.is_in_transaction():
        yield
        return
    # Not by asyncpg's transaction(), which keeps the savepoint behind its rollback: rows that are written later would
    # have that subtransaction as their xmin, and the record of a step would refuse them.
    await execute(connection, "SAVEPOINT pgratchet")
    try:
        yield
    except Exception:
        if not connection.is_closed():
            await execute(connection, "ROLLBACK TO SAVEPOINT pgratchet;RELEASE SAVEPOINT pgratchet")
        raise
    await execute(connection, "RELEASE SAVEPOINT pgratchet")


def unsendable(error: BaseException) -> BaseException | None:
    """Return the error of code that gave asyncpg text which UTF-8 cannot hold, which closes the session.

    None where the session was lost in any other way.
    """
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    if not isinstance(chain[-1], UnicodeError):
        return None
    # transaction() replaces an error that passes through it by an InterfaceError.
    return next(each for each in chain if not isinstance(each, asyncpg.InterfaceError))


INVALID_TEXT_REPRESENTATION = "22P02"

_CLOSING_QUOTES = "\"'»«“”„』」 \N{NO-BREAK SPACE}"
"""Characters that follow a value in the server's translations of a message that ends with it."""


class Guard(StrEnum):
    """The reasons why a statement of our own raises."""

    BUSY = "another runner is at work"
    """It is not a step's turn now."""
    MOVED = "another runner has been at work"
    """It is not a step's turn any more."""
    LOCK = "the lock is not held any more"
    ROW = "the history row is not as this run has written it"
    TABLE = "the history table, or its triggers, have changed since this run inspected them"
    SESSION = "the defaults of new sessions have changed since this session began"
    """The session, and not the step, is at its end."""
    OWNER = "the history table belongs to a role that this run may not trust"
    COLUMNS = "the table has not the columns of a history"
    REPLICATED = "another database writes the history"
    POLICY = "row level security may hide rows of the history"


@dataclass(frozen=True, slots=True)
class Guards:
    """The guards of one run, or of one read.

    `sign` holds a random token that is never stored: an error is our own statement's only if its text ends with that
    and the guard. Any other text can come from a migration, or from a value in a row, which the server quotes.
    """

    sign: str = field(default_factory=lambda: f"pgratchet {uuid4().hex}")

    def unless(self, conditions: dict[Guard, str], source: str = "") -> str:
        """Return SQL that raises, without plpgsql, the first guard whose condition is not true.

        `source` is a FROM clause for the conditions. Not all of them may be constant: the planner would evaluate the
        cast of a text that is no number.
        """
        fence = "'1'"
        for guard, condition in reversed(conditions.items()):
            fence = f"CASE WHEN {condition} THEN {fence} ELSE {literal(f'{self.sign}: {guard}')} END"
        return f"SELECT CAST({fence} AS pg_catalog.int4){source and ' '}{source};"

    def raised(self, error: BaseException) -> Guard | None:
        """Return the guard that an error is; None for any other error."""
        if getattr(error, "sqlstate", None) != INVALID_TEXT_REPRESENTATION:
            return None
        said = str(error.args[0]).rstrip(_CLOSING_QUOTES)
        return next((guard for guard in Guard if said.endswith(f"{self.sign}: {guard}")), None)
