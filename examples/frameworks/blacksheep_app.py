"""BlackSheep: `uvicorn blacksheep_app:app`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from blacksheep import Application

from pgratchet import Migrator, gate, migrated

DSN = os.environ["DATABASE_URL"]
migrator = Migrator(DSN, "migrations/versions")
blacksheep = Application()


@asynccontextmanager
async def lifespan(app: Application) -> AsyncIterator[None]:
    """Keep a pool; the schema is ready."""
    async with asyncpg.create_pool(DSN) as pool:
        app.services.register(asyncpg.Pool, instance=pool)
        yield


blacksheep.lifespan(migrated(migrator, inner=lifespan))  # type: ignore[no-untyped-call]  # BlackSheep's, not ours


@blacksheep.router.get("/tenants")
async def tenants(pool: asyncpg.Pool) -> int:
    """Return the number of tenants."""
    count: int = await pool.fetchval("SELECT count(*) FROM tenants")
    return count


app = gate(blacksheep, migrator)
