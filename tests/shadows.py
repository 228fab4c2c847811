"""Objects that an ordinary role can plant beside pg_catalog, and a check whether a statement of ours would run them.

`Statements` notes what goes through the door of our own SQL (`pgratchet.postgres.link.own`); `plant` shadows what is
named in it; `run_by` has PostgreSQL itself say which of the planted things a statement refers to.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import asyncpg
import pytest

from pgratchet.core.sql.statements import scan
from pgratchet.postgres.ledger.columns import COLUMNS
from pgratchet.postgres.link import own
from pgratchet.postgres.wire.message import Message
from pgratchet.postgres.wire.sending import Wire
from tests.support import HISTORY, Connection, connected

PATHS = ("public", "public, pg_catalog")
"""A search_path with pg_catalog first, which is the default, and a search_path with pg_catalog last."""

TYPES = (
    *("text", "name", "char", "int2", "int4", "int8", "oid", "xid", "bool", "numeric", "timestamptz", "interval"),
    *("regclass", "regnamespace", "text[]", "name[]", "int4[]", "oid[]"),
)
"""The types that our statements compare, and related types: planted operators on them fit better than pg_catalog's."""

ARGUMENTS = ("text", "name", "bool", "oid", "int4", "int8", "regclass", "text[]")
FEWER_ARGUMENTS = ARGUMENTS[:5]
MOST_ARGUMENTS = 3

ALWAYS = {"=", "<>", "~~", "!~~", "<=", ">="}
"""The operators that IN, CASE, IS DISTINCT FROM, NULLIF, USING, NATURAL, BETWEEN and LIKE look up."""

RESULTS = {"||": "text", "-": "interval", "+": "timestamptz"}
"""The result types of the operators that do not return a boolean."""

WITHOUT_EXPRESSIONS = (
    *(
        "ALTER TABLE",
        "BEGIN",
        "CLOSE ALL",
        "COMMENT ON",
        "COMMIT",
        "COPY ",
        "CREATE DATABASE",
        "CREATE SCHEMA",
        "DEALLOCATE ALL",
    ),
    *("DISCARD", "DROP DATABASE", "DROP INDEX", "GRANT", "LOCK TABLE", "RELEASE SAVEPOINT", "RESET", "ROLLBACK"),
    *("SAVEPOINT", "SET", "SHOW", "UNLISTEN"),
)
"""The beginnings of the statements that look up no name that somebody could plant."""

_VALUE = re.compile(r"--[^\n]*|E?'(?:[^']|'')*'|\$pgratchet\$.*?\$pgratchet\$|\"[^\"]*\"", re.DOTALL)
_OPERATOR = re.compile(r"[-+*/<>=~!@#%^&|`?]+")
_FUNCTION = re.compile(r"\b([a-z_0-9]+)\s*\(")
_COPIED = re.compile(r"COPY \((.*)\) TO STDOUT \(.*?\)", re.DOTALL)
_TABLE = re.compile(r'"[^"]+"\."[^"]+"')
_NUMBER = re.compile(r"\b[0-9a-f]{32}\b|\d+")
_COMMENT = re.compile(r"\A(?:\s|/\*.*?\*/)+")


