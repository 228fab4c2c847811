"""What a run does while it holds the lock: the half of it that most starts never need."""

import platform
from collections import deque
from collections.abc import Iterable

from pgratchet.core import planning
from pgratchet.core.errors import ServerError
from pgratchet.core.model import Direction, Entry
from pgratchet.postgres import frames, rehearsal
from pgratchet.postgres.execution import Execution, OvertakenError
from pgratchet.postgres.frames import Facts, Framing
from pgratchet.postgres.history import History
from pgratchet.postgres.records import Writer
from pgratchet.postgres.session import Connection
from pgratchet.postgres.sql import Table
from pgratchet.postgres.wire import Wire
from pgratchet.run import Phase, Run, failures


async def turn(run: Run, connection: Connection, waiting: deque[Phase]) -> None:
    """Do what the phases say, and drop each as it is done."""
    framing = await _framing(run, connection)
    history = History(run.settings.table)
    if not await history.exists(connection):
        await history.create(connection)
    await history.grant(connection, run.settings.readers)
    wire = Wire(connection, run.settings.connect, framing.facts.pid, run.budget)
    execution = Execution(wire, framing, run.progress)
    while waiting:
        entries = await run.look_under_lock(connection, waiting[0].direction)
        try:
            await execution.run(waiting[0].plan(entries).steps, _failed_versions(entries))
        except OvertakenError:
            continue
        waiting.popleft()


async def rehearse(run: Run, connection: Connection, to: str | None) -> None:
    """Do what `up` would do, in one transaction, and roll it back."""
    framing = await _framing(run, connection)
    entries = await run.look_under_lock(connection, Direction.UP)
    steps = planning.plan_up(entries, to).steps
    run.progress.finished += await rehearsal.run(connection, framing, steps, _failed_versions(entries))


async def _framing(run: Run, connection: Connection) -> Framing:
    facts = await frames.facts(connection, run.records.lock_held)
    _refuse_useless(facts, run.settings.table)
    writer = Writer(f"{facts.role}@{platform.node()} {facts.application}", facts.started, run.settings.tool_version)
    return Framing(run.records, writer, run.settings.limits, facts)


def _failed_versions(entries: Iterable[Entry]) -> frozenset[str]:
    return frozenset(row.version for row in failures(entries))


def _refuse_useless(facts: Facts, table: Table) -> None:
    if not facts.held:
        raise ServerError(
            f"the server does not hold the lock of {table} for this session, although it said so: a pooler in "
            "transaction mode, or an engine without advisory locks; give a DSN that leads straight to the server"
        )
    if facts.standby or facts.read_only:
        what = "a standby" if facts.standby else "read-only"
        raise ServerError(f"the server is {what}: nothing can be applied here; give the DSN of the primary")
