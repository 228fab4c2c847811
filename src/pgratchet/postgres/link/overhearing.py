"""The last word of a server, where asyncpg cannot read it because it is not in UTF-8: its SQLSTATE always is."""

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
from asyncpg.protocol import Protocol


class OverhearingLoop:
    """The running event loop, which also keeps what servers send to the sessions of asyncpg that are made in it.

    A server refuses a session in its own language and encoding, because it does not know the client's yet. asyncpg
    drops an error that it cannot decode, and reports a closed connection, as if the server had crashed.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard: list[bytearray] = []
        self._is_listening = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(self, factory: Callable[[], Any], *where: Any, **how: Any) -> tuple[Any, Any]:
        """Return the transport and the protocol of a new connection."""
        transport, protocol = await self._loop.create_connection(lambda: self.tap(factory()), *where, **how)
        return _Transport(transport, self), protocol

    async def create_unix_connection(self, factory: Callable[[], Any], *where: Any, **how: Any) -> tuple[Any, Any]:
        """Return the transport and the protocol of a new connection."""
        return await self._loop.create_unix_connection(lambda: self.tap(factory()), *where, **how)

    async def start_tls(self, transport: "_Transport", *how: Any, **more: Any) -> Any:
        """Return the encrypted transport of a connection."""
        return _Transport(await self._loop.start_tls(transport.real, *how, **more), self)

    def tap(self, protocol: Any) -> Any:
        """Return the protocol, which hands on what it receives from now on."""
        # Not narrowed to Protocol, whose stubs allow no assignment.
        if issubclass(type(protocol), Protocol):
            receive, heard = protocol.data_received, bytearray()
            self._heard.append(heard)

            def listen(data: bytes) -> None:
                if self._is_listening:
                    heard.extend(data)
                receive(data)

            protocol.data_received = listen
        return protocol

    def stop(self) -> None:
        """Keep nothing more."""
        self._is_listening = False

    def error(self) -> asyncpg.PostgresError | None:
        """Return the last error that a server has sent; None if it has sent none."""
        errors = [body for heard in self._heard for kind, body in _messages(bytes(heard)) if kind == b"E"]
        if not errors:
            return None
        fields = [field.decode(errors="backslashreplace") for field in errors[-1].split(b"\0") if field]
        error: asyncpg.PostgresError = asyncpg.PostgresError.new({field[0]: field[1:] for field in fields})
        return error


class _Transport:
    """A transport whose later protocols are tapped, too."""

    def __init__(self, real: Any, loop: OverhearingLoop) -> None:
        self.real = real
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def set_protocol(self, protocol: Any) -> None:
        """Give the connection to another protocol."""
        self.real.set_protocol(self._loop.tap(protocol))


def _messages(heard: bytes) -> list[tuple[bytes, bytes]]:
    """Return the kinds and the bodies of a server's messages."""
    messages, at = [], 0
    while at + 5 <= len(heard):
        end = at + 1 + int.from_bytes(heard[at + 1 : at + 5], "big")
        messages.append((heard[at : at + 1], heard[at + 5 : end]))
        at = end
    return messages
