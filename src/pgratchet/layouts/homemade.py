"""The home-made runner that many services start with: files like ours, and a table of its own.

The table is `schema_migrations (version integer, description, filename, executed_at, success, error_message)`.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath
from typing import NamedTuple

from pgratchet.core.errors import HistoryError
from pgratchet.core.model import AdoptedRow, ForeignRow, Kind, Migration

UNKNOWN_CHECKSUM = "unknown"
"""Stands in the history for a file that was not there when its row was adopted."""


class Takeover(NamedTuple):
    """What becomes of each version of the foreign table."""

    rows: tuple[AdoptedRow, ...]
    already: tuple[str, ...]
    skipped: tuple[str, ...]
    unknown: tuple[str, ...]


def take_over(
    rows: Iterable[ForeignRow],
    migrations: Mapping[str, Migration],
    recorded: Collection[str],
    *,
    skip_failed: bool,
) -> Takeover:
    """Return what is to be recorded.

    Raises HistoryError for rows that speak of another file than the one here, and for versions that have only
    failed, unless these are to be skipped, which leaves them pending.
    """
    latest = _latest(rows)
    failed = [row for row in latest.values() if not row.success]
    other = [row for row in latest.values() if row.success and not _same_file(row, migrations)]
    problems = [_other_file(row, migrations) for row in other]
    if not skip_failed:
        problems += [_failed(row) for row in failed]
    if problems:
        raise HistoryError("\n".join(problems), [str(row.version) for row in (*other, *failed)])
    new = [row for row in latest.values() if row.success and str(row.version) not in recorded]
    return Takeover(
        tuple(_adopted(row, migrations.get(str(row.version))) for row in new),
        tuple(version for version in latest if version in recorded),
        tuple(str(row.version) for row in failed if str(row.version) not in recorded),
        tuple(str(row.version) for row in new if str(row.version) not in migrations),
    )


def _latest(rows: Iterable[ForeignRow]) -> dict[str, ForeignRow]:
    """Return one row for each version, in order: one that says success, where there is one."""
    latest: dict[str, ForeignRow] = {}
    for row in sorted(rows, key=lambda row: (row.version, bool(row.success))):
        latest[str(row.version)] = row
    return latest


def _same_file(row: ForeignRow, migrations: Mapping[str, Migration]) -> bool:
    migration = migrations.get(str(row.version))
    return migration is None or row.filename is None or _base(row.filename) == _base(migration.up.path)


def _base(path: str) -> str:
    return PurePath(path).name


def _other_file(row: ForeignRow, migrations: Mapping[str, Migration]) -> str:
    here = _base(migrations[str(row.version)].up.path)
    return f"version {row.version} was applied as {row.filename}, and is {here} here; give the file its name back"


def _failed(row: ForeignRow) -> str:
    return (
        f"version {row.version} ({row.filename}) is recorded as failed: {row.error_message or 'no reason given'}; "
        "make sure that nothing of it is left, and skip it (--skip-failed): it is then pending"
    )


def _adopted(row: ForeignRow, migration: Migration | None) -> AdoptedRow:
    if migration is None:
        name = PurePath(row.filename or row.description or "unknown").stem
        return AdoptedRow(str(row.version), name, Kind.SQL, UNKNOWN_CHECKSUM, row.executed_at)
    return AdoptedRow(str(row.version), migration.name, migration.kind, migration.checksum, row.executed_at)
