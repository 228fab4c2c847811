"""Each recipe of docs/frameworks.md, run as its framework runs it, on both loops."""

# A worker imports the frameworks whose tests it runs, and no other: all of them take seconds.
# ruff: noqa: PLC0415
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import pgratchet
from pgratchet import Condition, MigrationFailedError, Migrator, Readiness, migrated
from tests.frameworks.drivers import DRIVERS, RECIPES, SEEDS, Load, StartFailedError, asgi, client, forgotten, started
from tests.support import Connection, deserted, states

pytestmark = [
    pytest.mark.anyio,
    # arq closes its pool by a name that its version of redis has deprecated.
    pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning"),
]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to the pool that an application's own lifespan keeps, and to the hook."""
    events: list[str] = []
    create_pool, close = asyncpg.create_pool, asyncpg.Pool.close

    async def opened(connection: Connection) -> None:
        events.append(f"opened on {await connection.fetchval('SELECT count(*) FROM tenants')} tenants")

    async def closed(pool: "asyncpg.Pool[Any]") -> None:
        await close(pool)
        events.append("closed")

    class Watched(pgratchet.migrated):
        @asynccontextmanager
        async def __call__(self, app: object = None) -> AsyncIterator[Any]:
            async with super().__call__(app) as state:
                yield state
            events.append("hook left")

    monkeypatch.setattr(asyncpg, "create_pool", lambda dsn: create_pool(dsn, min_size=1, max_size=1, init=opened))
    monkeypatch.setattr(asyncpg.Pool, "close", closed)
    monkeypatch.setattr(pgratchet, "migrated", Watched)
    return events


def test_each_recipe_is_run() -> None:
    assert {path.stem for path in RECIPES.glob("*.py")} == set(DRIVERS)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", DRIVERS)
async def test_the_application_starts_on_its_schema_and_ends_before_the_hook(
    name: str, load: Load, events: list[str]
) -> None:
    recipe = load(name)
    async with DRIVERS[name](recipe) as ask:
        assert await ask() == 3
        assert events == ["opened on 3 tenants"]

    assert events == ["opened on 3 tenants", "closed", *(["hook left"] if hasattr(recipe, "migrated") else [])]


@pytest.mark.parametrize("name", DRIVERS)
async def test_a_failing_migration_fails_the_start_and_the_application_is_not_entered(
    name: str, load: Load, events: list[str], project: Path, dsn: str
) -> None:
    seeds = project / "migrations/versions/002_seeds.sql"
    seeds.write_text("SELECT 1/0;")
    with pytest.raises((MigrationFailedError, StartFailedError, RuntimeError)) as caught:
        async with DRIVERS[name](load(name)):
            raise AssertionError("started")

    # BlackSheep tells the server no more than that.
    assert name == "blacksheep_app" or "division by zero" in str(caught.value)
    assert events == []
    assert await states(dsn) == {"1": "applied", "2": "failed"}
    await deserted(dsn)
    seeds.write_text(SEEDS)
    async with DRIVERS[name](load(name)) as ask:
        assert await ask() == 3


ASGI = [name for name, driver in DRIVERS.items() if driver is asgi] + ["fastmcp_app"]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("name", ASGI)
async def test_the_gate_of_an_asgi_application_opens_with_its_schema(name: str, load: Load) -> None:
    with forgotten(load(name)) as app:
        async with client(app) as asking:
            found = [await asking.get(path) for path in ("/tenants", "/readyz")]
        assert [response.status_code for response in found] == [503, 503]
        assert [response.json()["state"] for response in found] == ["unknown", "unknown"]
        assert found[0].headers["retry-after"] == "5"
        assert await websocket(app) == [{"type": "websocket.close", "code": 1013, "reason": ""}]

        async with started(app) as state, client(app, state) as asking:
            found = [await asking.get(path) for path in ("/tenants", "/readyz")]
        # FastMCP's has no such path, but is asked.
        assert [response.status_code for response in found] == [404 if name == "fastmcp_app" else 200, 200]
        assert found[1].json() == json.loads(json.dumps(Readiness(Condition.APPLIED, 2)._asdict()))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("name", ASGI)
