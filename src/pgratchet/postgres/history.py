"""The history table: what it says, and the only code that knows its columns.

A row in state `applied` means applied and committed; no row means not.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import asyncpg

from pgratchet.core.errors import ForeignTableError, ServerError
from pgratchet.core.model import AppliedMigration, Direction, Mode, RecordState, Step
from pgratchet.postgres.session import Connection
from pgratchet.postgres.sql import Table, identifier, literal

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
_STATE = READ.index("state")

KNOWN_TABLES = (
    ("golang-migrate", {"version", "dirty"}),
    ("Ecto", {"version", "inserted_at"}),
    ("a home-made runner", {"version", "description", "filename", "executed_at", "success", "error_message"}),
    ("dbmate or Rails", {"version"}),
)
"""What other tools' tables of this name look like, by their columns, each set exact."""

FENCE = "pgratchet fence: "
"""How the errors begin that our own statements raise when a migration has broken its bounds."""

_log = logging.getLogger("pgratchet")


class Writer(NamedTuple):
    """Who writes: what a row says about the runner that made it."""

    applied_by: str
    backend_start: str
    tool_version: str


class Claim(NamedTuple):
    """A step that a run is about to do, and the random token by which it knows its own row again."""

    step: Step
    token: str


@dataclass(frozen=True, slots=True)
class History:
    """The rows of one history table, and the SQL that writes them."""

    table: Table
    lock_held: str = "true"
    """The SQL condition under which this run still holds its lock."""

    async def read(self, connection: Connection, versions: Sequence[str] | None = None) -> tuple[AppliedMigration, ...]:
        """Return the rows, in no order: all, or those of `versions`. Empty where there is no table yet.

        Raises ForeignTableError where the table is another tool's, ServerError where it may not be read.
        """
        columns = ", ".join(READ)
        query = f"SELECT {columns} FROM {self.table.quoted}"
        arguments: tuple[object, ...] = ()
        if versions is not None:
            query += " WHERE version OPERATOR(pg_catalog.=) ANY ($1)"
            arguments = (list(versions),)
        try:
            rows = await connection.fetch(query, *arguments)
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            return ()
        except asyncpg.UndefinedColumnError:
            columns_there = await self._columns_there(connection)
        except asyncpg.InsufficientPrivilegeError as error:
            raise ServerError(
                f"{error}; the role needs USAGE on schema {self.table.schema} and SELECT on {self.table}"
            ) from None
        else:
            return tuple(_applied(row) for row in rows)
        raise ForeignTableError(self._whose(columns_there))

    async def exists(self, connection: Connection) -> bool:
        """Say whether the table is there."""
        return bool(await connection.fetchval("SELECT pg_catalog.to_regclass($1) IS NOT NULL", self.table.quoted))

    async def create(self, connection: Connection) -> None:
        """Make the table, and its schema where that is missing; to be called under the lock.

        One message without BEGIN is one transaction.
        """
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        schema = identifier(self.table.schema)
        known = await connection.fetchval("SELECT pg_catalog.to_regnamespace($1) IS NOT NULL", schema)
        try:
            await connection.execute(
                ("" if known else f"CREATE SCHEMA IF NOT EXISTS {schema};")
                + f"CREATE TABLE IF NOT EXISTS {self.table.quoted} ({columns});"
                + f"COMMENT ON TABLE {self.table.quoted} IS 'Which migrations are applied; written by pgratchet';"
            )
        except asyncpg.InsufficientPrivilegeError as error:
            needs = f"CREATE on schema {self.table.schema}" if known else "CREATE on the database"
            raise ServerError(f"{error}; the role needs {needs} to make the table {self.table}") from None

    async def grant(self, connection: Connection, readers: Sequence[str]) -> None:
        """Let roles that may do nothing else wait for migrations and check them."""
        for role in readers:
            await connection.execute(
                f"GRANT USAGE ON SCHEMA {identifier(self.table.schema)} TO {identifier(role)};"
                f"GRANT SELECT ON {self.table.quoted} TO {identifier(role)};"
            )

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

    def claim(self, claim: Claim, writer: Writer, *, over_failed: bool = False) -> str:
        """Return the SQL that claims a version: the first thing in its transaction.

        The primary key makes the claim a second lock: of two runners one waits here for the other's COMMIT,
        and then fails with 23505, or on the fence where it goes down or on.
        """
        step = claim.step
        if step.direction is Direction.DOWN:
            return self._take(claim, writer, RecordState.REVERTING if step.done else RecordState.APPLIED)
        if step.done:
            return self._take(claim, writer, RecordState.FAILED)
        failed = f"{self._version(claim)} AND state = {literal(RecordState.FAILED)}"
        forget = f"DELETE FROM {self.table.quoted} WHERE {failed};" if over_failed else ""
        return forget + self._insert(claim, writer, RecordState.RUNNING, None) + ";"

    def record(self, claim: Claim) -> str:
        """Return the SQL that records a claimed step: the last thing before COMMIT. It raises if it cannot.

        It cannot unless the row was written by this very transaction (its xmin) and the lock is still held:
        a script that committed, rolled back, unlocked or touched the row fails here instead of lying.
        """
        return self._finish(claim, "xmin = pg_catalog.pg_current_xact_id()::pg_catalog.xid")

    def count(self, claim: Claim, done: int, cursor: str) -> str:
        """Return the SQL that counts statement number `done`. It raises unless the one before it is counted."""
        values = f"statements_done = {done}, cursor = {literal(cursor)}"
        update = f"UPDATE {self.table.quoted} SET {values} WHERE {self._own(claim)}"
        return self._fenced(f"{update} AND statements_done = {done - 1}")

    def close(self, claim: Claim) -> str:
        """Return the SQL that records a script whose statements are all counted. It raises if they are not."""
        return self._finish(claim, f"statements_done = {claim.step.script.statements}")

    def fail(self, claim: Claim, writer: Writer, error: str) -> str:
        """Return the SQL that records a failure, to be sent in a transaction of its own.

        What was rolled back gets a new row. A row of ours that is still there says that something has been
        committed: it keeps its state, unless it counts statements and can be gone on with.
        """
        update = f"UPDATE {self.table.quoted} SET error = {literal(error)}"
        if claim.step.direction is Direction.DOWN:
            return f"{update} WHERE {self._version(claim)};"
        failed = literal(RecordState.FAILED)
        if claim.step.script.mode is Mode.STATEMENTS:
            return f"{update}, state = {failed}, finished_at = clock_timestamp() WHERE {self._own(claim)};"
        return (
            f"{update} WHERE {self._own(claim)};"
            f"DELETE FROM {self.table.quoted} WHERE {self._version(claim)} AND state = {failed};"
            f"{self._insert(claim, writer, RecordState.FAILED, error)} ON CONFLICT (version) DO NOTHING;"
        )

    def flush(self, claim: Claim) -> str:
        """Return SQL whose COMMIT makes everything durable that this session has committed before."""
        return f"UPDATE {self.table.quoted} SET token = token WHERE {self._version(claim)};"

    def _insert(self, claim: Claim, writer: Writer, state: RecordState, error: str | None) -> str:
        migration = claim.step.migration
        now = "pg_catalog.clock_timestamp()"
        values = {
            "version": literal(migration.version),
            "name": literal(migration.name),
            "kind": literal(migration.kind),
            "checksum": literal(migration.checksum),
            "state": literal(state),
            "statements_total": literal(claim.step.script.statements),
            "started_at": now,
            "finished_at": "NULL" if error is None else now,
            "compatible_with": literal(migration.up.options.compatible_with),
            "error": literal(error),
        } | self._writer(claim, writer)
        columns = ", ".join(values)
        return f"INSERT INTO {self.table.quoted} ({columns}) VALUES ({', '.join(values.values())})"

    def _take(self, claim: Claim, writer: Writer, was: RecordState) -> str:
        """Take over the one row that is there already, as it should be."""
        step = claim.step
        now = RecordState.REVERTING if step.direction is Direction.DOWN else RecordState.RUNNING
        values = {
            "state": literal(now),
            "statements_done": literal(step.done),
            "statements_total": literal(step.script.statements),
            "started_at": "pg_catalog.clock_timestamp()",
            "error": "NULL",
        } | self._writer(claim, writer)
        settings = ", ".join(f"{name} = {value}" for name, value in values.items())
        where = f"{self._version(claim)} AND state = {literal(was)}"
        return self._fenced(f"UPDATE {self.table.quoted} SET {settings} WHERE {where}")

    def _writer(self, claim: Claim, writer: Writer) -> dict[str, str]:
        return {
            "applied_by": literal(writer.applied_by),
            "backend_pid": "pg_catalog.pg_backend_pid()",
            "backend_start": literal(writer.backend_start),
            "token": literal(claim.token),
            "tool_version": literal(writer.tool_version),
        }

    def _finish(self, claim: Claim, condition: str) -> str:
        if claim.step.direction is Direction.DOWN:
            act = f"DELETE FROM {self.table.quoted}"
        else:
            values = f"state = {literal(RecordState.APPLIED)}, statements_done = statements_total"
            act = f"UPDATE {self.table.quoted} SET {values}, finished_at = clock_timestamp(), error = NULL"
        return self._fenced(f"{act} WHERE {self._own(claim)} AND {condition}")

    def _version(self, claim: Claim) -> str:
        return f"version = {literal(claim.step.migration.version)}"

    def _own(self, claim: Claim) -> str:
        return f"{self._version(claim)} AND token = {literal(claim.token)}"

    def _fenced(self, act: str) -> str:
        """Return SQL that acts on exactly one row, under the lock, or raises.

        The cast raises without plpgsql; the subquery keeps the planner from folding it into a constant.
        """
        lost = literal(f"{FENCE}the lock is not held any more")
        other = literal(f"{FENCE}the history row is not as this run has written it")
        return (
            f"WITH touched AS ({act} RETURNING 1) SELECT CAST(CASE "
            f"WHEN NOT ({self.lock_held}) THEN {lost} "
            f"WHEN (SELECT pg_catalog.count(*) FROM touched) <> 1 THEN {other} ELSE '1' END AS pg_catalog.int4);"
        )


def _applied(row: asyncpg.Record) -> AppliedMigration:
    values = tuple(row)
    try:
        state = RecordState(values[_STATE])
    except ValueError:
        raise ServerError(
            f"version {row['version']} is in state '{row['state']}', which this release of pgratchet does not know"
        ) from None
    return AppliedMigration._make((*values[:_STATE], state, *values[_STATE + 1 :]))
