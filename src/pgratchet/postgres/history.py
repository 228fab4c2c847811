"""The history table: its columns, what its rows say, and whose it is.

A row in state `applied` means applied and committed; no row means not.
"""

import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg

from pgratchet.core.errors import ForeignTableError, ServerError, UsageError
from pgratchet.core.model import AdoptedRow, AppliedMigration, ForeignRow, RecordState
from pgratchet.core.parsing import LONGEST_VERSION, canonical
from pgratchet.postgres import own, trust
from pgratchet.postgres.budget import Budget
from pgratchet.postgres.session import Connection
from pgratchet.postgres.sql import EQ, GT, Table, become, identifier, literal
from pgratchet.postgres.temporary import through_races


class Column(NamedTuple):
    """A column's type, and what else CREATE TABLE says of it."""

    type: str
    more: str = ""


_TEXT, _INT4, _MOMENT = "pg_catalog.text", "pg_catalog.int4", "pg_catalog.timestamptz"

COLUMNS = {
    "version": Column(_TEXT, "PRIMARY KEY"),
    "name": Column(_TEXT, "NOT NULL"),
    "kind": Column(_TEXT, "NOT NULL"),
    "checksum": Column(_TEXT, "NOT NULL"),
    "state": Column(_TEXT, "NOT NULL"),
    "statements_done": Column(_INT4, "NOT NULL DEFAULT 0"),
    "statements_total": Column(_INT4, "NOT NULL DEFAULT 0"),
    "cursor": Column(_TEXT),
    "started_at": Column(_MOMENT),
    "finished_at": Column(_MOMENT),
    "applied_by": Column(_TEXT),
    "backend_pid": Column(_INT4),
    "backend_start": Column(_MOMENT),
    "token": Column(_TEXT),
    "tool_version": Column(_TEXT),
    "compatible_with": Column(_TEXT),
    "reason": Column(_TEXT),
    "error": Column(_TEXT),
}

READ = AppliedMigration._fields
_VERSION, _STATE = READ.index("version"), READ.index("state")
_INTEGERS = [READ.index(name) for name in READ if COLUMNS[name].type == _INT4]
_MOMENTS = [READ.index(name) for name in READ if COLUMNS[name].type == _MOMENT]
_DIGITS = 10
"""More than an integer of the server has."""
_NAME, _KIND, _CHECKSUM = map(READ.index, ("name", "kind", "checksum"))
_STATES = {state.value: state for state in RecordState}

KNOWN_TABLES = (
    ("golang-migrate", {"version", "dirty"}),
    ("Ecto", {"version", "inserted_at"}),
    ("a home-made runner", {"version", "description", "filename", "executed_at", "success", "error_message"}),
    ("dbmate or Rails", {"version"}),
)
"""What other tools' tables of this name look like, by their columns, each set exact."""


_TABLES = ("r", "p")
_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "c": "a composite type",
    "i": "an index",
    "I": "an index",
}

_FOREIGN = "version, description, filename, executed_at::pg_catalog.timestamptz, success, error_message"
_ADOPTABLE = "only a home-made runner's table can be adopted"

_RELATION = f"""
SELECT c.relkind::pg_catalog.text AS kind, a.attname::pg_catalog.text AS name
FROM pg_catalog.pg_class c
LEFT JOIN (
    SELECT a.attrelid, a.attname FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid {EQ} a.atttypid
    WHERE a.attnum {GT} 0 AND NOT a.attisdropped
    AND t.typnamespace {EQ} 'pg_catalog'::pg_catalog.regnamespace::pg_catalog.oid
) a ON a.attrelid {EQ} c.oid
WHERE c.oid {EQ} pg_catalog.to_regclass($1)::pg_catalog.oid
"""
MOST_SHOWN = 40
"""Characters of a version that is none."""

_LEAVES = f"""
SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text
FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass($1)) p
JOIN pg_catalog.pg_class c ON c.oid {EQ} p.relid::pg_catalog.oid
JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
WHERE p.isleaf
"""

