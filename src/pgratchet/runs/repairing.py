"""Carries out what a person says of a version that no run can judge, and keeps the reason."""

from pgratchet.core.errors import HistoryError, UsageError
from pgratchet.core.model import Catalogue, Entry, Lock, State
from pgratchet.core.plan.verdicts import Judgement, settle
from pgratchet.core.printing import printable
from pgratchet.postgres.ledger import lock
from pgratchet.postgres.ledger.records import Records
from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.session import Connection, open_session
from pgratchet.postgres.wire import backends, frames
from pgratchet.runs.comparing import compare
from pgratchet.runs.settings import Settings


async def repair(settings: Settings, catalogue: Catalogue, judgement: Judgement, budget: Budget) -> Entry:
    """Record a judgement under the lock, and return both sides of its version as they are then.

    Raises UsageError where there is no such version, or no reason; HistoryError where the verdict makes no
    sense, or somebody is at work on the version.
    """
    if not judgement.reason.strip():
        raise UsageError("a repair needs a reason: it is what others will read in the history")
    key = None if settings.lock is Lock.NONE else settings.table.lock_key
    async with open_session(settings.direct, budget) as connection:
        history = settings.history
        async with lock.exclusively(connection, key, budget, settings.owner):
            facts = await frames.facts(connection, None, settings.owner)
            frames.refuse_useless(facts)
            seal = await history.hold(connection, settings.readers_of(facts.login), budget)
            records = lock.records(settings.table, Lock.NONE)._replace(absent=seal.absent)
            entry = await _entry(connection, settings, catalogue, judgement.version, budget)
            await _record(connection, settings, records, entry, judgement, facts)
            return await _entry(connection, settings, catalogue, judgement.version, budget)


async def _entry(
    connection: Connection, settings: Settings, catalogue: Catalogue, version: str, budget: Budget
) -> Entry:
    rows = {row.version: row for row in await settings.history.read_patiently(connection, budget)}
    entries = {entry.version: entry for entry in compare(settings, catalogue.migrations, rows.values())}
    # What left nothing behind, of a file that is gone, is no entry, but may be judged.
    return entries.get(version) or Entry(version, State.PENDING, None, rows.get(version))


async def _record(  # noqa: PLR0913, PLR0917 - where, and all that the row is to say
    connection: Connection,
    settings: Settings,
    records: Records,
    entry: Entry,
    judgement: Judgement,
    facts: frames.Facts,
) -> None:
    settled = settle(entry, judgement.verdict)
    if entry.row is not None and entry.state is State.RUNNING:
        who = await backends.runner(connection, entry.row, settings.owner)
        if who:
            raise HistoryError(printable(f"{entry.version} {entry.name} is being worked on by {who}"), [entry.version])
    writer = facts.writer(settings.tool_version)
    when = f"{facts.now:%Y-%m-%d %H:%M:%S%z}"
    reason = printable(f"{judgement.reason.strip()} ({judgement.verdict}, {when}, {writer.applied_by})")
    await own.execute(connection, records.settle(entry, settled, writer, reason))
