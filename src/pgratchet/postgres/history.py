"""The history table: its columns, what its rows say, and whose it is.

A row in state `applied` means applied and committed; no row means not.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import NamedTuple

import asyncpg

from pgratchet.core.errors import ForeignTableError, ServerError, UsageError
from pgratchet.core.model import AdoptedRow, AppliedMigration, ForeignRow, RecordState
from pgratchet.postgres.budget import Budget
from pgratchet.postgres.session import Connection
from pgratchet.postgres.sql import Table, become, identifier
from pgratchet.postgres.temporary import through_races

COLUMNS = {
    "version": "text PRIMARY KEY",
    "name": "text NOT NULL",
    "kind": "text NOT NULL",
    "checksum": "text NOT NULL",
    "state": "text NOT NULL",
    "statements_done": "integer NOT NULL DEFAULT 0",
    "statements_total": "integer NOT NULL DEFAULT 0",
    "cursor": "text",
    "started_at": "timestamptz",
    "finished_at": "timestamptz",
    "applied_by": "text",
    "backend_pid": "integer",
    "backend_start": "timestamptz",
    "token": "text",
    "tool_version": "text",
    "compatible_with": "text",
    "reason": "text",
    "error": "text",
}

READ = AppliedMigration._fields
_VERSION, _STATE = READ.index("version"), READ.index("state")
_STATES = {state.value: state for state in RecordState}

KNOWN_TABLES = (
    ("golang-migrate", {"version", "dirty"}),
    ("Ecto", {"version", "inserted_at"}),
    ("a home-made runner", {"version", "description", "filename", "executed_at", "success", "error_message"}),
    ("dbmate or Rails", {"version"}),
)
"""What other tools' tables of this name look like, by their columns, each set exact."""


LEAST_PATIENCE = 5.0
"""Seconds that a read may take whatever is left of a budget."""


class HistoryBusyError(ServerError):
    """Somebody has locked the table, for longer than a reader waits."""


