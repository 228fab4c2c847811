"""The history table: how it is read, checked, made and completed.

A row in state `applied` means applied and committed; no row means not applied.
"""

import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from itertools import chain, repeat
from typing import Any, NamedTuple, TypeAlias

import asyncpg

from pgratchet.core.arguments import spelled
from pgratchet.core.errors import AbsentError, ForeignTableError, ServerError
from pgratchet.core.model import AdoptedRow, HistoryRow, RecordState
from pgratchet.files.layout import Layout
from pgratchet.postgres.ledger import trust
from pgratchet.postgres.ledger.columns import COLUMNS, REQUIRED, Type
from pgratchet.postgres.ledger.foreign.known import KNOWN_TABLES
from pgratchet.postgres.ledger.transitions import ADOPT
from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import Budget, Cause, Tries, retry
from pgratchet.postgres.link.own import Guard, Guards
from pgratchet.postgres.link.session import Connection, describe
from pgratchet.postgres.link.sql import EQ, GT, Table, array, become, identifier, literal

_NOTHING = {"name": "", "kind": "", "checksum": "", "statements_done": 0, "statements_total": 0}
"""The values for NULLs, which only a table of another role can have."""
_STATES = {state.value: state for state in RecordState}

_MOST_BITS = 31
_ENDLESS = {"infinity", "-infinity"}

TABLES = ("r", "p")
"""The kinds of relations, as pg_class has them, that may be a history."""

_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "c": "a composite type",
    "i": "an index",
    "I": "an index",
}

