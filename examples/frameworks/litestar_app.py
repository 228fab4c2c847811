"""Litestar: `uvicorn litestar_app:app`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from litestar import Litestar, get
from litestar.datastructures import State

from pgratchet import Migrator, gate, migrated

DSN = os.environ["DATABASE_URL"]
migrator = Migrator(DSN, "migrations/versions")


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    """Keep a pool; the schema is ready."""
    async with asyncpg.create_pool(DSN) as app.state.pool:
        yield


@get("/tenants")
async def tenants(state: State) -> int:
    """Return the number of tenants."""
    count: int = await state.pool.fetchval("SELECT count(*) FROM tenants")
    return count


litestar = Litestar([tenants], lifespan=[migrated(migrator), lifespan])
app = gate(litestar, migrator)
