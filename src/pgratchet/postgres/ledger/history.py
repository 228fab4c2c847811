"""The history table: its columns, what its rows say, and whose it is.

A row in state `applied` means applied and committed; no row means not.
"""

import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import chain, repeat
from typing import Any, NamedTuple

import asyncpg

from pgratchet.core.errors import ForeignTableError, ServerError, UsageError
from pgratchet.core.model import AdoptedRow, ForeignRow, HistoryRow, RecordState
from pgratchet.files.layout import Layout
from pgratchet.postgres.ledger import trust
from pgratchet.postgres.ledger.columns import COLUMNS, Column, Texts, defined, required
from pgratchet.postgres.ledger.transitions import ADOPT
from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import Budget, Cause, Tries, retry
from pgratchet.postgres.link.own import Guard, Guards
from pgratchet.postgres.link.session import Connection, describe
from pgratchet.postgres.link.sql import EQ, GT, Table, become, identifier, literal

_NOTHING = {"name": "", "kind": "", "checksum": "", "statements_done": 0, "statements_total": 0}
"""The values for NULLs that only somebody else's table has."""
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
_LEAVES = f"""
SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text
FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass($1)) p
JOIN pg_catalog.pg_class c ON c.oid {EQ} p.relid::pg_catalog.oid
JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
WHERE p.isleaf
"""

_MOST_CREATIONS = {Cause.LOCK: math.inf, Cause.CONFLICT: 50, Cause.RACE: 50, Cause.THERE: 5, Cause.CODE: 5}
"""How often the table and its grants are tried again, for each cause: many runners may be making them at once."""

LONGEST_PAUSE = 0.5
"""Seconds, at most, between two tries to make the table."""

_log = logging.getLogger("pgratchet")

