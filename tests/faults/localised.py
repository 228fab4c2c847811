"""A server that refuses each session in an encoding of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

SSL_REQUEST = (80877103).to_bytes(4, "big")


@asynccontextmanager
async def refused_in_latin1(code: str) -> AsyncIterator[tuple[str, list[int]]]:
    """Yield the DSN of a server that ends each session with a FATAL, and a list that has an item for each session."""
    sessions: list[int] = []
    fields = f"SFATAL\0VFATAL\0C{code}\0M\xabnein\xbb\0\0".encode("latin-1")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while (startup := await reader.readexactly(await _length(reader)))[:4] == SSL_REQUEST:
                writer.write(b"N")
            sessions.append(len(startup))
            writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"postgresql://me@127.0.0.1:{server.sockets[0].getsockname()[1]}/app", sessions
    finally:
        server.close()


async def _length(reader: asyncio.StreamReader) -> int:
    return int.from_bytes(await reader.readexactly(4), "big") - 4
