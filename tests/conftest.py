import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import hypothesis
import pytest

from pgratchet import embedded
from pgratchet.testing import databases
from tests.shadows import Statements, refuse_planted
from tests.support import Connection, Write, connect, connected, create_database, drop_database

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

Maintenance = Callable[[Callable[[Connection, str], Awaitable[None]], str], None]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def memory() -> Path | None:
    """A folder in memory with room for a server, where there is one: databases are made ten times faster in it."""
    return databases.memory()


@pytest.fixture(scope="session", autouse=True)
def own_statements() -> Iterator[Statements]:
    """All statements of pgratchet's own that are sent in this session."""
    statements = Statements()
    with statements.noting():
        yield statements


@pytest.fixture(scope="session")
def server(memory: Path | None, own_statements: Statements) -> Iterator[embedded.Server]:
    """The server of this session; a test that needs it is skipped where DATABASE_URL names another server.

    In the end no statement that was sent in this session may refer to an object that others could have planted.
    """
    if "DATABASE_URL" in os.environ:
        pytest.skip("needs a server of its own, and DATABASE_URL names another's")
    with embedded.server(tcp=True, folder=memory) as server:
        asyncio.run(hash_the_password_once(server))
        yield server
        asyncio.run(replay(server, own_statements))


async def hash_the_password_once(server: embedded.Server) -> None:
    """Replace the 4,096 rounds of hashing, which each of many thousand connections would repeat."""
    async with connected(server.dsn) as connection:
        await connection.execute(f"ALTER ROLE postgres PASSWORD '{embedded._verifier(server.password, rounds=1)}'")


async def replay(server: embedded.Server, statements: Statements) -> None:
    async with connected(server.dsn) as connection:
        await create_database(connection, "replay")
    await refuse_planted(server.dsn_for("replay"), statements)


@pytest.fixture(scope="session")
def maintenance_dsn(request: pytest.FixtureRequest) -> str:
    """The DSN of the database from which the others are created and dropped."""
    if url := os.environ.get("DATABASE_URL"):
        return url
    server: embedded.Server = request.getfixturevalue("server")
    return server.dsn


@pytest.fixture(scope="session")
def maintenance(maintenance_dsn: str) -> Iterator[Maintenance]:
    """Runs work on one session that all tests share: a new session costs as much as a new database.

    Not async, because tests of the command line, which are no coroutines, want databases as well.
    """
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(connect(maintenance_dsn))
    try:
        yield lambda work, name: loop.run_until_complete(work(connection, name))
    finally:
        loop.run_until_complete(connection.close())
        loop.close()


@pytest.fixture
def dsn(maintenance_dsn: str, maintenance: Maintenance) -> Iterator[str]:
    """The DSN of a fresh, empty database; it is dropped afterwards, even if clients are still connected."""
    with a_database(maintenance_dsn, maintenance) as dsn:
        yield dsn


@contextmanager
def a_database(maintenance_dsn: str, maintenance: Maintenance) -> Iterator[str]:
    name = f"pgratchet_{uuid4().hex[:12]}"
    maintenance(create_database, name)
    try:
        parts = urlsplit(maintenance_dsn)
        yield f"{parts.scheme}://{parts.netloc}/{name}" + (f"?{parts.query}" if parts.query else "")
    finally:
        maintenance(drop_database, name)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes files by name, and returns the directory they are in, which is the same one each time."""
    return writing(tmp_path / "migrations")


def writing(directory: Path) -> Write:
    def write(files: Mapping[str, str | bytes]) -> Path:
        directory.mkdir(exist_ok=True)
        for name, content in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return directory

    return write