MOST_SHOWN = 40
"""Characters of a version that is none."""

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

    async def read(
        self, connection: Connection, patience: float | None = None, *, anybodys: bool = True
    ) -> tuple[HistoryRow, ...]:
        """Return all rows, in no order; empty where there is no table yet. Nobody runs code by that.

        By the server's COPY of the table, in one round trip: a SELECT is planned, and the planner evaluates the code
        that the owner of a table has written into its indexes. Unless it may be `anybodys`, the owner of the table must
        be a role that a run trusts.

        Raises ForeignTableError where it is another tool's, or no table; HistoryBusyError where it is locked for longer
        than the session's lock_timeout, or `patience` seconds; ServerError where it may not be read, or row level
        security may hide rows of it.
        """
        guards = Guards()

        def checked(table: Table) -> str:
            return ("" if anybodys else trust.owned(guards, table, self.owner)) + trust.unfiltered(guards, table)

        try:
            columns = await self._copied(connection, checked, patience)
        except asyncpg.InvalidTextRepresentationError as error:
            if (raised := guards.raised(error)) is None:
                raise
            columns = await self._copied_after(raised, connection, patience)
        try:
            return _rows(_values(columns))
        except ValueError:
            # Not every DateStyle can be read back. Whom a run trusts puts nothing else in the table's place meanwhile.
            if await self.is_safe(connection):
                return await self._select(connection, "", (), patience)
        return _rows(_strangers(columns))

    async def _copied_after(self, raised: Guard, connection: Connection, patience: float | None) -> dict[str, Texts]:
        """Return the same as `_copied` if a second look finds in order what a first one has raised."""
        found = await self._inspect(connection)
        if found.strange and raised is Guard.OWNER:
            raise ForeignTableError(self._untrusted(found.strange))
        guards = Guards()
        try:
            unhidden = partial(trust.unhidden, guards, safe=not found.strange)
            return await self._copied(connection, unhidden, patience)
        except asyncpg.InvalidTextRepresentationError as error:
            if guards.raised(error) is None:
                raise
        if found.strange:
            raise ForeignTableError(f"{Guard.POLICY}: {self._untrusted(found.strange)}")
        role = await own.fetchval(connection, "SELECT current_user")
        raise ServerError(
            f"{Guard.POLICY}: it is enabled on {self.table}, and no policy shows the role {role} all rows; "
            f"CREATE POLICY pgratchet ON {self.table.quoted} USING (true), "
            f"or ALTER TABLE {self.table.quoted} DISABLE ROW LEVEL SECURITY"
        )

    async def _copied(
        self, connection: Connection, checked: Callable[[Table], str], patience: float | None
    ) -> dict[str, Texts]:
        """Return the columns of all rows as texts: those of its partitions, where COPY does not take the table.

        `checked` is SQL that raises where a table must not be read. What it has found stays so until it is read.
        """
        guards = Guards()

        async def copied(table: Table) -> dict[str, Texts]:
            # COPY alone would take a materialized view, too, from PostgreSQL 18 on. Without a list of columns it takes
            # those that are there. Another tool's table may be large: it is refused before it is read.
            lock = f"LOCK TABLE ONLY {table.quoted} IN ACCESS SHARE MODE;"
            ours = trust.has_columns(guards, table, required())
            copy = f"COPY {table.quoted} {own.AS_CSV}"
            async with self._reading(connection):
                return await own.copied(connection, lock + checked(table) + ours + copy, patience)

        try:
            return await copied(self.table)
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            return {}
        except asyncpg.InvalidTextRepresentationError as error:
            if guards.raised(error) is None:
                raise
            raise ForeignTableError(self._described(*await self._relation(connection))) from None
        except asyncpg.WrongObjectTypeError:
            kind, columns = await self._relation(connection)
            if kind != "p":
                raise ForeignTableError(self._described(kind, columns)) from None
        leaves = await own.fetch(connection, _LEAVES, self.table.quoted)
        parts = [await copied(Table(schema, name)) for schema, name in leaves]
        names = set().union(*parts)
        return {name: list(chain.from_iterable(part[name] for part in parts)) for name in names}

    async def read_some(
        self, connection: Connection, versions: Sequence[str], patience: float | None = None
    ) -> tuple[HistoryRow, ...]:
        """Return the rows of `versions`, as `read` does; to be called where the table `is_safe` only."""
        try:
            return await self._select(
                connection, f"WHERE version {EQ} ANY ($1::pg_catalog.text[])", (list(versions),), patience
            )
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            return ()

    async def _select(
        self, connection: Connection, where: str, arguments: Sequence[object], patience: float | None
    ) -> tuple[HistoryRow, ...]:
        # As JSON a row has its columns by name, and its dates in ISO format, in any number of them and of any type.
        query = f"SELECT pg_catalog.row_to_json(history.*)::pg_catalog.text FROM {self.table.quoted} AS history {where}"
        async with self._reading(connection):
            records = await own.fetch(connection, query, *arguments, patience=patience)
        rows = [json.loads(text, parse_int=str) for (text,) in records]
        columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
        if columns and not columns.keys() >= set(required()):
            raise ForeignTableError(self._described(*await self._relation(connection)))
        try:
            return _rows(_values(columns))
        except ValueError:
            raise ServerError(self._unreadable) from None

    @asynccontextmanager
    async def _reading(self, connection: Connection) -> AsyncIterator[None]:
        """Say what is wrong where the table cannot be read; an open transaction stays usable."""
        try:
            async with own.undone(connection):
                yield
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
        self,
        connection: Connection,
        budget: Budget,
        versions: Sequence[str] | None = None,
        *,
        anybodys: bool = True,
    ) -> tuple[HistoryRow, ...]:
        """Return what `read`, or `read_some` of the versions, returns, as soon as nobody has locked the table.

        Raises BudgetExceededError.
        """
        while True:
            began = time.monotonic()
            # Through a pooler the session's lock_timeout is not ours. Reading alone is never too long for a budget.
            patience = None if budget.remaining is None else max(budget.remaining, LEAST_PATIENCE)
            try:
                if versions is None:
                    return await self.read(connection, patience, anybodys=anybodys)
                return await self.read_some(connection, versions, patience)
            except HistoryBusyError as error:
                budget.spend(time.monotonic() - began)
                await budget.poll(str(error))

    async def is_safe(self, connection: Connection) -> bool | None:
        """Say whether nobody could run code in whoever uses the table but those that a run trusts; None without one."""
        found = await self._inspect(connection)
        return None if found.kind is None else found.kind in _TABLES and not found.strange

    async def _inspect(self, connection: Connection) -> trust.Inspection:
        return await trust.inspect(connection, self.table, self.owner, self.trusted)

    async def _refuse_unsafe(self, connection: Connection) -> trust.Inspection:
        """Return what there is to know of the table; raises ForeignTableError where it is none, or is not safe."""
        found = await self._inspect(connection)
        if found.kind not in (None, *_TABLES):
            raise ForeignTableError(self._described(*await self._relation(connection)))
        if found.strange:
            raise ForeignTableError(self._untrusted(found.strange))
        if found.has_heirs:
            raise ForeignTableError(
                f"other tables inherit from {self.table}, and pgratchet would not see their rows; move these rows into "
                f"{self.table}, and take the tables away from it by ALTER TABLE ... NO INHERIT"
            )
        return found

    async def inspected(self, connection: Connection) -> trust.Seal | None:
        """Return the table as it is now, None without one; raises ServerError where the role may not write to it.

        Raises ForeignTableError where it is no table, or where somebody else could run code in whoever writes to it.
        """
        found = await self._refuse_unsafe(connection)
        if found.missing:
            needs = f"it needs {', '.join(found.missing)} on {self.table}"
            raise ServerError(f"{self._role} may not write the history: {needs}")
        return found.seal

    def _untrusted(self, strange: Sequence[tuple[str, str]]) -> str:
        owners = sorted({owner for _, owner in strange})
        return (
            f"the table {self.table} is not safe to use: "
            + "; ".join(f"{what} belongs to the role {owner}" for what, owner in strange)
            + ", whose code would run with the rights of this run. If that is meant to be, name the role as trusted: "
            + " ".join(f"--trusted-owner {owner}" for owner in owners)
            + f", or trusted_owners = {owners}. Otherwise find out who made it, and drop it or give it to another role"
        )

    async def ensure(
        self, connection: Connection, readers: Sequence[str], budget: Budget, without: Collection[str] = ()
    ) -> trust.Seal:
        """Have the table, and let the readers read it, whoever else is making it at the same time.

        It has all columns afterwards, or the log says which ones it is written without, and how to add them; not so
        where the caller knows that it is written `without` these. Raises ServerError where it lacks an essential one
        that the role may not add.
        """
        if seal := await self.inspected(connection):
            await self._grant(connection, readers, budget)
            return await self._completed(connection, seal, budget, without)
        await self._create(connection, readers, budget)
        # Somebody else may have made it in between, whom IF NOT EXISTS gives way to.
        return await self._completed(connection, await self._made(connection), budget, without)

    async def _completed(
        self, connection: Connection, seal: trust.Seal, budget: Budget, without: Collection[str]
    ) -> trust.Seal:
        """Add the columns that an older release has not made; return the table as it is then."""
        if not (missing := seal.absent):
            return seal
        if not missing.isdisjoint(required()):
            raise ForeignTableError(self._described(*await self._relation(connection)))
        adding = ", ".join(f"ADD COLUMN IF NOT EXISTS {column}" for column in defined(missing))
        alter = f"ALTER TABLE {self.table.quoted} {adding}"
        # Not found out by trying: that would be an error in the server's log at each start.
        if not seal.alterable:
            names = [name for name in COLUMNS if name in missing]
            lack = f"the table {self.table} lacks {', '.join(names)}, and {self._role} may not add that"
            if any(COLUMNS[name].essential for name in names):
                raise ServerError(f"{lack}; nothing can be recorded safely before its owner does: {alter}")
            if not missing.issubset(without):
                _log.warning("%s; it is written without until its owner does: %s", lack, alter)
            return seal
        await through_races(connection, f"{self._as_owner}{alter};", budget)
        return await self._made(connection)

    async def hold(self, connection: Connection, readers: Sequence[str], budget: Budget) -> trust.Seal:
        """Have the table, as `ensure` does; until the transaction ends nobody attaches anything to it."""
        await self.ensure(connection, readers, budget)
        await through_races(connection, f"LOCK TABLE {self.table.quoted} IN ROW EXCLUSIVE MODE", budget)
        return await self._made(connection)

    async def _made(self, connection: Connection) -> trust.Seal:
        seal = await self.inspected(connection)
        if seal is None:
            raise ServerError(f"the table {self.table} has been dropped while it was made")
        return seal

    async def _create(self, connection: Connection, readers: Sequence[str], budget: Budget) -> None:
        """Make the table, and its schema where that is missing.

        In one transaction: readers that wait already see no table that they may not read.
        """
        columns = ", ".join(defined(COLUMNS))
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

    async def adopt(
        self, connection: Connection, rows: Iterable[AdoptedRow], reason: str, without: Collection[str] = ()
    ) -> None:
        """Record what another tool has applied, all of it or nothing; to be called under the lock.

        The columns that it is to be recorded `without` are left out.
        """
        columns = (*AdoptedRow._fields[:4], "state", "started_at", "finished_at", "reason")
        written = [at for at, name in enumerate(columns) if name not in without]
        values = [(*row[:4], ADOPT.after, row.executed_at, row.executed_at, reason) for row in rows]
        names = ", ".join(columns[at] for at in written)
        places = ", ".join(f"${at}" for at in range(1, len(written) + 1))
        insert = f"INSERT INTO {self.table.quoted} ({names}) VALUES ({places})"
        await own.executemany(connection, insert, [[row[at] for at in written] for row in values])

    @contextmanager
    def _dates(self) -> Iterator[None]:
        """Raise ServerError for a date that is read inside the block, and that Python does not have."""
        try:
            yield
        except OverflowError:
            raise ServerError(self._unreadable) from None

    @property
    def _unreadable(self) -> str:
        return (
            f"the table {self.table} has a date before the year 1 or after 9999, or a number that is none, which "
            "cannot be read; correct it"
        )

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


