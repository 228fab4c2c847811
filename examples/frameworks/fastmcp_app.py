"""FastMCP: `fastmcp run fastmcp_app.py`, or `uvicorn fastmcp_app:app`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from fastmcp import Context, FastMCP

from pgratchet import Migrator, gate, migrated

DSN = os.environ["DATABASE_URL"]
migrator = Migrator(DSN, "migrations/versions")


@asynccontextmanager
async def lifespan(_: FastMCP) -> AsyncIterator[dict[str, Any]]:
    """Keep a pool; the schema is ready."""
    async with asyncpg.create_pool(DSN) as pool:
        yield {"pool": pool}


mcp = FastMCP("tenants", lifespan=migrated(migrator, inner=lifespan))


@mcp.tool
async def tenants(context: Context) -> int:
    """Return the number of tenants."""
    count: int = await context.lifespan_context["pool"].fetchval("SELECT count(*) FROM tenants")
    return count


app = gate(mcp.http_app(), migrator)
