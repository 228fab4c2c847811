"""Adoption: a copy of the history of a home-made runner, whose own table is only read."""

from collections.abc import Mapping

from pgratchet.core.model import Adoption, Lock, Migration
from pgratchet.postgres.ledger import lock
from pgratchet.postgres.ledger.foreign.homemade import Takeover, read_foreign, take_over
from pgratchet.postgres.ledger.history import History, refuse_misspelled
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.session import Connection, open_session
from pgratchet.postgres.link.sql import Table
from pgratchet.postgres.wire.message import facts
from pgratchet.runs.settings import Settings

TARGET = "pgratchet_migrations"
"""The name of our table if the foreign one has the name that ours would have."""


async def adopt(
    settings: Settings, migrations: Mapping[str, Migration], source: Table, budget: Budget, *, skip_failed: bool
) -> Adoption:
    """Record the versions that the table `source` has as applied, under the lock, all or none; return them.

    A second call adds only the versions that are new there.
    """
    table = _target(settings, source)
    key = None if settings.lock is Lock.NONE else table.lock_key
    async with open_session(settings.direct, budget) as connection:
        history = settings.history._replace(table=table)
        known = await facts(connection, history, None, settings.tool_version)
        async with lock.exclusively(connection, key, budget, history.owner):
            seal = await history.hold(connection, (*settings.readers, *known.readers), budget)
            takeover = await _compared(connection, settings, migrations, source, history, skip_failed=skip_failed)
            await history.adopt(connection, takeover.rows, f"adopted from {source}", without=seal.absent)
            return _adoption(takeover, source, history.table, dry_run=False)


async def foresee(
    settings: Settings, migrations: Mapping[str, Migration], source: Table, *, skip_failed: bool
) -> Adoption:
    """Return the result that `adopt` would have now; changes nothing."""
    async with open_session(settings.connect) as connection:
        history = settings.history._replace(table=_target(settings, source))
        takeover = await _compared(connection, settings, migrations, source, history, skip_failed=skip_failed)
        return _adoption(takeover, source, history.table, dry_run=True)


def _target(settings: Settings, source: Table) -> Table:
    table = settings.history.table
    return Table(source.schema, TARGET) if table == source else table


async def _compared(  # noqa: PLR0913 - two tables, the files, and how
    connection: Connection,
    settings: Settings,
    migrations: Mapping[str, Migration],
    source: Table,
    history: History,
    *,
    skip_failed: bool,
) -> Takeover:
    foreign = await read_foreign(connection, history._replace(table=source))
    rows = await history.read(connection)
    refuse_misspelled(rows, settings.layout, history.table)
    return take_over(foreign, migrations, {row.version for row in rows}, settings.layout, skip_failed=skip_failed)


def _adoption(takeover: Takeover, source: Table, target: Table, *, dry_run: bool) -> Adoption:
    return Adoption(
        source=str(source),
        target=str(target),
        adopted=tuple(row.version for row in takeover.rows),
        already=takeover.already,
        skipped=takeover.skipped,
        unknown=takeover.unknown,
        dry_run=dry_run,
        versions=takeover.versions,
    )