async def test_the_gate_stays_closed_on_a_server_that_serves_in_spite_of_a_failed_start(
    name: str, load: Load, project: Path
) -> None:
    (project / "migrations/versions/002_seeds.sql").write_text("SELECT 1/0;")
    with forgotten(load(name)) as app:
        with pytest.raises(StartFailedError):
            async with started(app):
                raise AssertionError("started")
        async with client(app) as asking:
            found = [await asking.get(path) for path in ("/tenants", "/readyz")]
    assert [response.status_code for response in found] == [503, 503]
    assert [response.json()["state"] for response in found] == ["failed", "failed"]
    assert found[1].json()["failed"] == ["2"]


async def websocket(app: Any) -> list[Any]:
    """Return what an application answers to one that wants a websocket."""
    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "websocket", "path": "/tenants", "headers": [], "state": {}}, receive, send)
    return sent


def alone_fastapi(hook: migrated) -> Any:
    from fastapi import FastAPI

    return FastAPI(lifespan=hook)


def alone_router(hook: migrated) -> Any:
    from fastapi import APIRouter, FastAPI

    app = FastAPI()
    app.include_router(APIRouter(lifespan=hook))
    return app


def alone_starlette(hook: migrated) -> Any:
    from starlette.applications import Starlette

    return Starlette(lifespan=hook)


def alone_litestar(hook: migrated) -> Any:
    from litestar import Litestar

    return Litestar(lifespan=[hook])


def alone_blacksheep(hook: migrated) -> Any:
    from blacksheep import Application

    app = Application()
    app.lifespan(hook)  # type: ignore[no-untyped-call]  # BlackSheep's, not ours
    return app


@asynccontextmanager
async def alone_aiohttp(hook: migrated) -> AsyncIterator[None]:
    from aiohttp import web

    app = web.Application()
    app.cleanup_ctx.append(hook)
    runner = web.AppRunner(app)
    await runner.setup()
    yield
    await runner.cleanup()


@asynccontextmanager
async def alone_faststream(hook: migrated) -> AsyncIterator[None]:
    from faststream import FastStream, TestApp
    from faststream.redis import RedisBroker, TestRedisBroker

    async with TestRedisBroker(RedisBroker()) as broker, TestApp(FastStream(broker, lifespan=hook)):
        yield


@asynccontextmanager
async def alone_fastmcp(hook: migrated) -> AsyncIterator[None]:
    from fastmcp import Client, FastMCP

    async with Client(FastMCP(lifespan=hook)):
        yield


ALONE: dict[str, Callable[[migrated], AbstractAsyncContextManager[Any]]] = {
    "fastapi": lambda hook: started(alone_fastapi(hook)),
    "router": lambda hook: started(alone_router(hook)),
    "starlette": lambda hook: started(alone_starlette(hook)),
    "litestar": lambda hook: started(alone_litestar(hook)),
    "blacksheep": lambda hook: started(alone_blacksheep(hook)),
    "aiohttp": alone_aiohttp,
    "faststream": alone_faststream,
    "fastmcp": alone_fastmcp,
}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", ALONE)
async def test_the_hook_is_taken_as_it_is(name: str, dsn: str) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def inner(app: object) -> AsyncIterator[None]:
        events.append("without application" if app is None else "with")
        yield
        events.append("ends")

    async with ALONE[name](migrated(Migrator(dsn, "migrations/versions"), inner=inner)):
        assert await states(dsn) == {"1": "applied", "2": "applied"}
    # Litestar enters it, FastStream calls it without.
    assert events == ["without application" if name in {"litestar", "faststream"} else "with", "ends"]
