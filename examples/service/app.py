"""Tenants and the preferences of their users: a service that answers only after its schema is ready."""

import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from uuid import UUID

import asyncpg
from fastapi import FastAPI, HTTPException, Request, status
from pydantic import BaseModel, Field

from pgratchet import Gate, Migrator, migrated

Mode = Literal["apply", "wait", "check"]

DSN = os.environ["DATABASE_URL"]
MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations" / "versions"
MODE = cast("Mode", os.environ.get("MIGRATION_MODE", "apply"))
# The variable of the command line: a job and the replicas must use the same history table.
HISTORY = os.environ.get("PGRATCHET_TABLE", "public.schema_migrations")
SLOW_AFTER = float(os.environ.get("MIGRATION_SLOW_AFTER", "20"))

# Applications configure logging; pgratchet only logs.
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")


@asynccontextmanager
async def pool_lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Keep a pool for as long as the application serves."""
    # Empty at first: behind the gate, the application may start before the database.
    async with asyncpg.create_pool(DSN, min_size=0, max_size=5) as pool:
        yield {"pool": pool}


def give_up(_: BaseException) -> None:
    """End the process with an exit code that servers do not treat as a crash; its supervisor starts it again."""
    sys.exit(3)


migrator = Migrator(DSN, MIGRATIONS, table=HISTORY)
schema = migrated(
    migrator,
    inner=pool_lifespan,
    mode=MODE,
    on_slow="serve-not-ready",
    slow_after=SLOW_AFTER,
    on_failure=give_up,
)
app = FastAPI(title="Tenants", lifespan=schema)
app.add_middleware(Gate, migrator=migrator)


class NewTenant(BaseModel):
    """The fields of a new tenant."""

    name: str = Field(min_length=1, max_length=200)
    slug: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=220)


class NewUser(BaseModel):
    """The fields of a new user."""

    email: str = Field(min_length=3, max_length=320)


class Preference(BaseModel):
    """The value of one preference."""

    value: str = Field(max_length=1000)


@app.get("/livez")
async def alive() -> dict[str, str]:
    """Answer that the process runs, in any state of its schema and its database; the gate answers `/readyz`."""
    return {"status": "alive"}


@app.get("/tenants")
async def tenants(request: Request) -> list[dict[str, Any]]:
    """List the tenants by name."""
    rows = await request.state.pool.fetch(
        "SELECT id, name, slug, knowledge_base_enabled FROM tenants ORDER BY name",
    )
    return [dict(row) for row in rows]


@app.post("/tenants", status_code=status.HTTP_201_CREATED)
async def create_tenant(request: Request, tenant: NewTenant) -> dict[str, UUID]:
    """Create a tenant; name and slug must be free."""
    try:
        identity = await request.state.pool.fetchval(
            "INSERT INTO tenants (name, slug) VALUES ($1, $2) RETURNING id", tenant.name, tenant.slug
        )
    except asyncpg.UniqueViolationError:
        raise HTTPException(status.HTTP_409_CONFLICT, "name or slug is taken") from None
    return {"id": identity}


@app.put("/tenants/{tenant_id}/knowledge-base", status_code=status.HTTP_204_NO_CONTENT)
async def switch_knowledge_base(request: Request, tenant_id: UUID, *, enabled: bool) -> None:
    """Switch a tenant's knowledge base on or off."""
    done = await request.state.pool.execute(
        "UPDATE tenants SET knowledge_base_enabled = $2 WHERE id = $1", tenant_id, enabled
    )
    if done == "UPDATE 0":
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such tenant")


@app.post("/tenants/{tenant_id}/users", status_code=status.HTTP_201_CREATED)
async def create_user(request: Request, tenant_id: UUID, user: NewUser) -> dict[str, UUID]:
    """Create a user of a tenant."""
    try:
        identity = await request.state.pool.fetchval(
            "INSERT INTO users (tenant_id, email) VALUES ($1, $2) RETURNING id", tenant_id, user.email
        )
    except asyncpg.ForeignKeyViolationError:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such tenant") from None
    except asyncpg.UniqueViolationError:
        raise HTTPException(status.HTTP_409_CONFLICT, "the tenant has this user") from None
    return {"id": identity}


@app.get("/users/{user_id}/preferences")
async def preferences(request: Request, user_id: UUID) -> dict[str, str]:
    """Return all of a user's preferences."""
    rows = await request.state.pool.fetch(
        "SELECT name, value FROM user_preferences WHERE user_id = $1 ORDER BY name", user_id
    )
    return {row["name"]: row["value"] for row in rows}


PreferenceName = Annotated[str, Field(max_length=100)]


@app.put("/users/{user_id}/preferences/{name}", status_code=status.HTTP_204_NO_CONTENT)
async def prefer(request: Request, user_id: UUID, name: PreferenceName, preference: Preference) -> None:
    """Set one preference, and replace its old value."""
    try:
        await request.state.pool.execute(
            "INSERT INTO user_preferences (user_id, name, value) VALUES ($1, $2, $3) "
            "ON CONFLICT ON CONSTRAINT user_preferences_user_name_key DO UPDATE SET value = excluded.value",
            user_id,
            name,
            preference.value,
        )
    except asyncpg.ForeignKeyViolationError:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such user") from None
