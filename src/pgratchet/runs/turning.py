"""The work of a run while it may change the schema. Most starts need none of this."""

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial

from pgratchet.core.arguments import spelled
from pgratchet.core.errors import FilesError, HistoryError, MigrationFailedError, ServerError
from pgratchet.core.model import Direction, Entry, Failure, HistoryRow, Kind, Lock, Mode, RecordState, Step
from pgratchet.core.plan.halfway import HALF_DONE, refuse_unrecoverable, taken_over
from pgratchet.core.plan.planning import Phase, plan_up
from pgratchet.core.sql.dialects import misread_by_default
from pgratchet.postgres.ledger import lock
from pgratchet.postgres.ledger.trust import Inspection
from pgratchet.postgres.link import own
from pgratchet.postgres.link.own import Guard
from pgratchet.postgres.link.session import APPLICATION, last_words, set_parameters
from pgratchet.postgres.link.sql import become
from pgratchet.postgres.steps import execution, rehearsal, statement_by_statement
from pgratchet.postgres.wire import backends
from pgratchet.postgres.wire.failures import OvertakenError
from pgratchet.postgres.wire.message import Framing, facts
from pgratchet.postgres.wire.progress import Progress
from pgratchet.postgres.wire.sending import Blockers, Wire
from pgratchet.runs.turn import Turn

_log = logging.getLogger("pgratchet")

MOST_LOSSES = 5
"""A step that loses this many sessions in a row has failed."""

MOST_CONTRADICTIONS = 5
"""How often the server may say that the history has changed, while each look at it reads the same."""


async def carry_out(turn: Turn, phases: deque[Phase]) -> None:
    """Carry the phases out, and drop each that is done.

    Raises BusyError if another runner is at work, which is possible if no lock is held from step to step.
    """
    wire, framing = await _prepared(turn)
    history, observer = turn.settings.history, turn.observer
    readers = (*turn.settings.readers, *framing.facts.readers)
    executing = execution.Execution(wire, framing, turn.progress)
    overtaken: list[tuple[HistoryRow | None, ...]] = []
    found: Inspection | None = framing.facts.found
    while phases:
        direction = phases[0].direction
        records = turn.lock.records
        seal, found = await history.ensure(turn.connection, readers, turn.budget, found, records.absent), None
        turn.lock.records = records._replace(
            check=seal.check(records.guards),
            check_claim=seal.check(records.guards, {Guard.SESSION: framing.facts.is_up_to_date}),
            absent=seal.absent,
        )
        entries = await _look_again(turn)
        waited = False
        for row in taken_over(entries, direction):
            runner = partial(backends.runner, turn.connection, row, history)
            waited |= await backends.until_gone(runner, turn.budget, f"{row.version} {row.name} is half done")
        if waited:
            continue
        steps, warnings = phases[0].plan(entries)
        observer.raise_new_failure(step.migration.version for step in steps)
        _refuse_misread(turn, steps)
        if records.lock is not Lock.SESSION:
            _refuse_bare(steps)
        refuse_unrecoverable(steps)
        if not overtaken:
            for warning in warnings:
                _log.warning("%s", warning)
        applied = [entry.version for entry in entries if entry.row and entry.row.state is RecordState.APPLIED]
        try:
            with turn.budget.watch.working():
                await executing.carry_out(turn.lock.records, steps, applied)
        except OvertakenError:
            overtaken.append(tuple(entry.row for entry in entries))
            _refuse_contradiction(overtaken)
            await turn.budget.poll("another runner has been at work")
            continue
        phases.popleft()


async def rehearse(turn: Turn, to: str | None) -> None:
    """Do everything that `up` would do, in one transaction, and roll it back."""
    wire, framing = await _prepared(turn)
    entries = await _look_again(turn)
    taken_over(entries, Direction.UP)
    steps = plan_up(entries, to).steps
    _refuse_misread(turn, steps)
    turn.observer.raise_new_failure(step.migration.version for step in steps)
    await rehearsal.rehearse(wire, framing, turn.settings.history, turn.progress, steps)