class Statements:
    """Statements of ours, each once whatever its values are, all rewritten to one history table."""

    def __init__(self, *texts: str) -> None:
        self._texts: dict[str, str] = {}
        self._noted: set[str] = set()
        for text in texts:
            self.note(text)

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts.values())

    def __len__(self) -> int:
        return len(self._texts)

    def note(self, text: str) -> None:
        # Most texts differ from one that was noted in their numbers only, and to scan one takes longer than to send it.
        if (known := _NUMBER.sub("0", text)) in self._noted:
            return
        self._noted.add(known)
        for statement in scan(text):
            sql = _COMMENT.sub("", _TABLE.sub('"public"."schema_migrations"', text[statement.start : statement.end]))
            self._texts.setdefault(_NUMBER.sub("0", _VALUE.sub("''", sql)), sql)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note the statements that this process sends inside the block, without the text of migrations."""
        # Wire.send() calls own.execute(), where the text of a migration cannot be told from ours any more.
        execute, copied = own.execute, own.copied
        inside: list[str] = []

        def noting(door: Callable[..., Any]) -> Callable[..., Any]:
            async def through(connection: object, text: str, *arguments: object, **more: object) -> Any:
                assert door is not copied or ";" in text, "a pooler may send a COPY that comes alone to a standby"
                if not inside or text not in inside:
                    self.note(text)
                return await door(connection, text, *arguments, **more)

            return through

        def sending(send: Callable[..., Any]) -> Callable[..., Any]:
            async def through(wire: Wire, message: Message, *more: object, **options: object) -> object:
                self.note(_ours(message))
                inside.append(message.text)
                try:
                    return await send(wire, message, *more, **options)
                finally:
                    inside.remove(message.text)

            return through

        with pytest.MonkeyPatch.context() as patch:
            for name in ("copied", "fetch", "executemany"):
                patch.setattr(own, name, noting(getattr(own, name)))
            patch.setattr(own, "execute", noting(execute))
            patch.setattr(Wire, "send", sending(Wire.send))
            yield


def _ours(message: Message) -> str:
    """Return a message without its migrations' text."""
    pieces, at = [], 0
    for part in message.parts:
        pieces.append(message.text[at : part.at])
        at = min(part.at + part.segment.end - part.segment.start, len(message.text))
    return "".join([*pieces, message.text[at:]])


async def plant(connection: Connection, statements: Iterable[str]) -> None:
    """Shadow, in public, every operator, function and type that the statements name, and the operators of `ALWAYS`.

    What is planted notes that it ran, in the sequence `sprung`, where no rollback undoes it, and raises.
    """
    code = [_VALUE.sub("''", statement) for statement in statements]
    planted = ["CREATE SEQUENCE public.sprung", "GRANT ALL ON SEQUENCE public.sprung TO PUBLIC"]
    planted += await _operators(connection, ALWAYS | {name for text in code for name in _OPERATOR.findall(text)})
    planted += await _functions(connection, {name for text in code for name in _FUNCTION.findall(text)})
    planted += [f"CREATE DOMAIN public.{_named(name)} AS {_type(name)}" for name in TYPES if "[" not in name]
    for at in range(0, len(planted), 200):
        await connection.execute(";".join(planted[at : at + 200]))


async def _operators(connection: Connection, names: Iterable[str]) -> list[str]:
    rows = await connection.fetch("SELECT DISTINCT oprname::text FROM pg_operator WHERE oprname = ANY ($1)", names)
    operators = {row[0]: RESULTS.get(row[0], "bool") for row in rows}
    planted = []
    for pair in product(TYPES, TYPES):
        left, right = map(_type, pair)
        planted += [_function(f"shadow_{result}", pair, _type(result)) for result in set(operators.values())]
        planted += [
            f"CREATE OPERATOR public.{name} (FUNCTION = public.shadow_{result}, LEFTARG = {left}, RIGHTARG = {right})"
            for name, result in operators.items()
        ]
    return planted


async def _functions(connection: Connection, names: Iterable[str]) -> list[str]:
    rows = await connection.fetch(
        "SELECT proname::text AS name, pronargs::int AS count, provariadic <> 0 AS variadic, proretset AS many, "
        "max(format('%I.%I', nspname, typname)) AS result FROM pg_proc JOIN pg_type t ON t.oid = prorettype "
        "JOIN pg_namespace n ON n.oid = typnamespace WHERE pronamespace = 'pg_catalog'::regnamespace "
        "AND typtype <> 'p' AND proname = ANY ($1) GROUP BY 1, 2, 3, 4",
        names,
    )
    signatures = {
        (row["name"], arguments): f"{'SETOF ' if row['many'] else ''}{row['result']}"
        for row in rows
        for count in (range(row["count"], MOST_ARGUMENTS + 1) if row["variadic"] else [row["count"]])
        if count <= MOST_ARGUMENTS
        for arguments in product(FEWER_ARGUMENTS if count == MOST_ARGUMENTS else ARGUMENTS, repeat=count)
    }
    return [_function(name, arguments, result) for (name, arguments), result in signatures.items()]


