"""Connections that can be lent to a migration: its changes to the client's half of a session are taken back."""

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial, wraps
from typing import Any

import asyncpg

from pgratchet.core.errors import UsageError


class Lendable(asyncpg.Connection):
    """asyncpg's connection, which is `Lent` for a while; `undo` takes back the codecs and listeners set meanwhile."""

    __slots__ = ("undo",)

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.undo: list[Callable[[], object]] = []


def _still_read(method: Any) -> Any:
    """Return a method of asyncpg's that raises UsageError where a borrower has changed the encoding.

    asyncpg goes on to read UTF-8, and waits for ever when it cannot read the error in preparing a query.
    """

    @wraps(method)
    async def call(borrowed: "Lent", *arguments: Any, **how: Any) -> Any:
        answer = await method(borrowed, *arguments, **how)
        settings = borrowed.get_settings()
        if settings.get_text_codec().name != "utf-8":
            encoding = settings.client_encoding
            raise UsageError(f"client_encoding was changed to {encoding}: leave it, as asyncpg reads nothing but UTF-8")
        return answer

    return call


class Lent(Lendable):
    """A connection while a migration has it. asyncpg has no list of codecs and listeners: `undo` notes each."""

    __slots__ = ()

    execute = _still_read(asyncpg.Connection.execute)
    fetch = _still_read(asyncpg.Connection.fetch)
    fetchrow = _still_read(asyncpg.Connection.fetchrow)
    fetchval = _still_read(asyncpg.Connection.fetchval)

    async def set_type_codec(self, typename: str, *, schema: str = "public", **how: Any) -> None:
        """Set a codec, and note how to reset it; the other methods do the same for theirs."""
        self.undo.append(partial(self.reset_type_codec, typename, schema=schema))
        await super().set_type_codec(typename, schema=schema, **how)

    async def set_builtin_type_codec(self, typename: str, *, schema: str = "public", **how: Any) -> None:
        """See above."""
        self.undo.append(partial(self.reset_type_codec, typename, schema=schema))
        await super().set_builtin_type_codec(typename, schema=schema, **how)

    async def add_listener(self, channel: str, callback: Any) -> None:
        """See above."""
        self.undo.append(partial(self.remove_listener, channel, callback))
        await super().add_listener(channel, callback)

    def add_log_listener(self, callback: Any) -> None:
        """See above."""
        self.undo.append(partial(self.remove_log_listener, callback))
        super().add_log_listener(callback)

    def add_termination_listener(self, callback: Any) -> None:
        """See above."""
        self.undo.append(partial(self.remove_termination_listener, callback))
        super().add_termination_listener(callback)

    def add_query_logger(self, callback: Any) -> None:
        """See above."""
        self.undo.append(partial(self.remove_query_logger, callback))
        super().add_query_logger(callback)


@asynccontextmanager
async def lent(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Take back the codecs and listeners that the block sets: the next step may run in another session as well.

    A connection that another factory has made is left as it is.
    """
    # Not by isinstance(), to which asyncpg says that each of its connections is one of every class of them.
    if type(connection) is not Lendable:
        yield
        return
    connection.__class__ = Lent
    try:
        yield
    except Exception:
        await _take_back(connection)
        raise
    await _take_back(connection)


async def _take_back(connection: Lendable) -> None:
    connection.__class__ = Lendable
    while connection.undo and not connection.is_closed():
        # The type may be gone. A step that is committed cannot fail any more.
        with suppress(ValueError, asyncpg.PostgresError, asyncpg.InterfaceError):
            undoing = connection.undo.pop()()
            if inspect.isawaitable(undoing):
                await undoing
    connection.undo.clear()
