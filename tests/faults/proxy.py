"""A TCP proxy before a PostgreSQL server that counts, delays, freezes and cuts what passes through it."""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

import anyio
from anyio.lowlevel import checkpoint

from tests.faults.traps import LONGEST_PATTERN, Harm, Trap, Way

READY_FOR_QUERY = b"Z\0\0\0\5"
"""The beginning of the message that ends a connection's start-up."""

TERMINATE = b"X\0\0\0\4"
"""The message with which a client says goodbye; it gets no answer."""

CHUNK = 1 << 16

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """Leads to the server of a DSN, from a port of 127.0.0.1; made by `proxy()`.

    `connections` counts what was accepted. `flights` counts the client's turns to speak, on all connections,
    from the end of each one's start-up on, which is its first ReadyForQuery. A turn begins with the first bytes
    from the client after some were delivered to it; whatever it sends before the next delivery belongs to the
    same turn. Terminate is not counted.
    """

    def __init__(self, dsn: str, round_trip: float) -> None:
        self.round_trip = round_trip
        self.connections = 0
        self.flights = 0
        self.port = 0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._dsn = dsn
        self._traps: list[Trap] = []
        self._links: set[_Link] = set()

    @property
    def dsn(self) -> str:
        """The DSN of its database, through the proxy."""
        return self.dsn_for(self._dsn)

    def dsn_for(self, dsn: str) -> str:
        """Return the DSN of a database of the same server through the proxy."""
        parts = urlsplit(dsn)
        query = urlencode([(key, value) for key, value in parse_qsl(parts.query) if key not in {"host", "port"}])
        user, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}", query=query).geturl()

    def lead_to(self, dsn: str) -> None:
        """Lead new connections to another server."""
        self._dsn = dsn

    def trap(  # noqa: PLR0913 - the place has several sides
        self, way: Way, at: int | bytes, harm: Harm, *, forward: bool = True, skip: int = 0, seconds: float = 0.0
    ) -> Trap:
        """Set a trap. A trap without harm only sets `sprung` when bytes reach its place."""
        if isinstance(at, bytes) and not 0 < len(at) <= LONGEST_PATTERN:
            raise ValueError(f"a pattern has 1 to {LONGEST_PATTERN} bytes")
        trap = Trap(way, at, harm, forward, skip, seconds)
        self._traps.append(trap)
        return trap

    def disarm(self, trap: Trap) -> None:
        """Take a trap away, if it is still there."""
        if trap in self._traps:
            self._traps.remove(trap)

    def freeze(self) -> None:
        """Stop forwarding. Connections stay open, and new ones are accepted."""
        self.flowing.clear()

    def resume(self) -> None:
        """Forward again, beginning with the bytes that came meanwhile."""
        self.flowing.set()

    def cut(self, harm: Harm = Harm.RESET) -> None:
        """Do harm to every connection."""
        for link in tuple(self._links):
            link.suffer(harm)

    async def end(self) -> None:
        """Reset the open connections, and return when none is left."""
        links = tuple(self._links)
        self.cut()
        for link in links:
            await link.ended.wait()

    def spring(self, way: Way, passed: int, tail: bytes, chunk: bytes) -> tuple[int, list[Trap]]:
        """Return the number of bytes before the next traps in a chunk, and these traps."""
        places = {trap: trap.place(passed, tail, chunk) for trap in self._traps if trap.way is way}
        first = min((place for place in places.values() if place is not None), default=len(chunk))
        sprung = [trap for trap, place in places.items() if place == first]
        for trap in places:
            if trap in sprung:
                self._traps.remove(trap)
                trap.sprung.set()
            else:
                trap.let_pass(tail, chunk[:first])
        return first, sprung

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one client to the server."""
        self.connections += 1
        try:
            server = await _open(self._dsn)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), server)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)


@asynccontextmanager
async def proxy(dsn: str, *, round_trip: float = 0.0) -> AsyncIterator[Proxy]:
    """Yield a proxy to the server of a DSN; it resets its open connections in the end.

    `round_trip` seconds are added to each round trip, half of them each way, and nothing to the time between
    two packets that go the same way.
    """
    it = Proxy(dsn, round_trip)
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0, limit=CHUNK)
    it.port = server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        server.close()
        await it.end()


def _open(dsn: str) -> Awaitable[Streams]:
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    host, port = query.get("host") or parts.hostname or "127.0.0.1", int(query.get("port") or parts.port or 5432)
    if host.startswith("/"):
        return asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}", limit=CHUNK)
    return asyncio.open_connection(host, port, limit=CHUNK)


@dataclass(slots=True)
class _Pipe:
    """One direction of a link. With the queue, delayed bytes still follow each other closely."""

    way: Way
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    queue: asyncio.Queue[tuple[float, bytes]] = field(default_factory=asyncio.Queue)
    passed: int = 0
    tail: bytes = b""


class _Link:
    """A client's connection, and its connection to the server."""

    def __init__(self, owner: Proxy, client: Streams, server: Streams) -> None:
        self._owner = owner
        self._pipes = (_Pipe(Way.TO_SERVER, client[0], server[1]), _Pipe(Way.TO_CLIENT, server[0], client[1]))
        self.ended = asyncio.Event()
        self._scope = anyio.CancelScope()
        self._started = False
        self._answered = True

    async def run(self) -> None:
        """Forward until both sides have ended, or harm has ended the link."""
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    for pipe in self._pipes:
                        group.start_soon(self._read, pipe)
                        group.start_soon(self._deliver, pipe)
        finally:
            for pipe in self._pipes:
                pipe.writer.close()
            self.ended.set()

    def suffer(self, harm: Harm) -> None:
        """Do harm to both connections of the link."""
        if harm is Harm.FREEZE:
            self._owner.freeze()
        elif harm in (Harm.CLOSE, Harm.RESET):
            for pipe in self._pipes if harm is Harm.RESET else ():
                _reset(pipe.writer)
            self._scope.cancel()

    async def _read(self, pipe: _Pipe) -> None:
        chunk = b"-"
        while chunk:
            try:
                chunk = await pipe.reader.read(CHUNK)
            except OSError:
                self.suffer(Harm.RESET)
                return
            if pipe.way is Way.TO_SERVER:
                self._count(chunk)
            pipe.queue.put_nowait((time.monotonic() + self._owner.round_trip / 2, chunk))

    async def _deliver(self, pipe: _Pipe) -> None:
        while True:
            due, chunk = await pipe.queue.get()
            await anyio.sleep(max(0.0, due - time.monotonic()))
            await self._owner.flowing.wait()
            if not chunk:
                break
            await self._pass(pipe, chunk)
        with suppress(OSError):
            pipe.writer.write_eof()

    async def _pass(self, pipe: _Pipe, chunk: bytes) -> None:
        while chunk:
            place, traps = self._owner.spring(pipe.way, pipe.passed, pipe.tail, chunk)
            await self._forward(pipe, chunk[:place])
            chunk = chunk[place:]
            for trap in traps:
                self.suffer(trap.harm)
                await anyio.sleep(trap.seconds)
                await self._owner.flowing.wait()

    async def _forward(self, pipe: _Pipe, chunk: bytes) -> None:
        try:
            pipe.writer.write(chunk)
            await pipe.writer.drain()
        except OSError:
            self.suffer(Harm.RESET)
            await checkpoint()
        if pipe.way is Way.TO_CLIENT and chunk:
            self._answered = True
            self._started = self._started or READY_FOR_QUERY in pipe.tail + chunk
        pipe.passed += len(chunk)
        pipe.tail = (pipe.tail + chunk)[-LONGEST_PATTERN:]

    def _count(self, chunk: bytes) -> None:
        if self._started and self._answered and chunk and chunk != TERMINATE:
            self._owner.flights += 1
            self._answered = False


def _reset(writer: asyncio.StreamWriter) -> None:
    plug = writer.get_extra_info("socket")
    if plug is not None and plug.family == socket.AF_INET:
        # A socket that does not linger says RST instead of FIN when it is closed; it may be closed already.
        with suppress(OSError):
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
