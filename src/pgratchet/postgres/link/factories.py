"""Functions of the application that make connections, and the checks of their results."""

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from weakref import WeakSet

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from pgratchet.core.causes import sole, told
from pgratchet.core.errors import PgratchetError, ServerError, UsageError
from pgratchet.core.masking import Hidden, discreet
from pgratchet.postgres.link.cancelling import OwnCancellationError, shieldable

Factory = Callable[[], Awaitable[Any]]

_WANTED = "an async function that returns a new connection of asyncpg at each call, as asyncpg.connect() makes them"


def refuse_uncallable(factory: Hidden[Factory]) -> None:
    """Raise UsageError for a value that is no function, such as a connection."""
    if not callable(factory.reveal()):
        raise UsageError(f"connect is of the type {_type(factory)}; it must be {_WANTED}")


async def made_by(factory: Hidden[Factory], known: WeakSet[Any]) -> Any:
    """Return a factory's new connection, and add it to the `known` ones.

    Raises UsageError for a connection that a run may not use alone and close, ServerError for an error of the factory.
    An error that says that there is no server is raised as it is, with a note that names the factory.
    """
    name = f"the factory {_name(factory)}, given as connect,"
    try:
        made = Hidden(await shieldable(lambda: _awaitable(factory, name).reveal()))
    except (Exception, BaseExceptionGroup) as error:
        whole = error.cancellation if isinstance(error, OwnCancellationError) else error
        raised = sole(whole)
        if isinstance(raised, PgratchetError):
            raise raised from raised.__cause__
        if isinstance(raised, asyncpg.PostgresError | asyncpg.TargetServerAttributeNotMatched | OSError):
            note = f"{name} raised it"
            if note not in getattr(raised, "__notes__", ()):  # it may be the same one each time
                raised.add_note(note)
            raise raised from raised.__cause__
        text = discreet(" ".join(told(whole).split()))
        raise ServerError(f"{name} raised {text}") from error
    await _refuse_unusable(made, known, name)
    known.add(made.reveal())
    return made.reveal()


def _awaitable(factory: Hidden[Factory], name: str) -> Hidden[Awaitable[Any]]:
    returned = Hidden(factory.reveal()())
    if not inspect.isawaitable(returned.reveal()):
        raise UsageError(f"{name} returns a value of the type {_type(returned)} at once; it must be {_WANTED}")
    return returned


async def _refuse_unusable(made: Hidden[Any], known: WeakSet[Any], name: str) -> None:
    # Not all of these are of the classes that asyncpg's own isinstance() says they are of.
    if issubclass(made.reveal().__class__, PoolConnectionProxy):
        await _give_back(made)
        raise UsageError(f"{name} returned a connection of a pool, which is not a run's to close; it must be {_WANTED}")
    if not issubclass(made.reveal().__class__, asyncpg.Connection):
        raise UsageError(f"{name} returned a value of the type {_type(made)}; it must be {_WANTED}")
    if made.reveal() in known or made.reveal().is_closed():
        raise UsageError(f"{name} returned a connection that is used already, or closed; it must be {_WANTED}")


async def _give_back(made: Hidden[Any]) -> None:
    # There is no public way from a connection to its pool, whose close() would wait for it.
    await made.reveal()._holder._pool.release(made.reveal())  # noqa: SLF001 - see above


def _name(factory: Hidden[Any]) -> str:
    """Return a function's name, without the arguments of a partial: they may be passwords."""
    if isinstance(factory.reveal(), partial):
        return _name(Hidden(factory.reveal().func))
    called = factory.reveal() if hasattr(factory.reveal(), "__qualname__") else type(factory.reveal())
    return f"{called.__module__}.{called.__qualname__}"


def _type(value: Hidden[Any]) -> str:
    return type(value.reveal()).__name__
