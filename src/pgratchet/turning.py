"""What a run does while it holds the lock: the half of it that most starts never need."""

import platform
from collections import deque
from collections.abc import Iterable

from pgratchet.core.errors import ServerError
from pgratchet.core.model import Direction, Entry
from pgratchet.core.planning import Phase, failures, plan_up
from pgratchet.postgres import frames, lock, rehearsal
from pgratchet.postgres.execution import Execution, OvertakenError
from pgratchet.postgres.frames import Facts, Framing
from pgratchet.postgres.history import History
from pgratchet.postgres.records import Writer
from pgratchet.postgres.session import NotPrimaryError, settings_sql
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
        try:
            await execution.run(waiting[0].plan(entries).steps, _failed_versions(entries))
        except OvertakenError:
            continue
        waiting.popleft()


async def rehearse(held: Held, to: str | None) -> None:
    """Do what `up` would do, in one transaction, and roll it back."""
    framing = await _framing(held)
    entries = await held.look(held.connection, Direction.UP)
    steps = plan_up(entries, to).steps
    wire = _wire(held, framing)
    held.progress.finished += await rehearsal.run(wire, framing, steps, _failed_versions(entries))


def _wire(held: Held, framing: Framing) -> Wire:
    return Wire(held.connection, held.settings.connect, framing.facts.pid, held.budget)


async def _framing(held: Held) -> Framing:
    facts = await frames.facts(held.connection, lock.held(held.settings.table.lock_key))
    refuse_useless(facts, held.settings.table)
    if not facts.prepared:
        await held.connection.execute(settings_sql())
    writer = Writer(f"{facts.role}@{platform.node()} {facts.application}", facts.started, held.settings.tool_version)
    return Framing(held.records, writer, held.settings.limits, facts)


def _failed_versions(entries: Iterable[Entry]) -> frozenset[str]:
    return frozenset(row.version for row in failures(entries))


def refuse_useless(facts: Facts, table: Table) -> None:
    """Raise ServerError where nothing can be applied in a session that was told it has the lock."""
    if not facts.held:
        raise ServerError(
            f"the server does not hold the lock of {table} for this session, although it said so: a pooler in "
            "transaction mode, or an engine without advisory locks; give a DSN that leads straight to the server"
        )
    if facts.standby or facts.read_only:
        what = "a standby" if facts.standby else "read-only"
        raise NotPrimaryError(f"the server is {what}: nothing can be applied here; give the DSN of the primary")
