"""What docs/frameworks.md says of the frameworks themselves."""

# A worker imports the frameworks whose tests it runs, and no other: all of them take seconds.
# ruff: noqa: PLC0415
import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import pytest

from pgratchet import Gate, MigrationFailedError, Migrator, migrated
from tests.frameworks.drivers import RECIPES, SEEDS, Load, client, started
from tests.support import PATIENCE, exists, states, until

pytestmark = [pytest.mark.anyio, pytest.mark.third_party, pytest.mark.usefixtures("project")]

Generator = Callable[[object], AsyncIterator[None]]


@pytest.fixture
def anyio_backend() -> str:
    """None of this is the loop's business."""
    return "asyncio"


@pytest.fixture
def migrator(dsn: str) -> Migrator:
    return Migrator(dsn, "migrations/versions")


def noting(name: str, events: list[str], dsn: str | None = None) -> Generator:
    """Return a generator that writes down when it is entered and left, and whether the schema was there."""

    async def lifespan(_: object) -> AsyncIterator[None]:
        there = "" if dsn is None else " with the schema" if await exists(dsn, "tenants") else " without the schema"
        events.append(f"{name} begins{there}")
        yield
        events.append(f"{name} ends")

    return lifespan


def test_fastapi_keeps_its_own_object(load: Load, project: Path) -> None:
    from fastapi.testclient import TestClient

    app = load("fastapi_app").app
    assert "/tenants" in [route.path for route in app.routes]
    assert list(app.openapi()["paths"]) == ["/tenants"]
    assert TestClient(app).get("/tenants").status_code == 503
    (project / "migrations/versions/002_seeds.sql").write_text("SELECT 1/0;")
    with pytest.raises(MigrationFailedError), TestClient(app):
        pass
    (project / "migrations/versions/002_seeds.sql").write_text(SEEDS)
    for _ in range(2):
        with TestClient(app) as asking:
            assert asking.get("/tenants").json() == 3


async def test_fastapi_enters_an_applications_lifespan_before_its_routers(dsn: str, migrator: Migrator) -> None:
    from fastapi import APIRouter, FastAPI

    events: list[str] = []
    app = FastAPI(lifespan=asynccontextmanager(noting("application", events, dsn)))
    app.include_router(APIRouter(lifespan=migrated(migrator, inner=asynccontextmanager(noting("router", events, dsn)))))
    async with started(app):
        pass
    assert events == [
        "application begins without the schema",
        "router begins with the schema",
        "router ends",
        "application ends",
    ]


async def test_starlette_runs_no_lifespan_of_a_mounted_application(migrator: Migrator, dsn: str) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    mounted = Starlette(lifespan=migrated(migrator))
    mounted.add_middleware(Gate, migrator=migrator)
    app = Starlette(routes=[Mount("/api", mounted)])
    async with started(app), client(app) as asking:
        assert (await asking.get("/api/readyz")).json()["state"] == "unknown"
        assert (await asking.get("/api/tenants")).status_code == 503
    assert not await exists(dsn, "tenants")

    app = Starlette(routes=[Mount("/api", mounted)], lifespan=migrated(migrator))
    async with started(app), client(app) as asking:
        assert (await asking.get("/api/readyz")).json()["state"] == "applied"


