"""What a run does while it holds the lock: the half of it that most starts never need."""

from collections import deque
from collections.abc import Iterable
from functools import partial

from pgratchet.core.errors import ServerError
from pgratchet.core.halfway import in_flight
from pgratchet.core.model import AppliedMigration, Direction
from pgratchet.core.planning import Phase, plan_up, replaceable
from pgratchet.postgres import backends, concurrent, frames, lock, rehearsal
from pgratchet.postgres.execution import Execution, OvertakenError
from pgratchet.postgres.frames import Facts, Framing
from pgratchet.postgres.history import History
from pgratchet.postgres.sql import Table
from pgratchet.postgres.wire import Wire
from pgratchet.settings import Held


async def turn(held: Held, waiting: deque[Phase]) -> None:
    """Do what the phases say, and drop each as it is done."""
    framing = await _framing(held)
    history = History(held.settings.table)
    if not await history.exists(held.connection):
        await history.create(held.connection)
    await history.grant(held.connection, held.settings.readers)
    execution = Execution(_wire(held, framing), framing, held.progress)
    while waiting:
        entries = await held.look(held.connection, waiting[0].direction)
        if await _let_finish(held, in_flight(entries, waiting[0].direction)):
            continue
        steps = waiting[0].plan(entries).steps
        await concurrent.refuse_unjudged(held.connection, steps)
        try:
            await execution.run(steps, replaceable(entries))
        except OvertakenError:
            continue
        waiting.popleft()


async def rehearse(held: Held, to: str | None) -> None:
    """Do what `up` would do, in one transaction, and roll it back."""
    framing = await _framing(held)
    entries = await held.look(held.connection, Direction.UP)
    steps = plan_up(entries, to).steps
    wire = _wire(held, framing)
    held.progress.finished += await rehearsal.run(wire, framing, steps, replaceable(entries))


async def _let_finish(held: Held, rows: Iterable[AppliedMigration]) -> bool:
    """Return when none of the runners of half-done versions is at work any more; True: one of them was."""
    waited = False
    for row in rows:
        who = partial(backends.runner, held.connection, row)
        waited |= await backends.until_gone(who, held.budget, f"{row.version} {row.name} is half done")
    return waited


def _wire(held: Held, framing: Framing) -> Wire:
    return Wire(held.connection, held.settings.connect, framing.facts.pid, held.budget)


async def _framing(held: Held) -> Framing:
    facts = await frames.facts(held.connection, lock.held(held.settings.table.lock_key))
    refuse_useless(facts, held.settings.table)
    return Framing(held.records, facts.writer(held.settings.tool_version), held.settings.limits, facts)


def refuse_useless(facts: Facts, table: Table) -> None:
    """Raise ServerError where nothing can be done under the lock of a table, or that is not held after all."""
    if not facts.held:
        raise ServerError(
            f"the server does not hold the lock of {table} for this session, although it said so: a pooler in "
            "transaction mode, or an engine without advisory locks; give a DSN that leads straight to the server"
        )
    if facts.standby or facts.read_only:
        what = "a standby" if facts.standby else "read-only"
        raise ServerError(f"the server is {what}: nothing can be applied here; give the DSN of the primary")