_RELATION = f"""
SELECT (SELECT c.relkind::pg_catalog.text FROM pg_catalog.pg_class c WHERE c.oid {EQ} {{oid}}) AS kind,
       ARRAY(SELECT a.attname::pg_catalog.text
             FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid {EQ} a.atttypid
             WHERE a.attrelid {EQ} {{oid}} AND a.attnum {GT} 0 AND NOT a.attisdropped
             AND t.typnamespace {EQ} 'pg_catalog'::pg_catalog.regnamespace::pg_catalog.oid) AS columns,
       {trust.HISTORIES.replace("{", "{{").replace("}", "}}")} AS histories
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

Texts: TypeAlias = list[str | None]
"""The values of a column, one for each row, as PostgreSQL writes them."""

_log = logging.getLogger("pgratchet")

MOST_SHOWN = 40
"""Characters that a message shows of a text that is no version."""

MOST_SHOWN_TABLES = 5
"""Other histories that a warning names: a database may have one for each tenant."""

LEAST_PATIENCE = 5.0
"""Seconds that a read may always take, even if less is left of the budget."""


class HistoryBusyError(ServerError):
    """Another session holds a lock on the table for longer than a reader waits."""


class Relation(NamedTuple):
    """A relation: its kind as pg_class has it, None if there is none, and its columns of PostgreSQL's own types.

    `others` are the other tables of the database that have the columns of a history.
    """

    kind: str | None
    columns: set[str]
    others: Sequence[str]


class History(NamedTuple):
    """One history table, which belongs to the role `owner` if one is given.

    `trusted` are roles that may own it, or code attached to it, beside the roles that a run always trusts.
    """

    table: Table
    owner: str | None = None
    trusted: Sequence[str] = ()

    async def read(
        self, connection: Connection, patience: float | None = None, *, anybodys: bool = True
    ) -> tuple[HistoryRow, ...]:
        """Return all rows, in no order; none if there is no table yet. No code of another role runs.

        It is one COPY, in one round trip: a SELECT is planned, and the planner evaluates the code that the owner of a
        table has written into its indexes. Unless the table may be `anybodys`, its owner must be a role that a run
        trusts. A table that may be anybody's is not made later: where there is none, a warning names the other
        histories in the database.

        Raises ForeignTableError if it is another tool's, or no table; HistoryBusyError if it is locked for longer than
        the session's lock_timeout, or `patience` seconds; ServerError if the role may not read it, or row level
        security may hide rows of it.
        """
        guards = Guards()
        check = partial(trust.readable, guards, owner=self.owner, anybodys=anybodys)
        try:
            columns = await self.copied(connection, check, patience)
        except asyncpg.InvalidTextRepresentationError as error:
            if (raised := guards.raised(error)) is None:
                raise
            columns = await self._copied_after(raised, connection, patience)
        if anybodys and not columns and (others := (await trust.inspect(connection, *self)).others):
            self._warn_of_others(others, "nothing counts as applied")
        try:
            return _rows(columns)
        except ValueError:
            # Not every DateStyle can be read back. Only a trusted role can have replaced the table meanwhile.
            if await self.is_safe(connection):
                return await self.read_some(connection, None, patience)
        return _rows(columns, _values_or_none)

    async def _copied_after(self, raised: Guard, connection: Connection, patience: float | None) -> dict[str, Texts]:
        """Return the result of `copied` for a table that the first look refused, if a second look accepts it."""
        if raised is Guard.COLUMNS:
            raise ForeignTableError(self.described(await self.relation(connection)))
        if raised is Guard.REPLICATED:
            names = await trust.subscriptions(connection, self.table)
            raise ServerError(
                f"the rows of {self.table} do not say which migrations are applied here: {Guard.REPLICATED}, through "
                f"the subscription {', '.join(names)}, and replication brings rows without the changes of the schema; "
                "take the table out of the publication there and ALTER SUBSCRIPTION ... REFRESH PUBLICATION here, or "
                f"give this database a history of another name ({spelled('table')}), or end the subscription"
            )
        found = await trust.inspect(connection, *self)
        if found.strange and raised is Guard.OWNER:
            raise ForeignTableError(self._untrusted(found.strange))
        guards = Guards()
        check = partial(trust.readable, guards, owner=self.owner, anybodys=True, found=found)
        try:
            return await self.copied(connection, check, patience)
        except asyncpg.InvalidTextRepresentationError as error:
            if (again := guards.raised(error)) is None:
                raise
        if again is Guard.COLUMNS:
            raise ForeignTableError(self.described(await self.relation(connection)))
        if found.strange:
            raise ForeignTableError(f"{Guard.POLICY}: {self._untrusted(found.strange)}")
        raise ServerError(
            f"{Guard.POLICY}: it is enabled on {self.table}, and no policy shows the role {await _role(connection)} "
            f"all rows; {trust.opening(self.table)}"
        )

    async def copied(
        self, connection: Connection, check: Callable[[Table], str], patience: float | None
    ) -> dict[str, Texts]:
        """Return the columns of all rows as texts; empty where there is no table.

        `check` is SQL that raises where a table must not be read. Its result holds until the table is read.
        """
        # COPY alone would take a materialized view, too, from PostgreSQL 18 on. Without a list of columns it takes
        # those that are there. Another tool's table may be large: it is refused before it is read.
        copy = f"COPY {self.table.quoted} {own.AS_CSV}"
        try:
            async with self._reading(connection):
                return await own.copied(connection, self._lock + check(self.table) + copy, patience)
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            return {}
        except asyncpg.WrongObjectTypeError:
            relation = await self.relation(connection)
            if relation.kind != "p":
                raise ForeignTableError(self.described(relation)) from None
        # COPY does not take a partitioned table.
        leaves = await own.fetch(connection, _LEAVES, self.table.quoted)
        parts = [await self._replace(table=Table(*names)).copied(connection, check, patience) for names in leaves]
        columns = set().union(*parts)
        return {name: list(chain.from_iterable(part[name] for part in parts if part)) for name in columns}

    async def read_some(
        self, connection: Connection, versions: Sequence[str] | None, patience: float | None = None
    ) -> tuple[HistoryRow, ...]:
        """Return the rows of `versions`, None for all, as `read` does; call this only where the table `is_safe`."""
        try:
            async with self._reading(connection):
                read = await own.copied(connection, self._lock + self.reading(versions), patience)
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            return ()
        columns = _columns(read)
        if columns and not columns.keys() >= set(REQUIRED):
            raise ForeignTableError(self.described(await self.relation(connection)))
        return self._known(columns)

    @property
    def _lock(self) -> str:
        """The statement before a COPY: a pooler may send a COPY that comes alone to a standby."""
        return f"LOCK TABLE ONLY {self.table.quoted} IN ACCESS SHARE MODE;"

    def reading(self, versions: Iterable[str] | None) -> str:
        """Return the COPY whose result `was_read` takes: the rows of `versions`, as in `read_some`.

        As JSON a row has its columns by name, of any type, and its dates in ISO format.
        """
        query = f"SELECT pg_catalog.row_to_json(history.*)::pg_catalog.text AS row FROM {self.table.quoted} AS history"
        if versions is not None:
            query += f" WHERE version {EQ} ANY ({array(versions)})"
        return f"COPY ({query}) {own.AS_CSV}"

    def was_read(self, read: dict[str, Texts]) -> tuple[HistoryRow, ...]:
        """Return the rows that `reading` has read; raises ServerError if a value cannot be read."""
        return self._known(_columns(read))

    def _known(self, columns: dict[str, Texts]) -> tuple[HistoryRow, ...]:
        try:
            return _rows(columns)
        except ValueError:
            raise ServerError(self.unreadable) from None

    @asynccontextmanager
    async def _reading(self, connection: Connection) -> AsyncIterator[None]:
        """Raise an error with the cure where the table cannot be read; an open transaction stays usable."""
        try:
            async with own.undone(connection):
                yield
        except asyncpg.UndefinedFunctionError:
            alter = f"ALTER TABLE {self.table.quoted} ALTER COLUMN version TYPE text"
            raise ServerError(f"the versions in {self.table} are no text; {alter}") from None
        except (asyncpg.LockNotAvailableError, TimeoutError):
            raise HistoryBusyError(f"the table {self.table} is locked by another session") from None
        except asyncpg.InsufficientPrivilegeError as error:
            needs = f"USAGE on schema {self.table.schema} and SELECT on {self.table}"
            raise AbsentError(f"{error}; the role {await _role(connection)} needs {needs}") from None

    async def read_patiently(
        self,
        connection: Connection,
        budget: Budget,
        versions: Sequence[str] | None = None,
        *,
        anybodys: bool = True,
    ) -> tuple[HistoryRow, ...]:
        """Return the result of `read`, or of `read_some` for the versions; wait while the table is locked.

        Raises BudgetExceededError.
        """
        while True:
            began = time.monotonic()
            # Through a pooler the session's lock_timeout is not ours. A budget bounds waiting, not the reading itself.
            patience = None if budget.remaining is None else max(budget.remaining, LEAST_PATIENCE)
            try:
                if versions is None:
                    return await self.read(connection, patience, anybodys=anybodys)
                return await self.read_some(connection, versions, patience)
            except HistoryBusyError as error:
                budget.spend(time.monotonic() - began)
                budget.tell(f"{error}; waiting for it")
                await budget.poll(str(error))

    async def is_safe(self, connection: Connection) -> bool | None:
        """Return whether only roles that a run trusts run code in a session that uses the table; None without one."""
        found = await trust.inspect(connection, *self)
        return None if found.kind is None else found.kind in TABLES and not found.strange

    async def inspected(
        self, connection: Connection, before: str = "", found: trust.Inspection | None = None
    ) -> trust.Inspection:
        """Return the facts about the table, also if there is none, as `found` already or behind the SQL `before`.

        Raises ForeignTableError if it is another kind of relation, if other tables inherit from it, or if a role that
        the run does not trust could run code in a session that writes to it.
        """
        found = found or await trust.inspect(connection, *self, before)
        if found.kind not in (None, *TABLES):
            raise ForeignTableError(self.described(await self.relation(connection)))
        if found.strange:
            raise ForeignTableError(self._untrusted(found.strange))
        if found.has_heirs:
            raise ForeignTableError(
                f"other tables inherit from {self.table}, and pgratchet would not see their rows; move these rows into "
                f"{self.table}, and take the tables away from it by ALTER TABLE ... NO INHERIT"
            )
        return found

    def _writable(self, found: trust.Inspection) -> trust.Seal:
        """Return the table as inspected; raises ServerError where there is none, or the role may not write to it."""
        if found.missing:
            needs = f"it needs {', '.join(found.missing)} on {self.table}"
            raise ServerError(f"{self._role} may not write the history: {needs}")
        if found.seal is None:
            raise ServerError(f"the table {self.table} has been dropped in the meantime")
        return found.seal

    def _untrusted(self, strange: Sequence[tuple[str, str]]) -> str:
        owners = sorted({owner for _, owner in strange})
        return (
            f"the table {self.table} is not safe to use: "
            + "; ".join(f"{what} belongs to the role {owner}" for what, owner in strange)
            + ", whose code would run with the rights of this run. If you trust that role, name it as trusted: "
            + f"{spelled('trusted_owners', owners)}. Otherwise find out where it comes from, and drop it or give it to "
            "another role"
        )

    def _warn_of_others(self, others: Sequence[str], effect: str) -> None:
        """Warn of a table that is not there where the database has other histories: its name may be a mistake."""
        _log.warning(
            "there is no table %s: %s; %s: if the name is a mistake, correct %s",
            self.table,
            effect,
            _named(others),
            spelled("table"),
        )

    async def ensure(
        self,
        connection: Connection,
        readers: Sequence[str],
        budget: Budget,
        found: trust.Inspection | None = None,
        without: Collection[str] = (),
    ) -> trust.Seal:
        """Make the table if there is none, add missing columns, and let the readers read it; return the table.

        `found` is the table as it is now, None if the caller has not looked. Other runners may do the same at the same
        time. Where the role may not add a column, the log says which columns are not written and how to add them, once:
        not if the caller knows that it is written `without` them. Raises ServerError if such a column is essential.
        """
        as_owner = become(self.owner, local=True) if self.owner else ""
        schema = identifier(self.table.schema)
        grants = [
            f"GRANT USAGE ON SCHEMA {schema} TO {identifier(role)};"
            f"GRANT SELECT ON {self.table.quoted} TO {identifier(role)};"
            for role in readers
        ]
        found = await self.inspected(connection, found=found)
        if found.kind is None:
            if found.others:
                self._warn_of_others(found.others, "this run makes a second history")
            columns = ", ".join(f"{name} {column.type} {column.more}".rstrip() for name, column in COLUMNS.items())
            # In one transaction: readers that wait already see no table that they may not read. Another session may
            # have made the table in between: IF NOT EXISTS gives way to that one.
            make = (
                as_owner
                + ("" if found.has_schema else f"CREATE SCHEMA IF NOT EXISTS {schema};")
                + f"CREATE TABLE IF NOT EXISTS {self.table.quoted} ({columns});"
                + f"COMMENT ON TABLE {self.table.quoted} IS 'Which migrations are applied; written by pgratchet';"
                + "".join(grants)
            )
            with self.changing(connection, "made"):
                try:
                    seal = await self._changed(connection, make, budget)
                except asyncpg.InsufficientPrivilegeError as error:
                    cure = await self._cure_of_making(connection)
                    raise AbsentError(f"{error}; {cure}") from None
        else:
            seal = self._writable(found)
            for grant in grants:
                seal = await self._changed(connection, as_owner + grant, budget)
        return await self._completed(connection, seal, budget, without) if seal.absent else seal

    async def _cure_of_making(self, connection: Connection) -> str:
        """Return the right that the role lacks to make the table, found out without the words of the server's error."""
        has_schema = f"pg_catalog.to_regnamespace({literal(identifier(self.table.schema))}) IS NOT NULL"
        lacks = await own.ask(
            connection,
            f"SELECT CASE WHEN {has_schema} THEN NOT "
            f"pg_catalog.has_schema_privilege(r::pg_catalog.name, {literal(self.table.schema)}, 'CREATE') ELSE NOT "
            "pg_catalog.has_database_privilege(r::pg_catalog.name, pg_catalog.current_database(), 'CREATE') "
            f"END AS place, {has_schema} AS has_schema, "
            "(SELECT t.spcname::pg_catalog.text FROM pg_catalog.pg_tablespace AS t WHERE t.spcname::pg_catalog.text "
            "OPERATOR(pg_catalog.=) pg_catalog.current_setting('default_tablespace') "
            "AND NOT pg_catalog.has_tablespace_privilege(r::pg_catalog.name, t.oid, 'CREATE')) AS space "
            f"FROM (SELECT COALESCE({literal(self.owner)}, current_user::pg_catalog.text)) AS role (r)",
        )
        needs = f"CREATE on schema {self.table.schema}" if lacks["has_schema"] else "CREATE on the database"
        if lacks["place"]:
            return f"{self._role} needs {needs} to make the table {self.table}"
        if space := lacks["space"]:
            return (
                f"{self._role} needs CREATE on tablespace {space}, the default_tablespace of its sessions, to make the "
                f"table {self.table}: grant it, or set default_tablespace to another one"
            )
        return (
            f"{self._role} has {needs}, and lacks the right that the server names, to make the table {self.table}: "
            "grant it, or let a role that has it make the table"
        )

    async def _changed(self, connection: Connection, sql: str, budget: Budget) -> trust.Seal:
        """Run SQL as one transaction, or as a part of the open one, and return the table as it is then.

        Runs it again while other runners are in its way. Raises any other error of the server's; BudgetExceededError
        where another session's lock stays in the way.
        """

        async def attempt() -> trust.Seal:
            began = time.monotonic()
            try:
                async with own.undone(connection):
                    return self._writable(await self.inspected(connection, sql))
            except asyncpg.PostgresError:
                budget.spend(time.monotonic() - began)
                raise

        async def pause(error: Exception, failed: int) -> None:
            most = min(0.01 * (failed + 1), LONGEST_PAUSE)
            if isinstance(error, asyncpg.LockNotAvailableError):
                budget.tell(f"{describe(error)}; trying again")
            await budget.pause(most / 2, most, describe(error))

        return await retry(attempt, Tries(_MOST_CREATIONS), pause)

    async def _completed(
        self, connection: Connection, seal: trust.Seal, budget: Budget, without: Collection[str]
    ) -> trust.Seal:
        """Add the columns that an older release did not make; return the table afterwards."""
        missing = seal.absent
        if not missing.isdisjoint(REQUIRED):
            raise ForeignTableError(self.described(await self.relation(connection)))
        adding = ", ".join(
            f"ADD COLUMN IF NOT EXISTS {name} {COLUMNS[name].type}" for name in COLUMNS if name in missing
        )
        alter = f"ALTER TABLE {self.table.quoted} {adding}"
        # Not by a try: that would be an error in the server's log at each start.
        if not seal.alterable:
            names = [name for name in COLUMNS if name in missing]
            lack = f"the table {self.table} lacks {', '.join(names)}, and {self._role} may not add that"
            if any(COLUMNS[name].essential for name in names):
                raise ServerError(f"{lack}; nothing can be recorded safely before its owner runs: {alter}")
            if not missing.issubset(without):
                _log.warning("%s; it is written without that until its owner runs: %s", lack, alter)
            return seal
        as_owner = become(self.owner, local=True) if self.owner else ""
        return await self._changed(connection, f"{as_owner}{alter};", budget)

    async def hold(
        self,
        connection: Connection,
        readers: Sequence[str],
        budget: Budget,
        found: trust.Inspection | None = None,
    ) -> trust.Seal:
        """Do the same as `ensure`; until the transaction ends no session can attach code to the table."""
        await self.ensure(connection, readers, budget, found)
        return await self._changed(connection, f"LOCK TABLE {self.table.quoted} IN ROW EXCLUSIVE MODE;", budget)

    async def is_granted(self, connection: Connection, readers: Sequence[str]) -> bool:
        """Return whether the readers may read the table, if there is one; raises ServerError for an unknown role."""
        login = "" if self.owner is None else " UNION SELECT session_user::pg_catalog.text"
        table = f"pg_catalog.to_regclass({literal(self.table.quoted)})"
        answer = await own.ask(
            connection,
            "SELECT COALESCE(pg_catalog.bool_and("
            f"pg_catalog.has_schema_privilege(r::pg_catalog.name, {literal(self.table.schema)}, 'USAGE') AND "
            f"pg_catalog.has_table_privilege(r::pg_catalog.name, {table}::pg_catalog.oid, 'SELECT')), true) AS granted "
            f"FROM (SELECT pg_catalog.unnest({array(readers)}){login}) AS role (r) WHERE {table} IS NOT NULL",
        )
        return bool(answer["granted"])

    @property
    def _role(self) -> str:
        return f"the role {self.owner}" if self.owner else "the role"

    async def adopt(
        self, connection: Connection, rows: Iterable[AdoptedRow], reason: str, without: Collection[str] = ()
    ) -> None:
        """Record versions that another tool has applied, all or none. Call with the lock held.

        The columns `without` are left out, because the table lacks them.
        """
        columns = (*AdoptedRow._fields[:4], "state", "started_at", "finished_at", "reason")
        written = [at for at, name in enumerate(columns) if name not in without]
        values = [(*row[:4], ADOPT.after, row.executed_at, row.executed_at, reason) for row in rows]
        names = ", ".join(columns[at] for at in written)
        places = ", ".join(f"${at}" for at in range(1, len(written) + 1))
        insert = f"INSERT INTO {self.table.quoted} ({names}) VALUES ({places})"
        with self.changing(connection):
            await own.executemany(connection, insert, [[row[at] for at in written] for row in values])

    @contextmanager
    def changing(self, connection: Connection, how: str = "written") -> Iterator[None]:
        """Raise ServerError, which names the table, for an error of the server's about it inside the block."""
        try:
            yield
        except (asyncpg.ReadOnlySQLTransactionError, asyncpg.UndefinedObjectError):
            raise
        except asyncpg.PostgresError as error:
            if connection.is_closed():
                raise
            raise ServerError(f"the history {self.table} cannot be {how}: {describe(error)}") from error

    @property
    def unreadable(self) -> str:
        """The message for a value that Python cannot hold."""
        return (
            f"the table {self.table} has a value that cannot be read: a date before the year 1 or after 9999, or a "
            "text in place of a number; correct it"
        )

    async def relation(self, connection: Connection) -> Relation:
        """Return the relation of the table's name."""
        oid = f"pg_catalog.to_regclass({literal(self.table.quoted)})::pg_catalog.oid"
        (row,) = await own.fetch(connection, _RELATION.format(oid=oid))
        others = [name for name in row["histories"] if name != str(self.table)]
        return Relation(row["kind"], set(row["columns"]), others)

    def described(self, relation: Relation, cure: str = "") -> str:
        """Return the message for a relation that is no history of ours."""
        other = f"{self.table.schema}.pgratchet_migrations"
        keep = cure or f"keep it, and give pgratchet a table of its own ({spelled('table', other)})"
        if relation.others and not cure:
            keep = (
                f"{_named(relation.others)}: if that is the right one, give its name ({spelled('table')}); else {keep}"
            )
        if relation.kind in _KINDS:
            return f"{self.table} is {_KINDS[relation.kind]}, and no table of pgratchet; {keep}"
        whose = next((tool for tool, known in KNOWN_TABLES if known == relation.columns), "something else")
        is_adoptable = whose == "a home-made runner" and not relation.others
        way_out = f"'pgratchet adopt' takes its history over into {other}" if is_adoptable else keep
        return f"the table {self.table} was made by {whose}, not by pgratchet; {way_out}"


