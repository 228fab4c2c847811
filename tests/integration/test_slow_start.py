"""A schema that is not ready when the application's start has to end: what goes on, what is told, what is left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from pgratchet import Condition, Gate, MigrationFailedError, Migrator, migrated
from tests.support import PASS_GATE, Write, deserted, exists, gate, states, until

pytestmark = pytest.mark.anyio

SLOW = {"001_a.sql": "CREATE TABLE a (); " + PASS_GATE, "002_b.sql": "CREATE TABLE b ();"}


async def ready(migrator: Migrator) -> None:
    async def condition() -> bool:
        return migrator.readiness.ready

    await until(condition)


async def failed(migrator: Migrator) -> None:
    async def condition() -> bool:
        return migrator.readiness.state is Condition.FAILED

    await until(condition)


async def test_an_application_starts_before_a_slow_migration_and_gets_ready_behind_it(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write(SLOW), lock_timeout=0)
    events: list[str] = []

    @asynccontextmanager
    async def own(_: object) -> AsyncIterator[dict[str, int]]:
        events.append("starts")
        yield {"pool": 1}
        events.append("stops")

    async with gate(dsn) as closed:
        async with migrated(migrator, own, on_slow="serve-not-ready", slow_after=0.1)() as state:
            assert (state, events) == ({"pool": 1}, ["starts"])
            await closed.reached()
            assert migrator.readiness.state is Condition.RUNNING
            await closed.open()
            await ready(migrator)
        assert events == ["starts", "stops"]
    assert await states(dsn) == {"1": "applied", "2": "applied"}
    await deserted(dsn)


async def test_an_application_waits_for_a_migration_that_is_ready_in_time(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "CREATE TABLE a ();"}))
    async with migrated(migrator, on_slow="serve-not-ready", slow_after=30):
        assert migrator.readiness.ready


async def test_a_migration_that_fails_in_time_fails_the_start(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "SELECT 1/0;"}))
    with pytest.raises(MigrationFailedError):
        async with migrated(migrator, on_slow="serve-not-ready", slow_after=30):
            raise AssertionError("entered")


async def test_a_migration_that_fails_later_leaves_the_application_not_ready_and_says_so(
    dsn: str, write: Write
) -> None:
    folder = write({"001_a.sql": PASS_GATE + "SELECT 1/0;"})
    migrator = Migrator(dsn, folder, lock_timeout=0)
    told: list[BaseException] = []
    async with gate(dsn) as closed:
        async with migrated(migrator, on_slow="serve-not-ready", slow_after=0.1, on_failure=told.append):
            await closed.reached()
            await closed.open()
            await failed(migrator)

            async def said() -> bool:
                return bool(told)

            await until(said)
        assert [type(error) for error in told] == [MigrationFailedError]
    write({"001_a.sql": "SELECT 1;"})
    async with migrated(migrator):
        assert migrator.readiness.ready


async def test_the_end_of_the_application_ends_its_migration_and_leaves_nothing(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write(SLOW), lock_timeout=0)
    async with gate(dsn) as closed:
        async with migrated(migrator, on_slow="serve-not-ready", slow_after=0.1):
            await closed.reached()
        await deserted(dsn, 3)
        assert migrator.readiness.state is Condition.FAILED
    assert not await exists(dsn, "a")
    await migrator.up()
    assert migrator.readiness.ready


@pytest.mark.parametrize("slow_after", [None, 30.0])
async def test_a_cancelled_start_is_not_ready_whatever_the_server_makes_of_it(
    dsn: str, write: Write, slow_after: float | None
) -> None:
    """As gunicorn does, which then serves."""
    migrator = Migrator(dsn, write(SLOW), lock_timeout=0)
    hook = (
        migrated(migrator)
        if slow_after is None
        else migrated(migrator, on_slow="serve-not-ready", slow_after=slow_after)
    )
    async with gate(dsn) as closed:
        task: asyncio.Future[object] = asyncio.ensure_future(hook.__aenter__())
        await closed.reached()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert migrator.readiness.state is Condition.FAILED
        await deserted(dsn, 3)
    assert migrator.readiness.state is Condition.FAILED
    assert await states(dsn) == {}
    async with migrated(migrator):
        assert migrator.readiness.ready


async def answer(_: Request) -> PlainTextResponse:
    return PlainTextResponse("served")


async def test_the_gate_serves_nothing_until_the_schema_is_ready(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write(SLOW), lock_timeout=0)
    hook = migrated(migrator, on_slow="serve-not-ready", slow_after=0.1)
    app = Starlette(routes=[Route("/", answer), Route("/livez", answer)], lifespan=hook)
    app.add_middleware(Gate, migrator=migrator)

    def statuses(client: TestClient) -> list[int]:
        return [client.get(path).status_code for path in ("/", "/livez", "/readyz")]

    async with gate(dsn) as closed:
        client = TestClient(app)
        await anyio.to_thread.run_sync(client.__enter__)
        try:
            await closed.reached()
            assert await anyio.to_thread.run_sync(statuses, client) == [503, 200, 503]
            await closed.open()
            await ready(migrator)
            assert await anyio.to_thread.run_sync(statuses, client) == [200, 200, 200]
        finally:
            await anyio.to_thread.run_sync(client.__exit__, None, None, None)


async def test_an_application_serves_nothing_without_its_lifespan(dsn: str, write: Write) -> None:
    """As where it is mounted in another one, or asked by a test client that was not entered."""
    migrator = Migrator(dsn, write({"001_a.sql": "CREATE TABLE a ();"}))
    app = Starlette(routes=[Route("/", answer)], lifespan=migrated(migrator))
    app.add_middleware(Gate, migrator=migrator)

    assert TestClient(app).get("/").status_code == 503
    assert TestClient(app).get("/readyz").json()["state"] == "unknown"
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
