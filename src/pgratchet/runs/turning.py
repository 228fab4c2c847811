"""What a run does while it holds the lock: the half of it that most starts never need."""

from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial

from pgratchet.core.errors import HistoryError, ServerError
from pgratchet.core.model import Direction, Entry, HistoryRow, Lock, Mode, RecordState, State, Step
from pgratchet.core.plan.halfway import in_flight, refuse_interrupted, refuse_unrecoverable
from pgratchet.core.plan.planning import Phase, plan_up
from pgratchet.postgres.ledger import lock
from pgratchet.postgres.link import own
from pgratchet.postgres.link.session import settings_sql
from pgratchet.postgres.link.sql import become
from pgratchet.postgres.steps import execution, rehearsal
from pgratchet.postgres.wire import backends, frames
from pgratchet.postgres.wire.failures import OvertakenError
from pgratchet.postgres.wire.frames import Facts, Framing
from pgratchet.postgres.wire.sending import Wire
from pgratchet.postgres.wire.watch import Blockers
from pgratchet.runs.turn import Turn

MOST_CONTRADICTIONS = 5
"""How often what is read may contradict what the server says of it, without a change in between."""


async def carry_out(turn: Turn, waiting: deque[Phase]) -> None:
    """Do what the phases say, and drop each as it is done."""
    framing = await _framing(turn)
    readers = turn.settings.readers_of(framing.facts.login)
    executing = execution.Execution(_wire(turn, framing.facts), framing, turn.progress)
    overtaken: list[tuple[HistoryRow | None, ...]] = []
    while waiting:
        records = turn.lock.records
        seal = await turn.settings.history.ensure(turn.connection, readers, turn.budget, without=records.absent)
        turn.lock.records = records._replace(seal=seal, absent=seal.absent)
        entries = await _look_again(turn, waiting[0].direction)
        if await _let_finish(turn, in_flight(entries, waiting[0].direction)):
            continue
        steps = waiting[0].plan(entries).steps
        turn.observer.raise_new_failure(_failures(entries, steps))
        _refuse_bare(steps, turn.lock.by)
        refuse_unrecoverable(steps)
        try:
            await executing.run(turn.lock.records, steps, _applied(entries))
        except OvertakenError:
            overtaken.append(tuple(entry.row for entry in entries))
            _refuse_contradiction(overtaken)
            await turn.budget.poll("another runner has been at work")
            continue
        waiting.popleft()


async def rehearse(turn: Turn, to: str | None) -> None:
    """Do what `up` would do, in one transaction, and roll it back."""
    framing = await _framing(turn)
    entries = await _look_again(turn, Direction.UP)
    steps = plan_up(entries, to).steps
    turn.observer.raise_new_failure(_failures(entries, steps))
    wire, history = _wire(turn, framing.facts), turn.settings.history
    done = await rehearsal.run(wire, framing, history, turn.progress, steps)
    turn.progress.finished += done


async def _look_again(turn: Turn, direction: Direction) -> tuple[Entry, ...]:
    """Return what files and history say now that nobody else may change it; only this decides what is done.

    Where nothing is held that is not yet so: raises BusyError where another runner is at work.
    """
    await resolve(turn)
    entries = await turn.observer.look(turn.connection)
    turn.observer.drop_lost()
    if any(entry.state is State.RUNNING for entry in entries):
        await turn.lock.raise_if_busy(turn.connection)
    refuse_interrupted(entries, direction)
    return entries


async def resolve(turn: Turn) -> None:
    """Find out what became of the steps that a lost connection has left unanswered.

    To be asked when nobody is at work on them any more: the server may notice late that its client is gone,
    and finish what it was doing.
    """
    progress = turn.progress
    if progress.flying:
        progress.finish(await execution.resolve(turn.connection, turn.lock.records, progress.flying, turn.budget))
        progress.flying = ()


def _refuse_contradiction(seen: Sequence[tuple[HistoryRow | None, ...]]) -> None:
    """Raise HistoryError where a run has read the same so many times, and was told each time that it has changed."""
    last = seen[-MOST_CONTRADICTIONS:]
    if len(last) == MOST_CONTRADICTIONS and all(each == last[0] for each in last):
        raise HistoryError(
            f"the history has read the same {MOST_CONTRADICTIONS} times in a row, and each time the server said, as a "
            "migration began, that it had changed since: something shows this run another history than the one that it "
            "writes, such as a pooler that reads from a standby, or row level security"
        )


def _failures(entries: Iterable[Entry], steps: Iterable[Step]) -> list[HistoryRow]:
    """Return the rows of failed versions that are to be done."""
    versions = {step.migration.version for step in steps}
    rows = [entry.row for entry in entries if entry.row and entry.version in versions]
    return [row for row in rows if row.state is RecordState.FAILED]


async def _let_finish(turn: Turn, rows: Iterable[HistoryRow]) -> bool:
    """Return when none of the runners of half-done versions is at work any more; True: one of them was."""
    waited = False
    for row in rows:
        who = partial(backends.runner, turn.connection, row, turn.settings.owner)
        waited |= await backends.until_gone(who, turn.budget, f"{row.version} {row.name} is half done")
    return waited


def _wire(turn: Turn, facts: Facts) -> Wire:
    by_lock = turn.lock.by is Lock.TRANSACTION or facts.pooled
    settings = turn.settings
    blockers = Blockers(settings.direct, settings.table.lock_key, None if by_lock else facts.pid)
    return Wire(turn.connection, blockers, turn.budget, turn.progress.tell, turn.lock.records.marker)


async def _framing(turn: Turn) -> Framing:
    session = turn.lock.by is Lock.SESSION
    condition = lock.held(turn.settings.table.lock_key) if session else None
    facts = await frames.facts(turn.connection, condition, turn.settings.owner)
    frames.refuse_useless(facts)
    settings = turn.settings
    if not (facts.prepared or facts.pooled):
        await own.execute(turn.connection, settings_sql())
    if settings.owner not in (None, facts.role) and not facts.pooled:
        await own.execute(turn.connection, become(settings.owner))
    return Framing(turn.lock.records, facts.writer(settings.tool_version), settings.limits, facts, settings.owner)


def _applied(entries: Iterable[Entry]) -> Iterable[str]:
    return (entry.version for entry in entries if entry.row and entry.row.state is RecordState.APPLIED)


def _refuse_bare(steps: Iterable[Step], by: Lock) -> None:
    """Raise where a step needs a lock that lasts longer than a transaction."""
    for step in steps:
        if step.script.mode is Mode.STATEMENTS and by is not Lock.SESSION:
            why = next((segment.refuses for segment in step.script.segments if segment.refuses), "its directive")
            raise ServerError(
                f"{step.script.source.path} runs outside a transaction ({why}), and there is no lock of a session "
                "here, as behind a pooler; give a DSN that leads straight to the server as direct_dsn, or "
                'lock="session" where the pooler is known to keep sessions apart'
            )
