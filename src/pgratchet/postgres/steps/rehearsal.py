"""Everything that a run would do, in one transaction that is rolled back."""

from collections.abc import Sequence
from uuid import uuid4

import anyio.lowlevel
import asyncpg

from pgratchet.core.errors import MigrationFailedError, UsageError
from pgratchet.core.model import Failure, Finished, Kind, Mode, Step
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.ledger.records import Claim
from pgratchet.postgres.link.lending import lent
from pgratchet.postgres.link.unreadable import unsendable
from pgratchet.postgres.steps import python_steps
from pgratchet.postgres.wire import failures
from pgratchet.postgres.wire.failures import StepError
from pgratchet.postgres.wire.frames import Framing
from pgratchet.postgres.wire.message import Frame, Message, Part, compose
from pgratchet.postgres.wire.progress import Progress
from pgratchet.postgres.wire.sending import Wire


async def run(
    wire: Wire, framing: Framing, history: History, progress: Progress, steps: Sequence[Step]
) -> list[Finished]:
    """Return what was done and undone; `progress` says meanwhile which step a lost session would be charged to.

    Raises UsageError, before anything is done, where a step cannot be undone; MigrationFailedError where one
    fails. Nothing is recorded.
    """
    _refuse(steps)
    connection = wire.connection
    transaction = connection.transaction(isolation="read_committed")
    await transaction.start()
    try:
        async with python_steps.undone(wire, framing):
            seal = await history.hold(connection, (), wire.budget)
            framing = framing._replace(records=framing.records._replace(absent=seal.absent))
            for step in steps:
                claim = Claim(step, uuid4().hex)
                progress.launch((claim,))
                try:
                    await _step(wire, framing, claim)
                except Exception as error:
                    raised = unsendable(error) if connection.is_closed() else error
                    if raised is None:
                        raise
                    cause = raised.cause if isinstance(raised, StepError) else raised
                    failures.raise_if_not_its_turn(framing.records, cause)
                    raise MigrationFailedError(_failure(framing, claim, raised)) from error
    finally:
        if not connection.is_closed():
            await transaction.rollback()
    progress.flying = ()
    return [_finished(step) for step in steps]


def _refuse(steps: Sequence[Step]) -> None:
    for step in steps:
        if step.script.mode is Mode.STATEMENTS:
            why = next((segment.refuses for segment in step.script.segments if segment.refuses), "its directive")
            raise UsageError(
                f"{step.script.source.path} cannot be rehearsed: it runs outside a transaction ({why}), "
                "and could not be rolled back"
            )


async def _step(wire: Wire, framing: Framing, claim: Claim) -> None:
    opening = framing.opening(claim)
    # Deferred again: otherwise the checks of one file's end would hold for all that is left of the transaction.
    closing = framing.closing(claim) + framing.clean + "SET CONSTRAINTS ALL DEFERRED;"
    if claim.step.migration.kind is Kind.PYTHON:
        await wire.send(Message(opening))
        async with lent(wire.connection):
            await python_steps.load(claim.step)(wire.connection)
        await wire.send(Message(closing))
        return
    wire.restart()
    sent: list[Part] = []
    for message in compose([Frame(claim, opening, closing)], framing.marker):
        sent += message.parts
        try:
            with wire.listening():
                await wire.send(message)
        except asyncpg.PostgresError as error:
            # The last notices are handed over one turn of the loop after the error.
            await anyio.lowlevel.checkpoint()
            spot = failures.spot(message, error, failures.reached(sent, claim, wire.marks))
            raised = framing.records.guards.raised(error)
            raise StepError(failures.from_server(claim, error, spot, raised), error) from error


def _failure(framing: Framing, claim: Claim, error: BaseException) -> Failure:
    if isinstance(error, StepError):
        cause, failure = error.cause, error.failure
    else:
        cause, failure = error, failures.from_python(claim, error, framing.records.guards.raised(error))
    if isinstance(cause, asyncpg.UnsafeNewEnumValueUsageError):
        hint = (
            "this is the one thing that cannot be rehearsed: a new enum value can be used only after a COMMIT, "
            "and a rehearsal has none; where the value is added in an earlier file, a real run succeeds"
        )
        return failure._replace(hint=hint)
    return failure


def _finished(step: Step) -> Finished:
    migration = step.migration
    return Finished(migration.version, migration.name, step.direction, step.script.statements, None)
