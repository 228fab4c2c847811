"""FastAPI: `uvicorn fastapi_app:app`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from fastapi import FastAPI, Request

from pgratchet import Gate, Migrator, migrated

DSN = os.environ["DATABASE_URL"]
migrator = Migrator(DSN, "migrations/versions")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Keep a pool; the schema is ready."""
    async with asyncpg.create_pool(DSN) as pool:
        yield {"pool": pool}


app = FastAPI(lifespan=migrated(migrator, inner=lifespan))
app.add_middleware(Gate, migrator=migrator)


@app.get("/tenants")
async def tenants(request: Request) -> int:
    """Return the number of tenants."""
    count: int = await request.state.pool.fetchval("SELECT count(*) FROM tenants")
    return count
