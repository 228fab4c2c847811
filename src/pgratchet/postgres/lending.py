"""Connections that can be lent to a migration: what it sets in the client's half of a session is taken back."""

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import asyncpg


class Lendable(asyncpg.Connection):
    """asyncpg's connection, but that it notes what takes back what is set: asyncpg tells nobody what that is."""

    __slots__ = ("undo",)

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.undo: list[Callable[[], object]] = []

    async def set_type_codec(self, typename: str, *, schema: str = "public", **how: Any) -> None:
        """Do it, and note it; so do the others."""
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
async def lent(connection: "asyncpg.Connection[Any]") -> AsyncIterator[None]:
    """Take back the codecs and listeners that the block sets: what runs next may run in another session as well.

    What somebody else's factory has made is left as it is.
    """
    # Not by isinstance(), to which asyncpg says that each of its connections is one of every class of them.
    noted: list[Callable[[], object]] = getattr(connection, "undo", [])
    noted.clear()
    try:
        yield
    except Exception:
        await _take_back(connection, noted)
        raise
    await _take_back(connection, noted)


async def _take_back(connection: "asyncpg.Connection[Any]", noted: list[Callable[[], object]]) -> None:
    while noted and not connection.is_closed():
        # The type may be gone; and what has been committed does not fail any more.
        with suppress(ValueError, asyncpg.PostgresError, asyncpg.InterfaceError):
            undoing = noted.pop()()
            if inspect.isawaitable(undoing):
                await undoing
