"""FastStream: `faststream run faststream_app:app`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
from faststream import Context, ContextRepo, FastStream
from faststream.redis import RedisBroker

from pgratchet import Migrator, migrated

DSN = os.environ["DATABASE_URL"]
migrator = Migrator(DSN, "migrations/versions")
broker = RedisBroker()


@asynccontextmanager
async def lifespan(context: ContextRepo) -> AsyncIterator[None]:
    """Keep a pool once the schema is ready."""
    async with migrated(migrator), asyncpg.create_pool(DSN) as pool:
        context.set_global("pool", pool)
        yield


app = FastStream(broker, lifespan=lifespan)


@broker.subscriber("tenants")
async def tenants(_: str, pool: Annotated[asyncpg.Pool, Context()]) -> int:
    """Return the number of tenants."""
    count: int = await pool.fetchval("SELECT count(*) FROM tenants")
    return count
