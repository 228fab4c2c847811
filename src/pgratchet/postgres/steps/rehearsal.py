"""A rehearsal: all steps of a run in one transaction, which is rolled back."""

from collections.abc import Sequence
from uuid import uuid4

import anyio.lowlevel
import asyncpg

from pgratchet.core.errors import MigrationFailedError, UsageError
from pgratchet.core.model import Failure, Kind, Step
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.ledger.records import Claim
from pgratchet.postgres.link.lending import lent
from pgratchet.postgres.steps import execution, python_steps, statement_by_statement
from pgratchet.postgres.wire import failures
from pgratchet.postgres.wire.failures import StepError
from pgratchet.postgres.wire.message import Frame, Framing, Message, Part, compose
from pgratchet.postgres.wire.progress import Progress
from pgratchet.postgres.wire.sending import Wire


async def rehearse(wire: Wire, framing: Framing, history: History, progress: Progress, steps: Sequence[Step]) -> None:
    """Do the steps, undo them, and report them; nothing is recorded.

    Raises UsageError, before anything is done, if a step cannot be undone; MigrationFailedError if one fails.
    """
    if (bare := statement_by_statement.first_bare(steps)) is not None:
        path, why = bare
        raise UsageError(
            f"{path} cannot be rehearsed: it runs outside a transaction ({why}), and could not be rolled back"
        )
    with wire.listening():
        try:
            await _rehearse(wire, framing, history, progress, steps)
        except MigrationFailedError as error:
            cause = error.__cause__
            if framing.facts.plpgsql and failures.is_of_plpgsql(cause):
                # A marker may have failed, of which only a rehearsal without markers knows.
                await _rehearse(wire, framing.without_plpgsql(), history, progress, steps)
                return
            if isinstance(cause, asyncpg.PostgresError):
                (claim,) = progress.unanswered
                failure = await execution.attributed(wire, framing, claim, error.failure, cause)
                raise MigrationFailedError(failure) from cause
            raise


async def _rehearse(wire: Wire, framing: Framing, history: History, progress: Progress, steps: Sequence[Step]) -> None:
    connection = wire.connection
    transaction = connection.transaction(isolation="read_committed")
    await transaction.start()
    try:
        async with python_steps.cleaned_after_error(wire, framing):
            seal = await history.hold(connection, (), wire.budget)
            framing = framing._replace(records=framing.records._replace(absent=seal.absent))
            for step in steps:
                claim = Claim(step, uuid4().hex)
                # If the session is lost again and again, this is the step to blame.
                progress.unanswered = (claim,)
                progress.attempts += 1
                try:
                    with python_steps.failing(wire, framing, claim):
                        await _step(wire, framing, claim)
                except StepError as error:
                    failures.raise_if_not_its_turn(framing.records, error.cause)
                    raise MigrationFailedError(_failure(error)) from error.cause
    finally:
        if not connection.is_closed():
            await transaction.rollback()
    progress.unanswered = ()
    for step in steps:
        execution.report(progress, step, None)


async def _step(wire: Wire, framing: Framing, claim: Claim) -> None:
    opening = framing.opening(claim)
    # Deferred again: SET CONSTRAINTS ALL IMMEDIATE at the end of one file would hold for all later ones.
    closing = framing.closing(claim) + framing.clean + "SET CONSTRAINTS ALL DEFERRED;"
    limits = framing.limits.of(claim.step.script.source.options)
    wire.begin((claim,), limits.lock_timeout)
    if claim.step.migration.kind is Kind.PYTHON:
        try:
            await wire.send(Message(opening))
            with python_steps.loaded(claim.step) as function:
                async with lent(wire.connection):
                    await function(wire.connection)
            await wire.send(Message(closing))
        except asyncpg.PostgresError:
            await anyio.lowlevel.checkpoint()  # as below
            raise
        return
    sent: list[Part] = []
    for message in compose([Frame(claim, opening, closing)], framing.marker):
        sent += message.parts
        try:
            await wire.send(message)
        except asyncpg.PostgresError as error:
            # asyncpg hands over the last notices one iteration of the event loop after the error.
            await anyio.lowlevel.checkpoint()
            reached = failures.reached(sent, claim, wire.marks)
            crossed = wire.crossed if framing.marker else None
            failure = failures.from_message(claim, error, message, reached, framing.records, crossed)
            raise StepError(failure, error) from error


def _failure(error: StepError) -> Failure:
    if isinstance(error.cause, asyncpg.UnsafeNewEnumValueUsageError):
        hint = (
            "this is the one thing that cannot be rehearsed: a new enum value can be used only after a COMMIT, "
            "and a rehearsal has none; where the value is added in an earlier file, a real run succeeds"
        )
        return error.failure._replace(hint=hint)
    return error.failure