def _function(name: str, arguments: Iterable[str], result: str) -> str:
    return (
        f"CREATE FUNCTION public.{name}({', '.join(map(_type, arguments))}) RETURNS {result} LANGUAGE plpgsql AS "
        f"$$BEGIN PERFORM pg_catalog.nextval('public.sprung'); RAISE EXCEPTION 'planted: {name}'; END$$"
    )


def _type(name: str) -> str:
    return f"pg_catalog.{_named(name)}"


def _named(name: str) -> str:
    return '"char"' if name == "char" else name


async def has_sprung(connection: Connection) -> bool:
    """Return True if a planted object has run."""
    return bool(await connection.fetchval("SELECT is_called FROM public.sprung"))


async def make_history(connection: Connection) -> None:
    """Make the table that the statements refer to: a history that also has the columns of a home-made runner."""
    columns = [f"{name} {column.type} {column.more}" for name, column in COLUMNS.items()]
    foreign = "description text, filename text, executed_at timestamptz, success bool, error_message text"
    await connection.execute(f"CREATE TABLE {HISTORY} ({', '.join(columns)}, {foreign})")


async def run_by(connection: Connection, statement: str) -> list[str]:
    """Return the planted objects that a statement refers to under the session's search_path; it does not run.

    PostgreSQL says it, which notes for a function with a statement as its body what that refers to.
    """
    if copy := _COPIED.fullmatch(statement):
        statement = copy[1]
    if statement.startswith(WITHOUT_EXPRESSIONS):
        return []
    transaction = connection.transaction()
    await transaction.start()
    try:
        if statement.startswith("DO "):
            await connection.execute("PREPARE planted AS VALUES (1)")
            await connection.execute(statement)
            return ["what a DO block names"] if await has_sprung(connection) else []
        if statement.startswith("CREATE TABLE "):
            await connection.execute(f"DROP TABLE {HISTORY}; {statement}")
            return await _referred_to(connection, "pg_catalog.pg_class", f"'{HISTORY}'")
        prepared = await connection.prepare(statement)
        parameters = ", ".join(f"{each.schema}.{each.name}" for each in prepared.get_parameters())
        await connection.execute(
            f"CREATE FUNCTION public.replayed({parameters}) RETURNS pg_catalog.void LANGUAGE sql "
            f"BEGIN ATOMIC {statement}; END"
        )
        return await _referred_to(connection, "pg_catalog.pg_proc", f"'public.replayed({parameters})'")
    except asyncpg.PostgresError as error:
        return [f"{type(error).__name__}: {error}"]
    finally:
        await transaction.rollback()
        await connection.execute("DEALLOCATE ALL")


async def refuse_planted(dsn: str, statements: Statements) -> None:
    """Fail if a statement refers to an object that could be planted in an empty database."""
    async with connected(dsn) as connection:
        await make_history(connection)
        await plant(connection, statements)
        for path in PATHS:
            await connection.execute(f"SET search_path TO {path}")
            found = {statement: traps for statement in statements if (traps := await run_by(connection, statement))}
            if found:
                pytest.fail(f"with search_path = {path}: {found}", pytrace=False)


async def _referred_to(connection: Connection, catalog: str, name: str) -> list[str]:
    await connection.execute("SET LOCAL search_path TO pg_catalog")
    kind = "regprocedure" if catalog.endswith("proc") else "regclass"
    classes = "'{pg_proc,pg_operator,pg_type}'::regclass[]"
    rows = await connection.fetch(
        "SELECT pg_describe_object(refclassid, refobjid, 0) FROM pg_depend "
        f"WHERE classid = '{catalog}'::regclass AND objid = {name}::{kind} AND refclassid = ANY ({classes})"
    )
    return [row[0] for row in rows]
