"""Python migrations: a coroutine function, given the run's own connection inside the run's own transaction."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import ModuleType, new_class
from typing import cast

import asyncpg

from pgratchet.core.model import Step
from pgratchet.postgres.failures import StepError, from_python
from pgratchet.postgres.frames import Framing
from pgratchet.postgres.records import DURABLE, Claim
from pgratchet.postgres.session import Connection
from pgratchet.postgres.wire import Wire

Function = Callable[[Connection], Awaitable[object]]
Undo = Callable[[], object]

_UNDONE_BY = {
    "set_type_codec": "reset_type_codec",
    "set_builtin_type_codec": "reset_type_codec",
    "add_listener": "remove_listener",
    "add_log_listener": "remove_log_listener",
    "add_termination_listener": "remove_termination_listener",
    "add_query_logger": "remove_query_logger",
}
"""What sets something in the client's half of a session, where no SQL can take it back, and what does."""

_WHAT = {"typename", "schema", "channel", "callback"}
"""The arguments that say what is set; the others say how."""


def load(step: Step) -> Function:
    """Return the step's function; running the file's top level may raise anything."""
    source = step.script.source
    module = ModuleType(f"pgratchet_migration_{step.migration.version}")
    module.__file__ = source.path
    exec(compile(source.text, source.path, "exec"), module.__dict__)  # noqa: S102 - running the file is the job
    return cast("Function", getattr(module, step.direction))


async def run(wire: Wire, framing: Framing, claim: Claim, *, over_failed: bool) -> None:
    """Run one Python step, claimed and recorded in its own transaction; raises StepError with what it raised."""
    try:
        await _run(wire, framing, claim, over_failed=over_failed)
    except (Exception, SystemExit) as error:
        if wire.connection.is_closed():
            raise
        raise StepError(from_python(claim, error), error) from error


async def _run(wire: Wire, framing: Framing, claim: Claim, *, over_failed: bool) -> None:
    connection = wire.connection
    function = load(claim.step)
    # asyncpg opens the transaction itself: it would not know of a BEGIN of ours, and a transaction() in the
    # migration would then not be a savepoint.
    async with lent(connection), connection.transaction(isolation="read_committed"), undone(wire, framing):
        await connection.execute(framing.opening(claim, over_failed=over_failed))
        await wire.watch(partial(function, connection))
        # Cleaned before COMMIT, after which a pooler may hand the session to somebody else.
        await connection.execute(framing.closing(claim, durable=False) + framing.clean + DURABLE)


@asynccontextmanager
async def lent(connection: Connection) -> AsyncIterator[None]:
    """Take back the codecs and listeners that the block sets: what runs next may run in another session as well."""
    noted: list[Undo] = []
    plain = type(connection)
    # asyncpg does not say what is set, its connections take no attributes, and a wrapper would be no Connection.
    connection.__class__ = _noting(plain, noted)
    try:
        yield
    except Exception:
        connection.__class__ = plain
        await _take_back(connection, noted)
        raise
    finally:
        connection.__class__ = plain
    await _take_back(connection, noted)


async def _take_back(connection: Connection, noted: list[Undo]) -> None:
    while noted and not connection.is_closed():
        # The type may be gone; and what has been committed does not fail any more.
        with suppress(ValueError, asyncpg.PostgresError, asyncpg.InterfaceError):
            undoing = noted.pop()()
            if inspect.isawaitable(undoing):
                await undoing


def _noting(plain: type[Connection], noted: list[Undo]) -> type[Connection]:
    """Return the same class, but that it notes how to take back what is set."""

    def noting(name: str) -> Callable[..., object]:
        def method(connection: Connection, *arguments: object, **more: object) -> object:
            what = {key: more[key] for key in _WHAT & more.keys()}
            noted.append(partial(getattr(connection, _UNDONE_BY[name]), *arguments, **what))
            return getattr(plain, name)(connection, *arguments, **more)

        return method

    methods = {name: noting(name) for name in _UNDONE_BY}
    made = new_class(plain.__name__, (plain,), exec_body=lambda body: body.update(methods, __slots__=()))
    return cast("type[Connection]", made)


@asynccontextmanager
async def undone(wire: Wire, framing: Framing) -> AsyncIterator[None]:
    """Roll back and clean in one message, for the same reason, where the block raises inside a transaction().

    asyncpg's own ROLLBACK would come too early. Cancelled, there is no time for a message: a pooler ends the
    session of a client that is gone in mid-transaction.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception | SystemExit) and not wire.connection.is_closed():
            await wire.roll_back(framing.reset)
        elif framing.facts.pooled:
            wire.connection.terminate()
        raise
