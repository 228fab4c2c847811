import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from pgratchet import embedded
from pgratchet.testing import databases
from tests.shadows import Statements, refuse_planted


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
    """The one of this session; a test that needs it is skipped where DATABASE_URL names another's.

    In the end no statement that was sent in this session may refer to anything that others could have planted.
    """
    if "DATABASE_URL" in os.environ:
        pytest.skip("needs a server of its own, and DATABASE_URL names another's")
    with embedded.server(tcp=True, folder=memory) as server:
        yield server
        asyncio.run(create(server.dsn, "replay"))
        asyncio.run(refuse_planted(server.dsn_for("replay"), own_statements))


@pytest.fixture(scope="session")
def maintenance_dsn(request: pytest.FixtureRequest) -> str:
    """To the database from which the others are created and dropped."""
    if url := os.environ.get("DATABASE_URL"):
        return url
    server: embedded.Server = request.getfixturevalue("server")
    return server.dsn


@pytest.fixture
def dsn(maintenance_dsn: str) -> Iterator[str]:
    """To a fresh, empty database, dropped afterwards whoever is still connected to it."""
    name = f"pgratchet_{uuid4().hex[:12]}"
    # Not an async fixture, because tests of the command line, which are no coroutines, want it as well.
    asyncio.run(create(maintenance_dsn, name))
    try:
        parts = urlsplit(maintenance_dsn)
        yield f"{parts.scheme}://{parts.netloc}/{name}" + (f"?{parts.query}" if parts.query else "")
    finally:
        asyncio.run(drop(maintenance_dsn, name))


async def create(maintenance_dsn: str, name: str) -> None:
    connection = await asyncpg.connect(maintenance_dsn)
    try:
        # What is the default from 15 on writes every page of the copy to the log, and takes twice as long.
        strategy = "STRATEGY file_copy" if connection.get_server_version().major >= 15 else ""
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 {strategy}")
    finally:
        await connection.close()


async def drop(maintenance_dsn: str, name: str) -> None:
    connection = await asyncpg.connect(maintenance_dsn)
    try:
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    finally:
        await connection.close()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Mapping[str, str | bytes]], Path]:
    """Writes files by name, and returns the directory they are in, which is the same one each time."""
    directory = tmp_path / "migrations"

    def write(files: Mapping[str, str | bytes]) -> Path:
        directory.mkdir(exist_ok=True)
        for name, content in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return directory

    return write
