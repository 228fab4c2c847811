# Migration: give tenants slugs
# Version: 008
# Date: 2026-11-23
"""Each tenant gets a name for URLs. In Python, because PostgreSQL needs an extension to take accents off."""

import re
import unicodedata

import asyncpg


async def up(connection: asyncpg.Connection) -> None:
    """Add the column, fill it from the names, and have it required and unique from here on."""
    await connection.execute("ALTER TABLE tenants ADD COLUMN slug varchar(220)")
    taken: set[str] = set()
    rows = []
    for tenant in await connection.fetch("SELECT id, name FROM tenants ORDER BY created_at, id"):
        slug = _free(_slug(tenant["name"]), taken)
        taken.add(slug)
        rows.append((tenant["id"], slug))
    await connection.executemany("UPDATE tenants SET slug = $2 WHERE id = $1", rows)
    await connection.execute("ALTER TABLE tenants ALTER COLUMN slug SET NOT NULL")
    await connection.execute("ALTER TABLE tenants ADD CONSTRAINT tenants_slug_key UNIQUE (slug)")


async def down(connection: asyncpg.Connection) -> None:
    """Drop the column, and with it its constraint."""
    await connection.execute("ALTER TABLE tenants DROP COLUMN slug")


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "tenant"


def _free(slug: str, taken: set[str]) -> str:
    number = 2
    candidate = slug
    while candidate in taken:
        candidate = f"{slug}-{number}"
        number += 1
    return candidate