LEAST_PATIENCE = 5.0
"""Seconds that a read may take whatever is left of a budget."""


class HistoryBusyError(ServerError):
    """Somebody has locked the table, for longer than a reader waits."""


class History(NamedTuple):
    """One history table: what can be asked of it, and how it comes into being, as `owner`'s if one is given.

    `trusted` are roles that may own it, or what is attached to it, beside those that a run trusts anyway.
    """

    table: Table
    owner: str | None = None
    trusted: Sequence[str] = ()

    async def read(self, connection: Connection, patience: float | None = None) -> tuple[AppliedMigration, ...]:
        """Return all rows, in no order; empty where there is no table yet. Whoever owns the table runs no code by that.

        Raises ForeignTableError where it is another tool's, or no table; HistoryBusyError where it is locked for longer
        than the session's lock_timeout, or `patience` seconds; ServerError where it may not be read.
        """
        try:
            async with self._reading(connection):
                rows = await own.copied(connection, self.table, READ, patience)
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            return ()
        except asyncpg.WrongObjectTypeError:
            rows = await self._parts(connection, patience)
        try:
            return tuple(_applied(_values(row), self.table) for row in rows)
        except ValueError:
            # Not every DateStyle can be read back. Whom a run trusts puts nothing else in the table's place meanwhile.
            if await self.is_safe(connection):
                return await self._select(connection, "", (), patience)
        return tuple(_applied(_undated(row), self.table) for row in rows)

    async def _parts(self, connection: Connection, patience: float | None) -> list[list[str | None]]:
        """Return the rows of a partitioned table, which COPY takes from its partitions only.

        Raises ForeignTableError for what is none.
        """
        kind, columns = await self._relation(connection)
        if kind != "p":
            raise ForeignTableError(self._described(kind, columns))
        leaves = await own.fetch(connection, _LEAVES, self.table.quoted)
        rows = []
        for schema, name in leaves:
            async with self._reading(connection):
                rows += await own.copied(connection, Table(schema, name), READ, patience)
        return rows

    async def read_some(
        self, connection: Connection, versions: Sequence[str], patience: float | None = None
    ) -> tuple[AppliedMigration, ...]:
        """Return the rows of `versions`, as `read` does; to be called where the table `is_safe` only."""
        try:
            return await self._select(
                connection, f"WHERE version {EQ} ANY ($1::pg_catalog.text[])", (list(versions),), patience
            )
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            return ()

    async def _select(
        self, connection: Connection, where: str, arguments: Sequence[object], patience: float | None
    ) -> tuple[AppliedMigration, ...]:
        query = f"SELECT {', '.join(READ)} FROM {self.table.quoted} {where}"
        async with self._reading(connection):
            with self._dates():
                rows = await own.fetch(connection, query, *arguments, patience=patience)
        return tuple(_applied(list(row), self.table) for row in rows)

    @asynccontextmanager
    async def _reading(self, connection: Connection) -> AsyncIterator[None]:
        """Say what is wrong where the table cannot be read; an open transaction stays usable."""
        try:
            async with _undone(connection):
                yield
        except asyncpg.UndefinedColumnError:
            raise ForeignTableError(self._described(*await self._relation(connection))) from None
        except asyncpg.UndefinedFunctionError:
            alter = f"ALTER TABLE {self.table.quoted} ALTER COLUMN version TYPE text"
            raise ServerError(f"the versions in {self.table} are no text; {alter}") from None
        except (asyncpg.LockNotAvailableError, TimeoutError):
            raise HistoryBusyError(f"the table {self.table} is locked by another session") from None
        except asyncpg.InsufficientPrivilegeError as error:
            role = await own.fetchval(connection, "SELECT current_user")
            needs = f"USAGE on schema {self.table.schema} and SELECT on {self.table}"
            raise ServerError(f"{error}; the role {role} needs {needs}") from None

    async def read_patiently(
        self, connection: Connection, budget: Budget, versions: Sequence[str] | None = None
    ) -> tuple[AppliedMigration, ...]:
        """Return what `read` or `read_some` returns, as soon as nobody has locked the table.

        Raises BudgetExceededError.
        """
        while True:
            began = time.monotonic()
            # Through a pooler the session's lock_timeout is not ours. Reading alone is never too long for a budget.
            patience = None if budget.remaining is None else max(budget.remaining, LEAST_PATIENCE)
            try:
                if versions is None:
                    return await self.read(connection, patience)
                return await self.read_some(connection, versions, patience)
            except HistoryBusyError as error:
                budget.spend(time.monotonic() - began)
                await budget.poll(str(error))

    async def is_safe(self, connection: Connection) -> bool | None:
        """Say whether nobody could run code in whoever uses the table but those that a run trusts; None without one."""
        found = await trust.inspect(connection, self.table, self.owner, self.trusted)
        return None if found.kind is None else found.kind in _TABLES and not found.strange

    async def _refuse_unsafe(self, connection: Connection) -> trust.Inspection:
        """Return what there is to know of the table; raises ForeignTableError where it is none, or is not safe."""
        found = await trust.inspect(connection, self.table, self.owner, self.trusted)
        if found.kind not in (None, *_TABLES):
            raise ForeignTableError(self._described(*await self._relation(connection)))
        if found.strange:
            raise ForeignTableError(self._untrusted(found.strange))
        return found

    async def exists(self, connection: Connection) -> bool:
        """Say whether the table is there; raises ServerError where it is, and the role may not write to it.

        Raises ForeignTableError where it is no table, or where somebody else could run code in whoever writes to it.
        """
        found = await self._refuse_unsafe(connection)
        if found.missing:
            needs = f"it needs {', '.join(found.missing)} on {self.table}"
            raise ServerError(f"{self._role} may not write the history: {needs}")
        return found.kind is not None

    def _untrusted(self, strange: Sequence[tuple[str, str]]) -> str:
        owners = sorted({owner for _, owner in strange})
        return (
            f"the table {self.table} is not safe to use: "
            + "; ".join(f"{what} belongs to the role {owner}" for what, owner in strange)
            + ", whose code would run with the rights of this run. If that is meant to be, name the role as trusted: "
            + " ".join(f"--trusted-owner {owner}" for owner in owners)
            + f", or trusted_owners = {owners}. Otherwise find out who made it, and drop it or give it to another role"
        )

    async def ensure(self, connection: Connection, readers: Sequence[str], budget: Budget) -> None:
        """Have the table, and let the readers read it, whoever else is making it at the same time."""
        if await self.exists(connection):
            await self._grant(connection, readers, budget)
        else:
            await self._create(connection, readers, budget)
            # Somebody else may have made it in between, whom IF NOT EXISTS gives way to.
            await self.exists(connection)

    async def _create(self, connection: Connection, readers: Sequence[str], budget: Budget) -> None:
        """Make the table, and its schema where that is missing.

        In one transaction: readers that wait already see no table that they may not read.
        """
        columns = ", ".join(f"{name} {column.type} {column.more}" for name, column in COLUMNS.items())
        schema = identifier(self.table.schema)
        known = await own.fetchval(connection, "SELECT pg_catalog.to_regnamespace($1) IS NOT NULL", schema)
        try:
            await through_races(
                connection,
                self._as_owner
                + ("" if known else f"CREATE SCHEMA IF NOT EXISTS {schema};")
                + f"CREATE TABLE IF NOT EXISTS {self.table.quoted} ({columns});"
                + f"COMMENT ON TABLE {self.table.quoted} IS 'Which migrations are applied; written by pgratchet';"
                + "".join(map(self._grants, readers)),
                budget,
            )
        except asyncpg.InsufficientPrivilegeError as error:
            needs = f"CREATE on schema {self.table.schema}" if known else "CREATE on the database"
            raise ServerError(f"{error}; the role needs {needs} to make the table {self.table}") from None

    async def _grant(self, connection: Connection, readers: Sequence[str], budget: Budget) -> None:
        for role in readers:
            await through_races(connection, self._as_owner + self._grants(role), budget)

    async def is_granted(self, connection: Connection, readers: Sequence[str]) -> bool:
        """Say whether the readers may read the table, as far as there is one; raises ServerError for no role's name."""
        login = "" if self.owner is None else " UNION SELECT session_user::pg_catalog.text"
        granted: bool = await own.fetchval(
            connection,
            "SELECT COALESCE(pg_catalog.bool_and(pg_catalog.has_schema_privilege(r::pg_catalog.name, $1, 'USAGE') "
            "AND pg_catalog.has_table_privilege(r::pg_catalog.name, "
            "pg_catalog.to_regclass($2)::pg_catalog.oid, 'SELECT')), true) "
            f"FROM (SELECT pg_catalog.unnest($3::pg_catalog.text[]){login}) AS role (r) "
            "WHERE pg_catalog.to_regclass($2) IS NOT NULL",
            self.table.schema,
            self.table.quoted,
            readers,
        )
        return granted

    @property
    def _role(self) -> str:
        return f"the role {self.owner}" if self.owner else "the role"

    @property
    def _as_owner(self) -> str:
        return become(self.owner, local=True) if self.owner else ""

    def _grants(self, role: str) -> str:
        return (
            f"GRANT USAGE ON SCHEMA {identifier(self.table.schema)} TO {identifier(role)};"
            f"GRANT SELECT ON {self.table.quoted} TO {identifier(role)};"
        )

    async def read_foreign(self, connection: Connection) -> tuple[ForeignRow, ...]:
        """Return the rows that a home-made runner has written; raises ForeignTableError for any other table."""
        async with connection.transaction():
            try:
                # Nobody changes it between the look at what it is and the reading.
                await own.execute(connection, f"LOCK TABLE {self.table.quoted} IN ACCESS SHARE MODE")
            except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
                raise UsageError(f"there is no table {self.table} to adopt") from None
            except asyncpg.WrongObjectTypeError:
                raise ForeignTableError(f"{self.table} is no table; {_ADOPTABLE}") from None
            kind, columns = await self._relation(connection)
            if kind not in _TABLES or not columns.issuperset(ForeignRow._fields):
                raise ForeignTableError(f"{self._described(kind, columns)}; {_ADOPTABLE}")
            await self._refuse_unsafe(connection)
            with self._dates():
                rows = await own.fetch(connection, f"SELECT {_FOREIGN} FROM {self.table.quoted}")
        return tuple(ForeignRow._make(tuple(row)) for row in rows)

    async def adopt(self, connection: Connection, rows: Iterable[AdoptedRow], reason: str) -> None:
        """Record what another tool has applied, all of it or nothing; to be called under the lock."""
        await own.executemany(
            connection,
            f"INSERT INTO {self.table.quoted} (version, name, kind, checksum, state, started_at, finished_at, reason) "
            f"VALUES ($1, $2, $3, $4, '{RecordState.APPLIED}', $5, $5, $6)",
            [(*row, reason) for row in rows],
        )

    @contextmanager
    def _dates(self) -> Iterator[None]:
        """Raise ServerError for a date that is read inside the block, and that Python does not have."""
        try:
            yield
        except OverflowError:
            raise ServerError(
                f"the table {self.table} has a date before the year 1 or after 9999, which cannot be read; correct it"
            ) from None

    async def _relation(self, connection: Connection) -> tuple[str | None, set[str]]:
        """Return the kind of the relation as pg_class has it, and which columns of PostgreSQL's own types it has."""
        rows = await own.fetch(connection, _RELATION, self.table.quoted)
        return (rows[0]["kind"] if rows else None), {row["name"] for row in rows}

    def _described(self, kind: str | None, columns: set[str]) -> str:
        other = f"{self.table.schema}.pgratchet_migrations"
        keep = f'keep it, and give pgratchet a table of its own (table = "{other}")'
        if kind in _KINDS:
            return f"{self.table} is {_KINDS[kind]}, and no table of pgratchet; {keep}"
        whose = next((tool for tool, known in KNOWN_TABLES if known == columns), "something else")
        way_out = f"'pgratchet adopt' takes its history over into {other}" if whose == "a home-made runner" else keep
        return f"the table {self.table} was made by {whose}, not by pgratchet; {way_out}"


