"""Quart: `hypercorn quart_app:app`."""

import os
from collections.abc import AsyncGenerator

import asyncpg
from quart import Quart, current_app

from pgratchet import Migrator, gate, migrated

DSN = os.environ["DATABASE_URL"]
migrator = Migrator(DSN, "migrations/versions")
quart = Quart(__name__)


@quart.while_serving
async def lifespan() -> AsyncGenerator[None, None]:
    """Keep a pool once the schema is ready."""
    async with migrated(migrator), asyncpg.create_pool(DSN) as pool:
        quart.extensions["pool"] = pool
        yield


@quart.get("/tenants")
async def tenants() -> str:
    """Return the number of tenants."""
    count: int = await current_app.extensions["pool"].fetchval("SELECT count(*) FROM tenants")
    return str(count)


app = gate(quart, migrator)
