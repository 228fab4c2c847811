"""A server before a PostgreSQL server that answers some messages itself, as other platforms and engines do."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

SSL_REQUEST = (80877103).to_bytes(4, "big")
READY = b"Z\0\0\0\5I"


@asynccontextmanager
async def refusing(dsn: str, name: str, code: str) -> AsyncIterator[str]:
    """Yield the DSN of a server that answers a startup packet, or a query, that sets `name` with the error `code`."""
    setting = re.compile(rf"\('{name}', '|SET (LOCAL )?{name} ".encode())

    def answer(message: bytes) -> bytes | None:
        if message.startswith(b"Q"):
            return error("ERROR", code) + READY if setting.search(message) else None
        return error("FATAL", code) if name.encode() + b"\0" in message else None

    async with between(dsn, answer) as there:
        yield there


@asynccontextmanager
async def between(dsn: str, answer: Callable[[bytes], bytes | None]) -> AsyncIterator[str]:
    """Yield the DSN of a server that forwards each message to another one, unless `answer` has an answer to it.

    A startup packet has no kind before it. An answer that is a FATAL error ends the session.
    """
    parts = urlsplit(dsn)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            startup = await _read(reader)
            if startup[4:8] == SSL_REQUEST:
                writer.write(b"N")
                startup = await _read(reader)
            if refusal := answer(startup):
                writer.write(refusal)
            else:
                await _serve(startup, reader, writer)
        writer.close()

    async def _serve(startup: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection(parts.hostname, parts.port)
        there.write(startup)
        answers = asyncio.ensure_future(_forward(back, writer))
        try:
            while True:
                message = await reader.readexactly(1) + await _read(reader)
                if (own := answer(message)) is None:
                    there.write(message)
                    continue
                writer.write(own)
                if b"VFATAL" in own:
                    break
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


def error(severity: str, code: str, **more: str) -> bytes:
    """Return an error of a server's; `more` are fields by their letters."""
    fields = {"S": severity, "V": severity, "C": code, "M": "refused"} | more
    body = b"".join(f"{letter}{text}\0".encode() for letter, text in fields.items()) + b"\0"
    return b"E" + (len(body) + 4).to_bytes(4, "big") + body
