"""taskiq: `taskiq worker taskiq_app:broker`, with a broker that other processes reach."""

import os
from typing import Annotated

import asyncpg
from taskiq import Context, InMemoryBroker, TaskiqDepends, TaskiqEvents, TaskiqState

from pgratchet import Migrator

DSN = os.environ["DATABASE_URL"]
migrator = Migrator(DSN, "migrations/versions")
broker = InMemoryBroker()


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def start(state: TaskiqState) -> None:
    """Open a pool once the schema is ready."""
    await migrator.up()
    state.pool = await asyncpg.create_pool(DSN)


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def stop(state: TaskiqState) -> None:
    """Close the pool."""
    await state.pool.close()


@broker.task
async def tenants(context: Annotated[Context, TaskiqDepends()]) -> int:
    """Return the number of tenants."""
    count: int = await context.state.pool.fetchval("SELECT count(*) FROM tenants")
    return count
