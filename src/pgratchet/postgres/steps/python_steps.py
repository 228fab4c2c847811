"""Python migrations: coroutine functions that get the run's own connection, inside the run's own transaction."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import cast

from pgratchet.core.causes import sole
from pgratchet.core.model import Step
from pgratchet.postgres.ledger.records import DURABLE, Claim
from pgratchet.postgres.link import own
from pgratchet.postgres.link.cancelling import OwnCancellationError, shieldable
from pgratchet.postgres.link.lending import lent
from pgratchet.postgres.link.own import unsendable
from pgratchet.postgres.link.session import Connection
from pgratchet.postgres.steps.modules import imported
from pgratchet.postgres.wire.failures import StepError, from_python
from pgratchet.postgres.wire.message import Framing
from pgratchet.postgres.wire.sending import Wire

Function = Callable[[Connection], Awaitable[object]]

ERRORS = (Exception, SystemExit, BaseExceptionGroup)
"""The errors of a migration itself; a cancellation is none."""


@contextmanager
def loaded(step: Step) -> Iterator[Function]:
    """Yield the step's function, in which anyio's shields hold; running the file's top level may raise anything."""
    with imported(step.script.source) as module:
        function = cast("Function", getattr(module, step.direction))
        yield lambda connection: shieldable(partial(function, connection))


async def run_function(wire: Wire, framing: Framing, claim: Claim) -> None:
    """Run one Python step, claimed and recorded in its own transaction; raises StepError with the error it raised."""
    connection = wire.connection
    with failing(wire, framing, claim), loaded(claim.step) as function:
        # asyncpg opens the transaction itself: it would not know of a BEGIN of ours, and a transaction() in the
        # migration would then not be a savepoint.
        async with (
            lent(connection),
            connection.transaction(isolation="read_committed"),
            cleaned_after_error(wire, framing),
        ):
            await own.execute(connection, framing.opening(claim))
            await wire.watch(partial(function, connection))
            # Cleaned before COMMIT, after which a pooler may give the session to another client.
            await own.execute(connection, framing.closing(claim, durable=False) + framing.clean + DURABLE)


@contextmanager
def failing(wire: Wire, framing: Framing, claim: Claim) -> Iterator[None]:
    """Raise StepError for an error of the step's own in the block; the error of a lost session stays as it is."""
    try:
        yield
    except StepError:
        raise
    except ERRORS as error:
        reason = sole(error.cancellation if isinstance(error, OwnCancellationError) else error)
        raised = unsendable(reason) if wire.connection.is_closed() else reason
        if raised is None:
            raise
        failure = from_python(claim, error, raised, framing.records, wire.crossed if framing.marker else None)
        raise StepError(failure, raised) from error


@asynccontextmanager
async def cleaned_after_error(wire: Wire, framing: Framing) -> AsyncIterator[None]:
    """Roll back and clean the session in one message if the block, inside a transaction(), raises an error.

    asyncpg's own ROLLBACK would come before the cleaning, and a pooler may give the session to another client then.
    A cancellation leaves no time for a message: a pooler ends the session of a client that is gone in mid-transaction.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, ERRORS) and not wire.connection.is_closed():
            await wire.roll_back(framing.reset)
        elif framing.facts.pooled:
            wire.connection.terminate()
        raise
