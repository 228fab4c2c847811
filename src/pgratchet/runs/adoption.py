"""Takes over the history of a home-made runner; its table is read, and left alone."""

from collections.abc import Mapping

from pgratchet.core.model import Adoption, Lock, Migration
from pgratchet.files.layout import Layout
from pgratchet.postgres.ledger import lock
from pgratchet.postgres.ledger.foreign.homemade import take_over
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.ledger.spelling import refuse_misspelled
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.session import Connection, open_session
from pgratchet.postgres.link.sql import Table
from pgratchet.postgres.wire import frames
from pgratchet.runs.settings import Settings

TARGET = "pgratchet_migrations"
"""Where the history goes when the foreign table has the name that ours would have."""


async def adopt(
    settings: Settings, migrations: Mapping[str, Migration], source: Table, budget: Budget, *, skip_failed: bool
) -> Adoption:
    """Record under the lock, and all at once, what the table `source` says is applied; return what that was.

    Doing it again adds only what is new there.
    """
    table = _target(settings, source)
    key = None if settings.lock is Lock.NONE else table.lock_key
    async with open_session(settings.direct, budget) as connection:
        facts = await frames.facts(connection, None, settings.owner)
        frames.refuse_useless(facts)
        history = settings.history._replace(table=table)
        async with lock.exclusively(connection, key, budget, settings.owner):
            await history.hold(connection, settings.readers_of(facts.login), budget)
            return await _take_over(
                connection, settings.layout, migrations, source, history, dry_run=False, skip_failed=skip_failed
            )


async def foresee(
    settings: Settings, migrations: Mapping[str, Migration], source: Table, *, skip_failed: bool
) -> Adoption:
    """Return what `adopt` would do now; changes nothing."""
    async with open_session(settings.connect) as connection:
        history = settings.history._replace(table=_target(settings, source))
        return await _take_over(
            connection, settings.layout, migrations, source, history, dry_run=True, skip_failed=skip_failed
        )


def _target(settings: Settings, source: Table) -> Table:
    return Table(source.schema, TARGET) if settings.table == source else settings.table


async def _take_over(  # noqa: PLR0913 - two tables, the files, and how
    connection: Connection,
    layout: Layout,
    migrations: Mapping[str, Migration],
    source: Table,
    history: History,
    *,
    dry_run: bool,
    skip_failed: bool,
) -> Adoption:
    foreign = await history._replace(table=source).read_foreign(connection)
    rows = await history.read(connection)
    refuse_misspelled(rows, layout, history.table)
    recorded = {row.version for row in rows}
    takeover = take_over(foreign, migrations, recorded, layout, skip_failed=skip_failed)
    if not dry_run:
        await history.adopt(connection, takeover.rows, reason=f"adopted from {source}")
    return Adoption(
        source=str(source),
        target=str(history.table),
        adopted=tuple(row.version for row in takeover.rows),
        already=takeover.already,
        skipped=takeover.skipped,
        unknown=takeover.unknown,
        dry_run=dry_run,
    )
