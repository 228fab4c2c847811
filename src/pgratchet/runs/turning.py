"""What a run does while it holds the lock: the half of it that most starts never need."""

from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial

from pgratchet.core.errors import HistoryError, ServerError
from pgratchet.core.model import AppliedMigration, Direction, Entry, Lock, Mode, RecordState, Step
from pgratchet.core.plan.doubt import refuse_unjudged
from pgratchet.core.plan.halfway import in_flight
from pgratchet.core.plan.planning import Phase, failures, plan_up, replaceable
from pgratchet.postgres.ledger import lock
from pgratchet.postgres.link import own
from pgratchet.postgres.link.session import settings_sql
from pgratchet.postgres.link.sql import become
from pgratchet.postgres.steps import rehearsal
from pgratchet.postgres.steps.execution import Execution
from pgratchet.postgres.wire import backends, frames
from pgratchet.postgres.wire.failures import OvertakenError
from pgratchet.postgres.wire.frames import Facts, Framing
from pgratchet.postgres.wire.sending import Wire
from pgratchet.postgres.wire.watch import Blockers
from pgratchet.runs.settings import Held

MOST_CONTRADICTIONS = 5
"""How often what is read may contradict what the server says of it, without a change in between."""


async def turn(held: Held, waiting: deque[Phase]) -> None:
    """Do what the phases say, and drop each as it is done."""
    framing = await _framing(held)
    settings = held.settings
    readers = settings.readers_of(framing.facts.login)
    execution = Execution(_wire(held, framing.facts), framing, held.progress)
    overtaken: list[tuple[AppliedMigration | None, ...]] = []
    while waiting:
        records = await held.ensure(held.connection, readers)
        entries = await held.look(held.connection, waiting[0].direction)
        if await _let_finish(held, in_flight(entries, waiting[0].direction)):
            continue
        steps = waiting[0].plan(entries).steps
        held.heed(_failures(entries, steps))
        _refuse_bare(steps, held.lock)
        refuse_unjudged(steps)
        try:
            await execution.run(records, steps, _applied(entries), replaceable(entries))
        except OvertakenError:
            overtaken.append(tuple(entry.applied for entry in entries))
            _refuse_contradiction(overtaken)
            await held.budget.poll("another runner has been at work")
            continue
        waiting.popleft()


async def rehearse(held: Held, to: str | None) -> None:
    """Do what `up` would do, in one transaction, and roll it back."""
    framing = await _framing(held)
    entries = await held.look(held.connection, Direction.UP)
    steps = plan_up(entries, to).steps
    held.heed(_failures(entries, steps))
    wire, history = _wire(held, framing.facts), held.settings.history
    done = await rehearsal.run(wire, framing, history, held.progress, steps, replaceable(entries))
    held.progress.finished += done


def _refuse_contradiction(seen: Sequence[tuple[AppliedMigration | None, ...]]) -> None:
    """Raise HistoryError where a run has read the same so many times, and was told each time that it has changed."""
    last = seen[-MOST_CONTRADICTIONS:]
    if len(last) == MOST_CONTRADICTIONS and all(each == last[0] for each in last):
        raise HistoryError(
            f"the history has read the same {MOST_CONTRADICTIONS} times in a row, and each time the server said, as a "
            "migration began, that it had changed since: something shows this run another history than the one that it "
            "writes, such as a pooler that reads from a standby, or row level security"
        )


def _failures(entries: Iterable[Entry], steps: Iterable[Step]) -> list[AppliedMigration]:
    """Return the rows of what has failed, of that which is to be done."""
    versions = {step.migration.version for step in steps}
    return failures(entry for entry in entries if entry.version in versions)


async def _let_finish(held: Held, rows: Iterable[AppliedMigration]) -> bool:
    """Return when none of the runners of half-done versions is at work any more; True: one of them was."""
    waited = False
    for row in rows:
        who = partial(backends.runner, held.connection, row, held.settings.owner)
        waited |= await backends.until_gone(who, held.budget, f"{row.version} {row.name} is half done")
    return waited


def _wire(held: Held, facts: Facts) -> Wire:
    by_lock = held.lock is Lock.TRANSACTION or facts.pooled
    settings = held.settings
    blockers = Blockers(settings.direct, settings.table.lock_key, None if by_lock else facts.pid)
    return Wire(held.connection, blockers, held.budget, held.progress.tell, held.records.marker)


async def _framing(held: Held) -> Framing:
    session = held.lock is Lock.SESSION
    condition = lock.held(held.settings.table.lock_key) if session else None
    facts = await frames.facts(held.connection, condition, held.settings.owner)
    frames.refuse_useless(facts)
    settings = held.settings
    if not (facts.prepared or facts.pooled):
        await own.execute(held.connection, settings_sql())
    if settings.owner not in (None, facts.role) and not facts.pooled:
        await own.execute(held.connection, become(settings.owner))
    return Framing(held.records, facts.writer(settings.tool_version), settings.limits, facts, settings.owner)


def _applied(entries: Iterable[Entry]) -> Iterable[str]:
    return (entry.version for entry in entries if entry.applied and entry.applied.state is RecordState.APPLIED)


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