def _named(histories: Sequence[str]) -> str:
    """Return the part of a sentence that names the histories of a database."""
    more = len(histories) - MOST_SHOWN_TABLES
    names = ", ".join([*histories[:MOST_SHOWN_TABLES], *([f"{more} more"] if more > 0 else [])])
    return f"this database has {'another history' if len(histories) == 1 else 'other histories'} of pgratchet, {names}"


def _values(type_: Type, texts: Texts) -> list[Any]:
    """Return a column's texts as values; raises ValueError for a text that our own sessions would not write."""
    match type_:
        case Type.TEXT:
            return texts
        case Type.MOMENT:
            return [None if text is None or text in _ENDLESS else datetime.fromisoformat(text) for text in texts]
        case Type.NUMBER:
            # Most rows have the same number.
            numbers = {text: None if text is None else int(text) for text in set(texts)}
            if any(number is not None and number.bit_length() > _MOST_BITS for number in numbers.values()):
                raise ValueError(numbers)
            return [numbers[text] for text in texts]


def _values_or_none(type_: Type, texts: Texts) -> list[Any]:
    """Return the same, with None for each other text, such as in a table of a role that the run does not trust."""

    def value(text: str | None) -> object:
        try:
            return _values(type_, [text])[0]
        except ValueError:
            return None

    return list(map(value, texts))