def _values(texts: dict[str, Texts]) -> dict[str, list[Any]]:
    """Return columns of texts as values; raises ValueError where a text is not as our own sessions have it."""
    return {name: column.read(texts[name]) for name, column in COLUMNS.items() if name in texts}


def _strangers(texts: dict[str, Texts]) -> dict[str, list[Any]]:
    """Return the same without what cannot be read, as in a table of somebody whom the run does not trust."""

    def value(column: Column, text: str | None) -> object:
        try:
            return column.read([text])[0]
        except ValueError:
            return None

    return {name: [value(COLUMNS[name], text) for text in texts[name]] for name in COLUMNS.keys() & texts}


def _rows(columns: dict[str, list[Any]]) -> tuple[HistoryRow, ...]:
    if not columns:
        return ()
    states = [_STATES.get(state) for state in columns["state"]]
    if None in states:
        version, state = (columns[name][states.index(None)] for name in ("version", "state"))
        raise ServerError(f"version {version} is in state '{state}', which this release of pgratchet does not know")
    columns["state"] = states
    for name, nothing in _NOTHING.items():
        if None in columns[name]:
            columns[name] = [nothing if value is None else value for value in columns[name]]
    fields = [columns.get(name) or repeat(None, len(states)) for name in HistoryRow._fields]
    return tuple(map(HistoryRow._make, zip(*fields, strict=True)))


