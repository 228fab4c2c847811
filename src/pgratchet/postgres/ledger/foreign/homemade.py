"""The home-made runner that many services start with: files like ours, and a table of its own.

The table is `schema_migrations (version integer, description, filename, executed_at, success, error_message)`.
"""

import unicodedata
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath
from typing import NamedTuple

import asyncpg

from pgratchet.core.arguments import spelled
from pgratchet.core.errors import ForeignTableError, HistoryError, ServerError, UsageError
from pgratchet.core.model import AdoptedRow, ForeignRow, Kind, Migration
from pgratchet.core.printing import one_line, printable
from pgratchet.files.layout import Layout
from pgratchet.postgres.ledger.columns import REQUIRED
from pgratchet.postgres.ledger.history import TABLES, History
from pgratchet.postgres.link import own
from pgratchet.postgres.link.session import Connection

UNKNOWN_CHECKSUM = "unknown"
"""Stands in the history for a file that was not there when its row was adopted."""


_COLUMNS = "version, description, filename, executed_at::pg_catalog.timestamptz, success, error_message"
_ADOPTABLE = "only a home-made runner's table can be adopted"

LONGEST_QUOTE = 200
"""The most characters of an old error that a message quotes."""


class Takeover(NamedTuple):
    """The versions of the foreign table, by their fate: recorded now or already, skipped, or without a file here.

    `versions` are those of the table and of the files, in order.
    """

    rows: tuple[AdoptedRow, ...]
    already: tuple[str, ...]
    skipped: tuple[str, ...]
    unknown: tuple[str, ...]
    versions: tuple[str, ...]


async def read_foreign(connection: Connection, source: History) -> tuple[ForeignRow, ...]:
    """Return the rows that a home-made runner has written into a table.

    Raises UsageError where there is no table, ForeignTableError for any other table.
    """
    table = source.table
    async with connection.transaction():
        try:
            # No other session changes the table between the look at its columns and the reading.
            await own.execute(connection, f"LOCK TABLE {table.quoted} IN ACCESS SHARE MODE")
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            raise UsageError(f"there is no table {table} to adopt; name the right one: {spelled('source')}") from None
        except asyncpg.WrongObjectTypeError:
            raise ForeignTableError(f"{table} is no table; {_ADOPTABLE}") from None
        relation = await source.relation(connection)
        if relation.kind not in TABLES or not relation.columns.issuperset(ForeignRow._fields):
            if relation.columns.issuperset(REQUIRED):
                raise UsageError(f"{table} is a history of pgratchet already: there is nothing to adopt")
            way = (
                f"write the schema of today into a first file (pg_dump --schema-only --exclude-table={table}), and "
                "record that file as applied: pgratchet repair VERSION --applied --reason ..."
            )
            raise ForeignTableError(source.described(relation, f"{_ADOPTABLE}; {way}"))
        await source.inspected(connection)
        try:
            rows = await own.fetch(connection, f"SELECT {_COLUMNS} FROM {table.quoted}")
        except OverflowError:
            raise ServerError(source.unreadable) from None
    return tuple(ForeignRow._make(tuple(row)) for row in rows)


def take_over(
    rows: Iterable[ForeignRow],
    migrations: Mapping[str, Migration],
    recorded: Collection[str],
    layout: Layout,
    *,
    skip_failed: bool,
) -> Takeover:
    """Return the rows to record, and the fate of the other versions.

    Raises HistoryError for rows whose version is none, for rows about another file than the one here, and for versions
    that have only failed, unless these are to be skipped, which leaves them pending.
    """
    latest, strange = _latest(rows, migrations, layout)
    failed = {version: row for version, row in latest.items() if not row.success}
    done = {version: row for version, row in latest.items() if row.success}
    other = {version: row for version, row in done.items() if not _same_file(row, migrations.get(version))}
    problems = [_no_version(row, layout) for row in strange]
    problems += [_other_file(version, row, migrations[version]) for version, row in other.items()]
    if not skip_failed:
        problems += [_failed(version, row) for version, row in failed.items()]
    if problems:
        raise HistoryError(
            "\n".join(map(printable, problems)), [*(str(row.version) for row in strange), *other, *failed]
        )
    new = {version: row for version, row in done.items() if version not in recorded}
    return Takeover(
        tuple(_adopted(version, row, migrations.get(version)) for version, row in new.items()),
        tuple(version for version in latest if version in recorded),
        tuple(version for version in failed if version not in recorded),
        tuple(version for version in new if version not in migrations),
        tuple(_in_order(latest.keys() | migrations.keys(), layout)),
    )


def _latest(
    rows: Iterable[ForeignRow], migrations: Mapping[str, Migration], layout: Layout
) -> tuple[dict[str, ForeignRow], list[ForeignRow]]:
    """Return one row for each version, in order, and the rows without a version.

    Of several rows of a version, a successful one goes first, and then one that names the file of this version here:
    two files have had one number, and one of them was given another. The column may be of any type: runners have
    written 2, '2' and '002'.
    """
    ranked: dict[str, tuple[bool, bool, ForeignRow]] = {}
    strange = []
    for row in rows:
        version = layout.canonical(str(row.version))
        if version is None:
            strange.append(row)
        else:
            found = (bool(row.success), _same_file(row, migrations.get(version)), row)
            ranked[version] = max(ranked.get(version, found), found, key=lambda each: each[:2])
    return {version: ranked[version][-1] for version in _in_order(ranked, layout)}, strange


def _in_order(versions: Iterable[str], layout: Layout) -> list[str]:
    return sorted(versions, key=lambda version: layout.rank(version) or ())


def _no_version(row: ForeignRow, layout: Layout) -> str:
    return (
        f"the row of version {str(row.version)!a:.60} ({row.filename}) has no version that a file could have: "
        f"{layout.form}; correct that row, or delete it"
    )


def _same_file(row: ForeignRow, migration: Migration | None) -> bool:
    return migration is None or row.filename is None or _base(row.filename) == _base(migration.up.path)


def _base(path: str) -> str:
    return unicodedata.normalize("NFC", PurePath(path).name)


def _other_file(version: str, row: ForeignRow, migration: Migration) -> str:
    here = _base(migration.up.path)
    return f"version {version} was applied as {row.filename}, and is {here} here; give the file its name back"


def _failed(version: str, row: ForeignRow) -> str:
    return (
        f"version {version} ({row.filename}) is recorded as failed: "
        f"{_cause(row)}; "
        f"make sure that nothing of it is left, and skip it ({spelled('skip_failed', value=True)}): it is then pending"
    )


def _cause(row: ForeignRow) -> str:
    """Return the one line of an old error that says most: the first, or the one with the exception of a traceback."""
    lines = [line for line in str(row.error_message or "").splitlines() if line.strip()] or ["no reason given"]
    begins = [at for at, line in enumerate(lines, 1) if line.startswith("Traceback (")]
    # The frames of a traceback are indented, and the exception behind them is not.
    behind = (line for line in lines[begins[-1] :] if not line[0].isspace()) if begins else iter(())
    said = next(behind, lines[0]).strip()
    return said if len(said) <= LONGEST_QUOTE else f"{said[:LONGEST_QUOTE]}..."


def _adopted(version: str, row: ForeignRow, migration: Migration | None) -> AdoptedRow:
    if migration is None:
        name = one_line(PurePath(row.filename or row.description or "unknown").stem)
        return AdoptedRow(version, name, Kind.SQL, UNKNOWN_CHECKSUM, row.executed_at)
    return AdoptedRow(version, migration.name, migration.kind, migration.checksum, row.executed_at)