def _values(fields: list[str | None]) -> list[Any]:
    """Return a row of texts as a row of values; raises ValueError where a text is not as our own sessions have it."""
    values: list[Any] = fields
    for at in _INTEGERS:
        if (text := fields[at]) is not None:
            values[at] = int(text)
    for at in _MOMENTS:
        if (text := fields[at]) is not None:
            values[at] = datetime.fromisoformat(text)
    return values


def _undated(fields: list[Any]) -> list[Any]:
    """Return the same without what is no number or no date, as in a table of somebody whom the run does not trust."""
    values = list(fields)
    for at in _MOMENTS:
        values[at] = None
    for at in _INTEGERS:
        values[at] = int(fields[at]) if str(fields[at]).isdecimal() and len(str(fields[at])) < _DIGITS else 0
    return values


def _applied(values: list[Any], table: Table) -> AppliedMigration:
    version: object = values[_VERSION]
    if not isinstance(version, str) or canonical(version) != version:
        raise ServerError(_not_ours(version, table))
    state = _STATES.get(values[_STATE])
    if state is None:
        raise ServerError(
            f"version {values[_VERSION]} is in state '{values[_STATE]}', which this release of pgratchet does not know"
        )
    values[_STATE] = state
    if not (values[_NAME] and values[_KIND] and values[_CHECKSUM]):
        # In a table of somebody else's anything may be missing.
        for at in (_NAME, _KIND, _CHECKSUM):
            values[at] = values[at] or ""
    return AppliedMigration._make(values)