async def through_races(connection: Connection, sql: str, budget: Budget) -> None:
    """Run SQL as one transaction, or as a part of the open one, and again while other runners are in its way.

    Raises any other error of the server's; BudgetExceededError where another session's lock stays in the way.
    """

    async def attempt() -> None:
        began = time.monotonic()
        try:
            async with own.undone(connection):
                await own.execute(connection, sql)
        except asyncpg.PostgresError:
            budget.spend(time.monotonic() - began)
            raise

    async def pause(error: Exception, failed: int) -> None:
        most = min(0.01 * (failed + 1), LONGEST_PAUSE)
        await budget.pause(most / 2, most, describe(error))

    await retry(attempt, Tries(_MOST_CREATIONS), pause)


def refuse_misspelled(rows: Iterable[HistoryRow], layout: Layout, table: Table) -> None:
    """Raise ServerError, with the statement that corrects it, for a row whose version the layout writes otherwise."""
    for row in rows:
        # In a table of somebody else's it may be NULL, or of any type.
        if not isinstance(row.version, str) or layout.canonical(row.version) != row.version:
            raise ServerError(_misspelled(row.version, layout, table))


def _misspelled(version: object, layout: Layout, table: Table) -> str:
    text = str(version)
    row = f"the history has a row of version {text!a:.{MOST_SHOWN}}"
    where = f"WHERE {_condition(None if version is None else text)}"
    delete = f"DELETE FROM {table.quoted} {where}"
    if meant := layout.meant(text):
        return (
            f"{row}, which is '{meant}' as pgratchet writes it: it counts as another one; "
            f"UPDATE {table.quoted} SET version = {literal(meant)} {where}, or, where there is a row '{meant}' too, "
            f"{delete}"
        )
    return (
        f"{row}, which is no version: {layout.form}; find out which one is meant, and "
        f"UPDATE {table.quoted} SET version = '<its number>' {where}, or {delete}"
    )


def _condition(text: str | None) -> str:
    """Return what is true of the row alone, in characters that can be copied from any terminal."""
    if text is None:
        return "version IS NULL"
    if len(text) > MOST_SHOWN:
        return f"length(version) = {len(text)}"
    if text.isascii() and text.isprintable():
        return f"version = {literal(text)}"
    return "version = E'" + "".join(f"\\U{ord(each):08x}" for each in text) + "'"
