"""A server before a PostgreSQL server that refuses one setting, as other platforms and engines do."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

SSL_REQUEST = (80877103).to_bytes(4, "big")
READY = b"Z\0\0\0\5I"


@asynccontextmanager
async def refusing(dsn: str, name: str, code: str) -> AsyncIterator[str]:
    """Yield the DSN of a server that answers a startup packet, or a query, that sets `name` with the error `code`."""
    setting = re.compile(rf"\('{name}', '|SET (LOCAL )?{name} ".encode())
    parts = urlsplit(dsn)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            startup = await _read(reader)
            if startup[4:8] == SSL_REQUEST:
                writer.write(b"N")
                startup = await _read(reader)
            if name.encode() + b"\0" in startup:
                writer.write(_error("FATAL", code))
            else:
                await _serve(startup, reader, writer)
        writer.close()

    async def _serve(startup: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection(parts.hostname, parts.port)
        there.write(startup)
        answers = asyncio.ensure_future(_forward(back, writer))
        try:
            while True:
                kind = await reader.readexactly(1)
                message = await _read(reader)
                if kind == b"Q" and setting.search(message):
                    writer.write(_error("ERROR", code) + READY)
                else:
                    there.write(kind + message)
        finally:
            there.close()
            answers.cancel()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    user = parts.netloc.rpartition("@")[0]
    try:
        yield parts._replace(netloc=f"{user}@127.0.0.1:{server.sockets[0].getsockname()[1]}").geturl()
    finally:
        server.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    length = await reader.readexactly(4)
    return length + await reader.readexactly(int.from_bytes(length, "big") - 4)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
    writer.close()


def _error(severity: str, code: str) -> bytes:
    fields = f"S{severity}\0V{severity}\0C{code}\0Mrefused\0\0".encode()
    return b"E" + (len(fields) + 4).to_bytes(4, "big") + fields
