"""A database, a role, a schema or a right that somebody else makes seconds later: refused with its cure, or awaited."""

import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from pgratchet import (
    AbsentError,
    BudgetExceededError,
    MigrationFailedError,
    Migrator,
    ServerError,
    WaitFor,
    migrated,
)
from tests.poolers import pgbouncer
from tests.support import PASSWORD, Connection, Write, as_role, connected, leave, states, tell, until

pytestmark = pytest.mark.anyio

FILES = {"001_a.sql": "CREATE TABLE a ();"}


class Kind(NamedTuple):
    """A thing that is absent: what is there `before`, what makes it, and what an error says of it.

    In the texts NEW is the name of a database or a role that is not there at first.
    """

    make: str
    words: str
    before: str = ""
    database: str = ""
    login: str = ""
    arguments: dict[str, Any] = {}  # noqa: RUF012 - never changed


LOGIN = f"LOGIN PASSWORD '{PASSWORD}'"
KINDS = {
    "database": Kind("CREATE DATABASE NEW", r"\(3D000\).* by dsn\); create the database", database="NEW"),
    "role": Kind(f"CREATE ROLE NEW SUPERUSER {LOGIN}", r"\(28P01\).* by dsn\); create the role", login="NEW"),
    "role without login": Kind(
        "ALTER ROLE NEW LOGIN",
        r"\(28000\).*; create the role with LOGIN",
        f"CREATE ROLE NEW SUPERUSER NO{LOGIN}",
        login="NEW",
    ),
    "right to connect": Kind(
        "GRANT CONNECT ON DATABASE HERE TO NEW",
        r"\(42501\).*; grant the role CONNECT on the database",
        f"CREATE ROLE NEW {LOGIN}; GRANT CREATE ON SCHEMA public TO NEW; REVOKE CONNECT ON DATABASE HERE FROM PUBLIC",
        login="NEW",
    ),
    "schema": Kind(
        "CREATE SCHEMA app AUTHORIZATION NEW",
        "the role needs CREATE on the database to make the table app.history",
        f"CREATE ROLE NEW {LOGIN}; GRANT CREATE ON SCHEMA public TO NEW",
        login="NEW",
        arguments={"table": "app.history"},
    ),
    "right to the schema": Kind(
        "GRANT USAGE, CREATE ON SCHEMA app TO NEW",
        "permission denied for schema app; the role NEW needs USAGE on schema app",
        f"CREATE ROLE NEW {LOGIN}; GRANT CREATE ON SCHEMA public TO NEW; CREATE SCHEMA app",
        login="NEW",
        arguments={"table": "app.history"},
    ),
    "owner": Kind(
        "CREATE ROLE NEW; GRANT CREATE ON SCHEMA public TO NEW",
        r'cannot work as the role NEW: .*\(22023\); CREATE ROLE "NEW", and GRANT "NEW" TO .* by dsn\)',
        arguments={"owner": "NEW"},
    ),
    "reader": Kind(
        "CREATE ROLE NEW", r'role "NEW" does not exist \(42704\); create the role', arguments={"readers": ["NEW"]}
    ),
}


class Absence(NamedTuple):
    """One absent thing in a real server: a maker of migrators that need it, and the name of what is not there."""

    migrator: Callable[..., Migrator]
    make: Callable[[], Any]
    words: str
    dsn: str


@asynccontextmanager
async def absent(kind: Kind, dsn: str, folder: Path) -> AsyncIterator[Absence]:
    here = urlsplit(dsn).path[1:]
    new = f"new_{here}"

    def named(text: str) -> str:
        return text.replace("NEW", new).replace("HERE", here)

    given = as_role(dsn, named(kind.login)) if kind.login else dsn
    if kind.database:
        given = urlsplit(given)._replace(path=f"/{named(kind.database)}").geturl()
    arguments: dict[str, Any] = {
        name: [named(each) for each in value] if isinstance(value, list) else named(value)
        for name, value in kind.arguments.items()
    }

    async def make() -> None:
        await tell(dsn, named(kind.make))

    if kind.before:
        await tell(dsn, named(kind.before))
    try:
        yield Absence(lambda **more: Migrator(given, folder, **arguments, **more), make, named(kind.words), given)
    finally:
        if kind.database:
            await leave(given)
            await tell(dsn, f"DROP DATABASE IF EXISTS {new} WITH (FORCE)")
        else:
            async with connected(dsn) as session:
                if await session.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", new):
                    await session.execute(f"DROP OWNED BY {new} CASCADE; DROP ROLE {new}")


