"""The recipes in examples/frameworks, and for each framework a driver of its applications in the running loop."""

# A worker imports the frameworks whose tests it runs, and no other: all of them take seconds.
# ruff: noqa: PLC0415
import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import httpx2

from tests.support import PATIENCE

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "frameworks"

SEEDS = "INSERT INTO tenants VALUES ('one'), ('two'), ('three');"

Load = Callable[[str], ModuleType]
Ask = Callable[[], Awaitable[object]]
"""Ask the application how many tenants there are."""


class StartFailedError(Exception):
    """An ASGI application has answered that its start failed."""


@asynccontextmanager
async def started(app: Any) -> AsyncIterator[dict[str, Any]]:
    """Yield the state of an ASGI application that has started, as a server does it."""
    state: dict[str, Any] = {}
    orders: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    answers: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def told(order: str) -> dict[str, str]:
        orders.put_nowait({"type": order})
        with anyio.fail_after(PATIENCE):
            return await answers.get()

    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": state}
    task = asyncio.ensure_future(app(scope, orders.get, answers.put))
    answer = await told("lifespan.startup")
    if answer["type"] != "lifespan.startup.complete":
        # Some raise after their answer, some wait for more.
        task.cancel()
        await asyncio.wait({task})
        raise StartFailedError(answer.get("message", "")) from (None if task.cancelled() else task.exception())
    yield state
    assert await told("lifespan.shutdown") == {"type": "lifespan.shutdown.complete"}
    await task


def client(app: Any, state: dict[str, Any] | None = None) -> httpx2.AsyncClient:
    """Return a client of an ASGI application; its requests have the state that a server has kept."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": dict(state or {})}, receive, send)

    return httpx2.AsyncClient(transport=httpx2.ASGITransport(serve), base_url="http://127.0.0.1")


@contextmanager
def forgotten(recipe: ModuleType) -> Iterator[Any]:
    """Yield the ASGI application of a recipe; afterwards another application of that name can be made."""
    if not hasattr(recipe, "asgi"):
        yield recipe.app
        return
    # At its start an application rewrites Sanic's classes, which they take once in a process.
    recipe.app.config.TOUCHUP = False
    try:
        yield recipe.asgi
    finally:
        type(recipe.app).unregister_app(recipe.app)


@asynccontextmanager
async def asgi(recipe: ModuleType) -> AsyncIterator[Ask]:
    with forgotten(recipe) as app:
        async with started(app) as state, client(app, state) as asking:

            async def ask() -> object:
                return json.loads((await asking.get("/tenants")).text)

            yield ask


@asynccontextmanager
async def aiohttp(recipe: ModuleType) -> AsyncIterator[Ask]:
    from aiohttp.test_utils import TestClient, TestServer

    async with TestServer(recipe.app) as server, AsyncExitStack() as stack:
        asking: TestClient[Any, Any] = await stack.enter_async_context(TestClient(server))

        async def ask() -> object:
            async with asking.get("/tenants") as response:
                return await response.json()

        yield ask


@asynccontextmanager
async def faststream(recipe: ModuleType) -> AsyncIterator[Ask]:
    from faststream import TestApp
    from faststream.redis import TestRedisBroker

    async with TestRedisBroker(recipe.broker) as broker, TestApp(recipe.app):

        async def ask() -> object:
            return await (await broker.request("", "tenants")).decode()

        yield ask


@asynccontextmanager
async def fastmcp(recipe: ModuleType) -> AsyncIterator[Ask]:
    from fastmcp import Client

    async with Client(recipe.mcp) as asking:

        async def ask() -> object:
            return (await asking.call_tool("tenants")).data

        yield ask


@asynccontextmanager
async def taskiq(recipe: ModuleType) -> AsyncIterator[Ask]:
    await recipe.broker.startup()

    async def ask() -> object:
        task = await recipe.tenants.kiq()
        return (await task.wait_result(timeout=PATIENCE)).return_value

    yield ask
    await recipe.broker.shutdown()


@asynccontextmanager
async def arq(recipe: ModuleType) -> AsyncIterator[Ask]:
    """Run a worker until it has done one job."""
    from arq import create_pool
    from arq.worker import create_worker

    pool = await create_pool(recipe.WorkerSettings.redis_settings)
    worker = create_worker(recipe.WorkerSettings, burst=True, handle_signals=False)
    try:
        job = await pool.enqueue_job("tenants")
        assert job
        with anyio.fail_after(PATIENCE):
            await worker.async_run()
        yield partial(job.result, timeout=PATIENCE)
    finally:
        await worker.close()
        await pool.aclose()


DRIVERS: dict[str, Callable[[ModuleType], AbstractAsyncContextManager[Ask]]] = {
    "fastapi_app": asgi,
    "fastapi_router": asgi,
    "starlette_app": asgi,
    "litestar_app": asgi,
    "blacksheep_app": asgi,
    "quart_app": asgi,
    "asgi_app": asgi,
    "sanic_app": asgi,
    "aiohttp_app": aiohttp,
    "faststream_app": faststream,
    "fastmcp_app": fastmcp,
    "taskiq_app": taskiq,
    "arq_app": arq,
}
"""The driver of each recipe."""