class History(NamedTuple):
    """One history table: what can be asked of it, and how it comes into being, as `owner`'s if one is given."""

    table: Table
    owner: str | None = None

    async def read(
        self, connection: Connection, versions: Sequence[str] | None = None, patience: float | None = None
    ) -> tuple[AppliedMigration, ...]:
        """Return the rows, in no order: all, or those of `versions`. Empty where there is no table yet.

        Raises ForeignTableError where the table is another tool's, HistoryBusyError where it is locked for longer than
        the session's lock_timeout, or `patience` seconds; ServerError where it may not be read.
        """
        columns = ", ".join(READ)
        query = f"SELECT {columns} FROM {self.table.quoted}"
        arguments: tuple[object, ...] = ()
        if versions is not None:
            query += " WHERE version OPERATOR(pg_catalog.=) ANY ($1)"
            arguments = (list(versions),)
        try:
            async with _undone(connection):
                with self._dates():
                    rows = await connection.fetch(query, *arguments, timeout=patience)
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            return ()
        except asyncpg.UndefinedColumnError:
            columns_there = await self._columns_there(connection)
        except (asyncpg.LockNotAvailableError, TimeoutError):
            raise HistoryBusyError(f"the table {self.table} is locked by another session") from None
        except asyncpg.InsufficientPrivilegeError as error:
            role = await connection.fetchval("SELECT current_user")
            needs = f"USAGE on schema {self.table.schema} and SELECT on {self.table}"
            raise ServerError(f"{error}; the role {role} needs {needs}") from None
        else:
            return tuple(_applied(row) for row in rows)
        raise ForeignTableError(self._whose(columns_there))

    async def read_patiently(
        self, connection: Connection, budget: Budget, versions: Sequence[str] | None = None
    ) -> tuple[AppliedMigration, ...]:
        """Return what `read` returns, as soon as nobody has locked the table; raises BudgetExceededError."""
        while True:
            began = time.monotonic()
            # Through a pooler the session's lock_timeout is not ours. Reading alone is never too long for a budget.
            patience = None if budget.remaining is None else max(budget.remaining, LEAST_PATIENCE)
            try:
                return await self.read(connection, versions, patience)
            except HistoryBusyError as error:
                budget.spend(time.monotonic() - began)
                await budget.poll(str(error))

    async def exists(self, connection: Connection) -> bool:
        """Say whether the table is there; raises ServerError where it is, and the role may not write to it."""
        rights = ("INSERT", "UPDATE", "DELETE")
        missing = await connection.fetchval(
            "SELECT ARRAY(SELECT r FROM unnest($2::text[]) r "
            "WHERE NOT has_table_privilege(COALESCE($3, current_user), to_regclass($1), r)) "
            "WHERE to_regclass($1) IS NOT NULL",
            self.table.quoted,
            rights,
            self.owner,
        )
        if missing:
            raise ServerError(f"{self._role} may not write the history: it needs {', '.join(missing)} on {self.table}")
        return missing is not None

    async def ensure(self, connection: Connection, readers: Sequence[str], budget: Budget) -> None:
        """Have the table, and let the readers read it, whoever else is making it at the same time."""
        if await self.exists(connection):
            await self._grant(connection, readers, budget)
        else:
            await self._create(connection, readers, budget)

    async def _create(self, connection: Connection, readers: Sequence[str], budget: Budget) -> None:
        """Make the table, and its schema where that is missing.

        In one transaction: readers that wait already see no table that they may not read.
        """
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        schema = identifier(self.table.schema)
        known = await connection.fetchval("SELECT pg_catalog.to_regnamespace($1) IS NOT NULL", schema)
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
        login = "" if self.owner is None else " UNION SELECT session_user"
        granted: bool = await connection.fetchval(
            "SELECT COALESCE(pg_catalog.bool_and(pg_catalog.has_schema_privilege(r, $1, 'USAGE') "
            "AND pg_catalog.has_table_privilege(r, pg_catalog.to_regclass($2), 'SELECT')), true) "
            f"FROM (SELECT pg_catalog.unnest($3::text[]){login}) AS role (r) "
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
        there = await self._columns_there(connection)
        if not there:
            raise UsageError(f"there is no table {self.table} to adopt")
        if not there.issuperset(ForeignRow._fields):
            raise ForeignTableError(f"{self._whose(there)}; only a home-made runner's table can be adopted")
        query = "SELECT version, description, filename, executed_at::timestamptz, success, error_message FROM "
        with self._dates():
            rows = await connection.fetch(query + self.table.quoted)
        return tuple(ForeignRow._make(tuple(row)) for row in rows)

    async def adopt(self, connection: Connection, rows: Iterable[AdoptedRow], reason: str) -> None:
        """Record what another tool has applied, all of it or nothing; to be called under the lock."""
        await connection.executemany(
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

    async def _columns_there(self, connection: Connection) -> set[str]:
        rows = await connection.fetch(
            "SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = pg_catalog.to_regclass($1) "
            "AND attnum > 0 AND NOT attisdropped",
            self.table.quoted,
        )
        return {row["attname"] for row in rows}

    def _whose(self, columns: set[str]) -> str:
        whose = next((tool for tool, known in KNOWN_TABLES if known == columns), "something else")
        other = f"{self.table.schema}.pgratchet_migrations"
        if whose == "a home-made runner":
            way_out = f"'pgratchet adopt' takes its history over into {other}"
        else:
            way_out = f'keep it, and give pgratchet a table of its own (table = "{other}")'
        return f"the table {self.table} was made by {whose}, not by pgratchet; {way_out}"


def _applied(row: asyncpg.Record) -> AppliedMigration:
    values = list(row)
    state = _STATES.get(values[_STATE])
    if state is None:
        raise ServerError(
            f"version {row['version']} is in state '{row['state']}', which this release of pgratchet does not know"
        )
    if not values[_VERSION].isdecimal():
        raise ServerError(f"the history has a row of version '{row['version']}', which is no number; nobody knows it")
    values[_STATE] = state
    return AppliedMigration._make(values)


def _undone(connection: Connection) -> AbstractAsyncContextManager[object]:
    """Keep an open transaction usable behind an error."""
    return connection.transaction() if connection.is_in_transaction() else nullcontext()