def _columns(read: dict[str, Texts]) -> dict[str, Texts]:
    """Return the columns of rows that were read as JSON."""
    rows = [json.loads(text, parse_int=str) for text in read.get("row", ()) if text]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def _rows(texts: dict[str, Texts], values: Callable[[Type, Texts], list[Any]] = _values) -> tuple[HistoryRow, ...]:
    """Return the rows of columns; raises the error of `values`, ServerError for a state of a newer release."""
    if not texts:
        return ()
    columns = {name: values(COLUMNS[name].type, texts[name]) for name in COLUMNS.keys() & texts}
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


async def _role(connection: Connection) -> str:
    return str((await own.ask(connection, "SELECT current_user::pg_catalog.text AS role"))["role"])


def refuse_misspelled(rows: Iterable[HistoryRow], layout: Layout, table: Table) -> None:
    """Raise ServerError, with the statement that corrects it, for a row whose version the layout spells otherwise.

    It would count as another version.
    """
    for row in rows:
        # In a table of another role it may be NULL, or of any type.
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
    """Return the condition for this row alone, in characters that can be copied from any terminal."""
    if text is None:
        return "version IS NULL"
    if len(text) > MOST_SHOWN:
        return f"length(version) = {len(text)}"
    if text.isascii() and text.isprintable():
        return f"version = {literal(text)}"
    return "version = E'" + "".join(f"\\U{ord(each):08x}" for each in text) + "'"
