"""What the proxy does to a connection: the tests of faults are worth what it is."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import anyio
import pytest

from tests.faults.proxy import CHUNK, Proxy, proxy
from tests.faults.traps import Harm, Way
from tests.support import connected

pytestmark = pytest.mark.anyio

ENDS = [Harm.CLOSE, Harm.RESET]
WORD = b"COMMIT"
DELAY = 0.3


@dataclass
class Echo:
    """A server that answers with what it was sent, and remembers it: for each connection its bytes and its end."""

    heard: list[bytearray] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = bytearray()
        self.heard.append(mine)
        try:
            while chunk := await reader.read(CHUNK):
                mine += chunk
                writer.write(chunk)
            self.ends.append("FIN")
        except ConnectionResetError:
            self.ends.append("RST")
        finally:
            writer.close()

    async def ended(self) -> str:
        """Return how the first connection has ended."""
        while not self.ends:  # noqa: ASYNC110 - of a callback
            await anyio.sleep(0.01)
        return self.ends[0]


@dataclass
class Client:
    """One connection through the proxy."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, chunk: bytes) -> None:
        self.writer.write(chunk)

    async def exchange(self, chunk: bytes) -> bytes:
        """Send something, and return as much of an answer."""
        self.send(chunk)
        return await self.reader.readexactly(len(chunk))

    async def rest(self) -> bytes:
        """Return what still comes until the end."""
        return await self.reader.read()