def _not_ours(version: object, table: Table) -> str:
    """Return what is wrong with a row whose version pgratchet has not written: it would count as another version."""
    text = str(version)
    row = f"the history has a row of version {text!a:.{MOST_SHOWN}}"
    where = f"WHERE {_condition(None if version is None else text)}"
    delete = f"DELETE FROM {table.quoted} {where}"
    if meant := _meant(text):
        return (
            f"{row}, which is '{meant}' as pgratchet writes it: it counts as another one; "
            f"UPDATE {table.quoted} SET version = '{meant}' {where}, or, where there is a row '{meant}' too, {delete}"
        )
    return (
        f"{row}, which is no version: versions are numbers, at most {LONGEST_VERSION} of the digits 0 to 9; find out "
        f"which one is meant, and UPDATE {table.quoted} SET version = '<its number>' {where}, or {delete}"
    )


def _meant(text: str) -> str | None:
    """Return the version that a person has meant by it, with a plus, blanks, zeros or the digits of another script."""
    digits = text.strip().removeprefix("+")
    return canonical(str(int(digits))) if digits.isdecimal() and len(digits) <= MOST_SHOWN else None


def _condition(text: str | None) -> str:
    """Return what is true of the row alone, in characters that can be copied from any terminal."""
    if text is None:
        return "version IS NULL"
    if len(text) > MOST_SHOWN:
        return f"length(version) = {len(text)}"
    if text.isascii() and text.isprintable():
        return f"version = {literal(text)}"
    return "version = E'" + "".join(f"\\U{ord(each):08x}" for each in text) + "'"


def _undone(connection: Connection) -> AbstractAsyncContextManager[object]:
    """Keep an open transaction usable behind an error."""
    return connection.transaction() if connection.is_in_transaction() else nullcontext()