async def test_starlette_passes_no_state_through_a_server_that_keeps_none(migrator: Migrator) -> None:
    from starlette.applications import Starlette

    @asynccontextmanager
    async def inner(_: object) -> AsyncIterator[dict[str, int]]:
        yield {"pool": 1}

    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    app = Starlette(lifespan=migrated(migrator, inner=inner))
    with pytest.raises(RuntimeError, match="does not support"):
        await app({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]


async def test_aiohttp_runs_the_contexts_of_a_sub_application_after_those_of_its_own(
    migrator: Migrator, dsn: str
) -> None:
    from aiohttp import web

    events: list[str] = []
    own, sub = web.Application(), web.Application()
    own.cleanup_ctx.append(noting("own", events, dsn))
    sub.cleanup_ctx.append(migrated(migrator, inner=asynccontextmanager(noting("sub", events, dsn))))
    own.add_subapp("/api", sub)
    runner = web.AppRunner(own)
    await runner.setup()
    assert events == ["own begins without the schema", "sub begins with the schema"]
    await runner.cleanup()


async def test_blacksheep_leaves_lifespans_in_the_order_in_which_it_has_entered_them() -> None:
    from blacksheep import Application

    events: list[str] = []
    app = Application()
    for name in ("first", "second"):
        app.lifespan(noting(name, events))  # type: ignore[no-untyped-call]  # BlackSheep's, not ours
    async with started(app):
        pass
    assert events == ["first begins", "second begins", "first ends", "second ends"]


async def test_litestar_enters_its_lifespans_before_it_calls_what_is_to_start(migrator: Migrator, dsn: str) -> None:
    from litestar import Litestar

    found: list[bool] = []

    async def start() -> None:
        found.append(await exists(dsn, "tenants"))

    async with started(Litestar(lifespan=[migrated(migrator)], on_startup=[start])):
        assert found == [True]


async def test_quart_calls_what_comes_before_serving_before_its_generators(load: Load, dsn: str) -> None:
    quart = load("quart_app").quart
    found: list[bool] = []

    async def start() -> None:
        found.append(await exists(dsn, "tenants"))

    quart.before_serving(start)
    async with started(quart):
        assert found == [False]
        assert await exists(dsn, "tenants")


async def test_faststream_enters_no_lifespan_for_a_test_broker_alone(load: Load, dsn: str) -> None:
    from faststream.redis import TestRedisBroker

    recipe = load("faststream_app")
    async with TestRedisBroker(recipe.broker):
        await recipe.app.start()
        await recipe.app.stop()
    assert not await exists(dsn, "tenants")


async def test_fastapi_runs_the_lifespan_of_a_fastmcp_server_as_its_own(load: Load, migrator: Migrator) -> None:
    from fastapi import FastAPI
    from fastmcp import FastMCP

    mounted = FastMCP("tenants", lifespan=load("fastmcp_app").lifespan).http_app()
    app = FastAPI(lifespan=migrated(migrator, inner=mounted.lifespan))
    app.mount("/mcp", mounted)
    async with started(app):
        assert migrator.readiness.ready


class TestSanicsOwnServer:
    @pytest.fixture
    def socket(self) -> Iterator[Path]:
        # Sanic makes its name longer, and with pytest's own folders that is too long.
        with TemporaryDirectory(prefix="sanic-") as folder:
            yield Path(folder) / "socket"

    @pytest.fixture
    def sanic(self, dsn: str, socket: Path) -> Iterator["subprocess.Popen[bytes]"]:
        command = [sys.executable, "-m", "sanic", "sanic_app:app", "--unix", str(socket)]
        env = {**os.environ, "DATABASE_URL": dsn, "PYTHONPATH": str(RECIPES)}
        # A group of its own, which Sanic kills as a whole where it takes a worker for dead.
        with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, start_new_session=True) as process:
            try:
                yield process
            finally:
                # Not asked to end: it does not hear that while a worker of it is still starting.
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    async def test_sanics_own_server_starts_on_its_schema(self, sanic: "subprocess.Popen[bytes]", socket: Path) -> None:
        transport = httpx2.AsyncHTTPTransport(uds=str(socket))
        # What has connected before there was a worker gets no answer.
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=1) as asking:

            async def answer() -> httpx2.Response | None:
                assert sanic.poll() is None
                try:
                    return await asking.get("/tenants")
                except httpx2.TransportError:
                    return None

            response = await until(answer, 3 * PATIENCE)
        assert response
        assert (response.status_code, response.json()) == (200, 3)

    @pytest.fixture
    def broken(self, project: Path) -> None:
        (project / "migrations/versions/002_seeds.sql").write_text("SELECT 1/0;")

    @pytest.mark.usefixtures("broken")
    def test_sanics_own_server_ends_where_a_migration_fails(
        self, sanic: "subprocess.Popen[bytes]", socket: Path, dsn: str
    ) -> None:
        assert sanic.wait(3 * PATIENCE) == 1
        assert not socket.exists()
        assert asyncio.run(states(dsn)) == {"1": "applied", "2": "failed"}
