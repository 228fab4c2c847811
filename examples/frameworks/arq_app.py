"""arq: `arq arq_app.WorkerSettings`."""

import os
from typing import Any

import asyncpg
from arq.connections import RedisSettings

from pgratchet import Migrator

DSN = os.environ["DATABASE_URL"]
migrator = Migrator(DSN, "migrations/versions")


async def start(context: dict[str, Any]) -> None:
    """Open a pool once the schema is ready."""
    await migrator.up()
    context["pool"] = await asyncpg.create_pool(DSN)


async def stop(context: dict[str, Any]) -> None:
    """Close the pool, if it was opened."""
    if "pool" in context:
        await context["pool"].close()


async def tenants(context: dict[str, Any]) -> int:
    """Return the number of tenants."""
    count: int = await context["pool"].fetchval("SELECT count(*) FROM tenants")
    return count


class WorkerSettings:
    """The settings of the worker."""

    functions = (tenants,)
    on_startup = start
    on_shutdown = stop
    redis_settings = RedisSettings.from_dsn(os.environ["REDIS_URL"])