def waits(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [sentence for sentence in said if sentence.endswith("; waiting for it")]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_a_run_names_the_absent_thing_with_its_cure_at_once(dsn: str, write: Write, kind: Kind) -> None:
    async with absent(kind, dsn, write(FILES)) as it:
        with anyio.fail_after(10), pytest.raises(AbsentError, match=it.words) as refused:
            await it.migrator(budget=60).up()
        assert str(refused.value).endswith('; if somebody else is making it now, wait_for="database" waits for it')
        await it.make()
        assert [step.version for step in await it.migrator().up()] == ["1"]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_a_run_waits_for_the_absent_thing_where_it_is_asked_to(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, kind: Kind
) -> None:
    async with absent(kind, dsn, write(FILES)) as it:
        with pytest.raises(BudgetExceededError, match=f"gave up after 0.4 s: .*{it.words}"):
            await it.migrator(wait_for="database", budget=0.4, connect_budget=0.1).up()
        assert len(waits(caplog)) == 1
        caplog.clear()

        async with anyio.create_task_group() as group:
            with anyio.fail_after(15):
                group.start_soon(it.migrator(wait_for=WaitFor.DATABASE).up)

                async def told() -> bool:
                    return bool(waits(caplog))

                await until(told)
                await it.make()
        assert await it.migrator().up() == ()
        assert [step.state for step in await it.migrator().status()] == ["applied"]


async def test_each_absent_thing_is_told_once_when_one_follows_another(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    async with absent(KINDS["role"], dsn, write(FILES)) as it:
        new = urlsplit(it.dsn).username
        migrator = Migrator(it.dsn, write(FILES), table="app.history", wait_for="database")

        async def told(count: int) -> None:
            async def said() -> bool:
                return len(waits(caplog)) >= count

            await until(said)

        async with anyio.create_task_group() as group:
            with anyio.fail_after(30):
                group.start_soon(migrator.up)
                await told(1)
                await tell(dsn, f"CREATE ROLE {new} {LOGIN}; GRANT CREATE ON SCHEMA public TO {new}")
                await told(2)
                await tell(dsn, f"CREATE SCHEMA app AUTHORIZATION {new}")
        first, second = waits(caplog)
        assert "(28P01)" in first
        assert "needs CREATE on the database" in second
        assert await states(dsn, "app.history") == {"1": "applied"}


@pytest.mark.parametrize("verb", ["wait", "down", "redo", "rehearse", "hook"])
async def test_each_run_that_waits_waits_for_the_database(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    folder = write(FILES | {"001_a.down.sql": "DROP TABLE a;"})
    async with absent(KINDS["database"], dsn, folder) as it:
        migrator = it.migrator(wait_for="database")

        async def work() -> None:
            if verb == "hook":
                async with migrated(migrator):
                    assert migrator.readiness.ready
            else:
                await getattr(migrator, verb)()

        async def told() -> bool:
            return bool(waits(caplog))

        async with anyio.create_task_group() as group:
            with anyio.fail_after(30):
                group.start_soon(work)
                await until(told)
                await it.make()
                if verb == "wait":
                    await it.migrator(wait_for="database").up()
        await leave(it.dsn)


async def test_a_factory_of_connections_may_lead_to_a_database_that_is_made_later(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    async with absent(KINDS["database"], dsn, write(FILES)) as it:

        async def connect() -> Connection:
            return await asyncpg.connect(it.dsn, statement_cache_size=0)

        async def told() -> bool:
            return bool(waits(caplog))

        migrator = Migrator(connect=connect, migrations=write(FILES), wait_for="database")
        async with anyio.create_task_group() as group:
            with anyio.fail_after(30):
                group.start_soon(migrator.up)
                await until(told)
                await it.make()
        assert await states(it.dsn) == {"1": "applied"}
        assert migrator.destination.database == urlsplit(it.dsn).path[1:]
        await leave(it.dsn)


@pytest.mark.parametrize("verb", ["check", "status", "plan"])
async def test_a_look_does_not_wait_for_the_database(dsn: str, write: Write, verb: str) -> None:
    async with absent(KINDS["database"], dsn, write(FILES)) as it:
        with anyio.fail_after(10), pytest.raises(AbsentError, match="create the database"):
            await getattr(it.migrator(wait_for="database"), verb)()


async def test_a_migration_that_lacks_a_schema_or_a_role_has_failed(dsn: str, write: Write) -> None:
    for sql in ("CREATE TABLE nowhere.t ();", "GRANT ALL ON SCHEMA public TO nobody_here;", "SET ROLE nobody_here;"):
        with anyio.fail_after(10), pytest.raises(MigrationFailedError):
            await Migrator(dsn, write({"001_a.sql": sql}), wait_for="database").up()
    assert len(await Migrator(dsn, write(FILES)).up()) == 1


async def test_a_server_that_refuses_for_another_reason_is_not_waited_for(dsn: str, write: Write) -> None:
    wrong = f"{dsn}{'&' if '?' in dsn else '?'}no_such_setting=1"
    with anyio.fail_after(10), pytest.raises(ServerError, match="no_such_setting") as refused:
        await Migrator(wrong, write(FILES), wait_for="database").up()
    assert not isinstance(refused.value, AbsentError)


async def test_a_database_behind_a_pooler_is_waited_for(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    # By default the pooler keeps the next client for 15 s after the server has refused one.
    async with pgbouncer(dsn, server_login_retry=1) as pooler, absent(KINDS["database"], dsn, write(FILES)) as it:
        behind = pooler.dsn_for(urlsplit(it.dsn).path[1:])
        with anyio.fail_after(10), pytest.raises(AbsentError, match="create the database or the role"):
            await Migrator(behind, write(FILES)).up()

        async def told() -> bool:
            return bool(waits(caplog))

        async with anyio.create_task_group() as group:
            with anyio.fail_after(30):
                group.start_soon(Migrator(behind, write(FILES), wait_for="database").up)
                await until(told)
                await it.make()
        assert await states(it.dsn) == {"1": "applied"}


async def test_processes_that_wait_for_the_database_apply_each_migration_once(dsn: str, write: Write) -> None:
    folder = write(FILES)
    async with absent(KINDS["database"], dsn, folder) as it:
        command = [sys.executable, "-m", "pgratchet", "up", "--dir", str(folder), "--budget", "30s"]
        environment = {**os.environ, "PGRATCHET_WAIT_FOR": "database", "DATABASE_URL": it.dsn}
        async with AsyncExitStack() as stack:
            replicas = [
                await stack.enter_async_context(await anyio.open_process(command, env=environment)) for _ in range(3)
            ]
            with anyio.fail_after(30):
                for replica in replicas:
                    assert replica.stderr is not None
                    line = await BufferedByteReceiveStream(replica.stderr).receive_until(b"\n", 10_000)
                    assert line.endswith(b"; waiting for it")
                await it.make()
                assert [await replica.wait() for replica in replicas] == [0, 0, 0]
            outputs = [replica.stdout for replica in replicas if replica.stdout is not None]
            said = [b"".join([chunk async for chunk in output]) for output in outputs]
        assert sorted(each.count(b"applied 1 a") for each in said) == [0, 0, 1]
        await leave(it.dsn)