async def _prepared(turn: Turn) -> tuple[Wire, Framing]:
    """Return the turn's session in use, with our settings and role, and the framing of its steps.

    Raises ServerError if nothing can be changed in it.
    """
    connection, settings, by = turn.connection, turn.settings, turn.lock.records.lock
    key, owner, records = settings.history.table.lock_key, settings.history.owner, turn.lock.records
    held = lock.HELD.format(key=key) if by is Lock.SESSION else None
    known = await facts(connection, settings.history, held, settings.tool_version)
    if not known.prepared:
        # In a pooler's session only for this statement: it shows which ones the server refuses.
        name = known.application or APPLICATION
        known = known._replace(refused=await set_parameters(connection, local=known.pooled, name=name))
    if owner not in (None, known.role) and not known.pooled:
        await own.execute(connection, become(owner))
    worker = None if by is Lock.TRANSACTION or known.pooled else known.pid
    blockers = Blockers(settings.direct, key, worker, turn.budget.tell)
    wire = Wire(connection, blockers, turn.budget, turn.progress, records.guards.sign)
    return wire, Framing.of(records, settings.limits, known, owner)


async def _look_again(turn: Turn) -> tuple[Entry, ...]:
    """Return both sides of every version, now that nobody else may change the history; only this look decides.

    Raises BusyError if no lock is held yet and another runner is at work, MigrationFailedError for a step that has lost
    its session too often.
    """
    progress = turn.progress
    if progress.unanswered:
        finished = len(progress.finished)
        await execution.resolve(turn.connection, turn.lock.records, progress, turn.budget)
        if len(progress.finished) == finished and len(progress.losses) >= MOST_LOSSES:
            # The step may be the reason for the loss: tried for ever, it would end the server each time. Not before the
            # history was asked: it may have been committed in the session that was lost last.
            raise _lost_too_often(progress)
        # The steps that were not done are planned again.
        progress.unanswered = ()
    entries = await turn.observer.look(turn.connection)
    if progress.finished:
        turn.observer.drop_lost()
    if any(entry.row and entry.row.state in HALF_DONE for entry in entries):
        await turn.lock.raise_if_busy(turn.connection)
    return entries


def _lost_too_often(progress: Progress) -> MigrationFailedError:
    step = progress.unanswered[0].step
    migration, path = step.migration, step.script.source.path
    said = last_words(progress.losses[-1])
    message = f"{progress.losses[-1]}; this happened {len(progress.losses)} times in a row while the step ran"
    failure = Failure(migration.version, migration.name, step.direction, path, message, step.script.mode)
    if said is not None:
        failure = failure._replace(sqlstate=said.sqlstate, detail=said.detail, hint=said.hint)
    return MigrationFailedError(failure, progress.finished)


def _refuse_contradiction(seen: Sequence[tuple[HistoryRow | None, ...]]) -> None:
    """Raise HistoryError if the last looks have read the same, and the server said each time that it has changed."""
    last = seen[-MOST_CONTRADICTIONS:]
    if len(last) == MOST_CONTRADICTIONS and all(each == last[0] for each in last):
        raise HistoryError(
            f"the history has read the same {MOST_CONTRADICTIONS} times in a row, and each time the server said, as a "
            "migration began, that it had changed since: something shows this run another history than the one that it "
            "writes, such as a pooler that reads from a standby, or row level security"
        )


def _refuse_misread(turn: Turn, steps: Iterable[Step]) -> None:
    """Raise FilesError for each script that psql would read otherwise in such a session."""
    if getattr(turn.connection.get_settings(), "standard_conforming_strings", "on") != "off":
        return
    problems = [
        problem
        for step in steps
        if step.migration.kind is Kind.SQL
        and (problem := misread_by_default(step.script.source, at_once=step.script.mode is Mode.TRANSACTION))
    ]
    if problems:
        raise FilesError(problems)


def _refuse_bare(steps: Iterable[Step]) -> None:
    """Raise ServerError if a step needs a lock that lasts longer than a transaction."""
    if (bare := statement_by_statement.first_bare(steps)) is not None:
        path, why = bare
        raise ServerError(
            f"{path} runs outside a transaction ({why}), and there is no lock of a session "
            f"here, as behind a pooler; give a DSN that leads straight to the server as {spelled('direct_dsn')}, or "
            f"{spelled('lock', 'session')} where the pooler is known to keep sessions apart"
        )
