"""Everything that a run would do, in one transaction that is rolled back."""

from collections.abc import Sequence
from uuid import uuid4

import asyncpg

from pgratchet.core.errors import MigrationFailedError, UsageError
from pgratchet.core.model import Failure, Finished, Kind, Mode, Step
from pgratchet.postgres import failures, python_steps
from pgratchet.postgres.failures import StepError
from pgratchet.postgres.frames import CLEAN, Framing
from pgratchet.postgres.history import History
from pgratchet.postgres.message import Frame, compose
from pgratchet.postgres.records import Claim
from pgratchet.postgres.session import Connection


async def run(
    connection: Connection, framing: Framing, steps: Sequence[Step], failed: frozenset[str]
) -> list[Finished]:
    """Return what was done and undone.

    Raises UsageError, before anything is done, where a step cannot be undone; MigrationFailedError where one
    fails. Nothing is recorded.
    """
    _refuse(steps)
    transaction = connection.transaction(isolation="read_committed")
    await transaction.start()
    try:
        history = History(framing.records.table)
        if not await history.exists(connection):
            await history.create(connection)
        for step in steps:
            claim = Claim(step, uuid4().hex)
            try:
                await _step(connection, framing, claim, over_failed=step.migration.version in failed)
            except Exception as error:
                if connection.is_closed():
                    raise
                raise MigrationFailedError(_failure(claim, error)) from error
    finally:
        if not connection.is_closed():
            await transaction.rollback()
    return [_finished(step) for step in steps]


def _refuse(steps: Sequence[Step]) -> None:
    for step in steps:
        if step.script.mode is Mode.STATEMENTS:
            why = next((segment.refuses for segment in step.script.segments if segment.refuses), "its directive")
            raise UsageError(
                f"{step.script.source.path} cannot be rehearsed: it runs outside a transaction ({why}), "
                "and could not be rolled back"
            )


async def _step(connection: Connection, framing: Framing, claim: Claim, *, over_failed: bool) -> None:
    opening = framing.opening(claim, over_failed=over_failed)
    closing = framing.closing(claim) + CLEAN
    if claim.step.migration.kind is Kind.PYTHON:
        await connection.execute(opening)
        await python_steps.load(claim.step)(connection)
        await connection.execute(closing)
    else:
        for message in compose([Frame(claim, opening, closing)], markers=False):
            try:
                await connection.execute(message.text)
            except asyncpg.PostgresError as error:
                reached = message.parts[0] if len(message.parts) == 1 else None
                spot = failures.spot(message, error, reached)
                raise StepError(failures.from_server(claim, error, spot), error) from error


def _failure(claim: Claim, error: Exception) -> Failure:
    cause = error.cause if isinstance(error, StepError) else error
    failure = error.failure if isinstance(error, StepError) else failures.from_python(claim, error)
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