@asynccontextmanager
async def client(between: Proxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", between.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, Proxy]]:
    """A server, and the proxy before it."""
    it = Echo()
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    with anyio.fail_after(20):
        async with proxy(f"postgresql://127.0.0.1:{server.sockets[0].getsockname()[1]}/") as between:
            yield it, between
    server.close()


async def test_bytes_pass_unchanged_both_ways_and_so_does_an_end(echo: tuple[Echo, Proxy]) -> None:
    server, between = echo
    said = Random(1).randbytes(20 * CHUNK + 1)  # noqa: S311 - chance that can be had again
    async with client(between) as one, client(between) as other:
        assert await other.exchange(b"hello") == b"hello"
        assert await one.exchange(said) == said
        one.writer.write_eof()
        assert await one.rest() == b""
        assert await server.ended() == "FIN"
        assert await other.exchange(b"still here") == b"still here"
    assert sorted(map(len, server.heard)) == [15, len(said)]
    assert between.connections == 2


@pytest.mark.parametrize("harm", ENDS, ids=lambda harm: harm.name)
@pytest.mark.parametrize("way", Way)
async def test_a_connection_is_cut_at_a_byte(echo: tuple[Echo, Proxy], harm: Harm, way: Way) -> None:
    server, between = echo
    trap = between.trap(way, 1000, harm)
    async with client(between) as one, client(between) as other:
        assert await one.exchange(b"." * 600) == b"." * 600
        one.send(b"." * 4400)
        if harm is Harm.RESET:
            with pytest.raises(ConnectionResetError):
                await one.rest()
        elif way is Way.TO_CLIENT:
            assert await one.rest() == b"." * 400
        else:
            assert len(await one.rest()) <= 400  # the answer to what has passed may be under way
        # A reset at the end of what was sent to the server leaves nothing unread there; ours comes before that.
        assert await server.ended() in ({"RST"} if harm is Harm.RESET else {"FIN", "RST"})
        assert await other.exchange(b"unharmed") == b"unharmed"
    if harm is Harm.CLOSE and way is Way.TO_SERVER:
        assert server.heard[0] == b"." * 1000
    assert trap.sprung.is_set()


@pytest.mark.parametrize("forward", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("pieces", [[WORD], [b"COM", b"MIT"], list(map(bytes, zip(WORD, strict=True)))], ids=len)
async def test_a_connection_is_cut_at_a_message_in_however_many_packets_it_comes(
    echo: tuple[Echo, Proxy], pieces: list[bytes], *, forward: bool
) -> None:
    server, between = echo
    between.trap(Way.TO_SERVER, WORD, Harm.CLOSE, forward=forward, skip=1)
    async with client(between) as one:
        first = b"BEGIN;COMMIT;BEGIN;"
        assert await one.exchange(first) == first
        for piece in pieces[:-1]:
            assert await one.exchange(piece) == piece
        one.send(pieces[-1] + b";BEGIN")
        await one.rest()
        await server.ended()
    assert server.heard[0] == first + b"".join(pieces if forward else pieces[:-1])


async def test_traps_in_one_packet_spring_in_the_order_of_their_places(echo: tuple[Echo, Proxy]) -> None:
    server, between = echo
    last = between.trap(Way.TO_SERVER, WORD, Harm.CLOSE, forward=False, skip=2)
    late = between.trap(Way.TO_SERVER, b"2", Harm.DELAY, seconds=0.01)
    seen = between.trap(Way.TO_SERVER, 3, Harm.NONE)
    never = between.trap(Way.TO_SERVER, b"4", Harm.NONE)
    async with client(between) as one:
        one.send(b"1COMMIT2COMMIT3COMMIT4COMMIT")
        await one.rest()
        await server.ended()
    assert server.heard[0] == b"1COMMIT2COMMIT3"
    assert [trap.sprung.is_set() for trap in (seen, late, last, never)] == [True, True, True, False]


async def test_a_frozen_connection_stays_open_and_delivers_everything_in_the_end(echo: tuple[Echo, Proxy]) -> None:
    server, between = echo
    trap = between.trap(Way.TO_SERVER, WORD, Harm.FREEZE)
    async with client(between) as one, client(between) as other:
        assert await one.exchange(b"first;") == b"first;"
        one.send(b"1COMMIT2")
        await trap.sprung.wait()
        other.send(b"hello")
        with anyio.move_on_after(0.2):
            await other.reader.read(1)
            pytest.fail("something passes")
        async with client(between) as late:
            assert await server_has(server, 0, b"first;1COMMIT")
            between.resume()
            assert await late.exchange(b"new") == b"new"
        assert await one.reader.readexactly(8) == b"1COMMIT2"
        assert await other.reader.readexactly(5) == b"hello"
    assert between.connections == 3


async def server_has(server: Echo, number: int, said: bytes) -> bool:
    while server.heard[number] != said:  # noqa: ASYNC110 - of a callback
        await anyio.sleep(0.01)
    return True


@pytest.mark.parametrize("forward", [False, True], ids=["before", "behind"])
async def test_only_the_bytes_behind_a_place_are_late(echo: tuple[Echo, Proxy], *, forward: bool) -> None:
    server, between = echo
    trap = between.trap(Way.TO_SERVER, WORD, Harm.DELAY, forward=forward, seconds=DELAY)
    async with client(between) as one, client(between) as other:
        assert await one.exchange(b"first;") == b"first;"
        began = time.monotonic()
        one.send(b"1COMMIT2")
        await trap.sprung.wait()
        one.send(b"3")
        before = b"1COMMIT" if forward else b"1"
        assert await one.reader.readexactly(len(before)) == before  # the other way, meanwhile
        assert await other.exchange(b"at once") == b"at once"
        assert await server_has(server, 0, b"first;" + before)
        assert await one.reader.readexactly(9 - len(before)) == b"1COMMIT23"[len(before) :]
        assert time.monotonic() - began >= DELAY
        assert await one.exchange(WORD) == WORD


async def test_turns_of_the_client_are_counted_from_the_end_of_the_start_up_on(dsn: str) -> None:
    async with proxy(dsn) as between:
        async with connected(between.dsn) as connection:
            assert between.flights == 0
            for _ in range(3):
                await connection.execute("SELECT 1; SELECT 2")
            assert between.flights == 3
            await connection.close()
        assert (between.connections, between.flights) == (1, 3)


async def test_a_distant_server_takes_as_long_for_each_turn(dsn: str) -> None:
    async with proxy(dsn, round_trip=0.1) as between, connected(between.dsn) as connection:
        began = time.monotonic()
        for _ in range(3):
            await connection.execute("SELECT 1")
        assert time.monotonic() - began >= 0.3
