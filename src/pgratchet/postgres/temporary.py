"""Errors that pass: the same work may well succeed when it is tried again."""

from itertools import count

import anyio
import asyncpg

from pgratchet.postgres.session import Connection

MOST_RACES = 5
"""How often work is tried again that lost a race: unlike a lock, nothing says that the reason will go away."""

MOST_CREATIONS = 50
"""How often the history table and its grants are tried again."""

_ALREADY_THERE = asyncpg.DuplicateSchemaError, asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError
"""What IF NOT EXISTS gets all the same where another session commits between its look and its work."""

_WAITED = (
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)


def may_pass(error: Exception, attempt: int) -> bool:
    """Say whether work that failed for the `attempt`th time (from 0) may succeed when it is tried again.

    Two sessions that change the same catalog rows at once get errors that say nothing of a lock: a duplicate
    key in a pg_catalog index, or "tuple concurrently updated".
    """
    if isinstance(error, _WAITED):
        return True
    return attempt < MOST_RACES and _is_race(error)


def _is_race(error: Exception) -> bool:
    if isinstance(error, asyncpg.UniqueViolationError):
        return error.schema_name == "pg_catalog"
    return isinstance(error, asyncpg.InternalServerError) and "concurrently" in str(error)


async def through_races(connection: Connection, sql: str) -> None:
    """Run one message, a transaction of its own, as often as it takes to win: histories share schemas, and catalogs."""
    for attempt in count():
        try:
            await connection.execute(sql)
        except asyncpg.PostgresError as error:
            if attempt == _most_losses(error):
                raise
            await anyio.sleep(0.01 * (attempt + 1))
        else:
            return


def _most_losses(error: Exception) -> int:
    if _is_race(error):
        return MOST_CREATIONS
    return MOST_RACES if isinstance(error, _ALREADY_THERE) else 0
