"""Repair: a person's verdict about a version that no run can judge, recorded with its reason."""

from pgratchet.core.errors import HistoryError, UsageError
from pgratchet.core.model import Catalogue, Entry, Lock, State, Verdict
from pgratchet.core.plan.halfway import HALF_DONE
from pgratchet.core.plan.verdicts import Judgement, settle
from pgratchet.core.printing import printable
from pgratchet.postgres.ledger import lock
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.ledger.records import Records
from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.own import Guards
from pgratchet.postgres.link.session import Connection, open_session
from pgratchet.postgres.wire import backends
from pgratchet.postgres.wire.message import Facts, facts
from pgratchet.runs.observing import compare
from pgratchet.runs.settings import Settings


async def repair(settings: Settings, catalogue: Catalogue, judgement: Judgement, budget: Budget) -> Entry:
    """Record a judgement under the lock, and return both sides of its version after that.

    Raises UsageError if there is no such version, or no reason; HistoryError if the verdict does not fit the version,
    or a session is at work on it.
    """
    if not judgement.reason.strip():
        raise UsageError("a repair needs a reason: others will read it in the history")
    history = settings.history
    key = None if settings.lock is Lock.NONE else history.table.lock_key
    async with (
        open_session(settings.direct, budget) as connection,
        lock.exclusively(connection, key, budget, history.owner),
    ):
        known = await facts(connection, history, None, settings.tool_version)
        seal = await history.hold(connection, (*settings.readers, *known.readers), budget, known.found)
        records = Records(history.table, Lock.NONE, Guards(), absent=seal.absent)
        entry = await _entry(connection, settings, catalogue, judgement.version, budget)
        await _record(connection, records, entry, judgement, known, history)
        return await _entry(connection, settings, catalogue, judgement.version, budget)


async def _entry(
    connection: Connection, settings: Settings, catalogue: Catalogue, version: str, budget: Budget
) -> Entry:
    rows = {row.version: row for row in await settings.history.read_patiently(connection, budget)}
    entries = {entry.version: entry for entry in compare(settings, catalogue.migrations, rows.values())}
    # A version without a file that has left nothing behind is no entry, but it may be judged.
    return entries.get(version) or Entry(version, State.PENDING, None, rows.get(version))


async def _record(  # noqa: PLR0913, PLR0917 - the place, and all parts of the row
    connection: Connection,
    records: Records,
    entry: Entry,
    judgement: Judgement,
    known: Facts,
    history: History,
) -> None:
    settled = settle(entry, judgement.verdict)
    if entry.row is not None and entry.row.state in HALF_DONE:
        who = await backends.runner(connection, entry.row, history)
        if who:
            raise HistoryError(
                printable(f"a session is at work on {entry.version} {entry.name}: {who}"), [entry.version]
            )
    writer = known.writer
    when = f"{known.now:%Y-%m-%d %H:%M:%S%z}"
    reason = printable(f"{judgement.reason.strip()} ({judgement.verdict}, {when}, {writer.applied_by})")
    if judgement.verdict is Verdict.ACCEPT and entry.row is not None and entry.migration is not None:
        sql = records.accept(entry.row, entry.migration, reason)
    else:
        sql = records.settle(entry, settled, writer, reason)
    with history.changing(connection):
        await own.execute(connection, sql)
