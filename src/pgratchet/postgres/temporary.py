"""Errors that pass: the same work may well succeed when it is tried again."""

import math
import time
from itertools import count

import asyncpg

from pgratchet.postgres import own
from pgratchet.postgres.budget import Budget
from pgratchet.postgres.session import Connection, describe

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


async def through_races(connection: Connection, sql: str, budget: Budget) -> None:
    """Run SQL as one transaction, or as a part of the open one, as often as it takes to win: histories share catalogs.

    Raises what the server says of anything else; BudgetExceededError where somebody's lock stays in the way.
    """
    for attempt in count():
        began = time.monotonic()
        try:
            async with connection.transaction():
                await own.execute(connection, sql)
        except asyncpg.PostgresError as error:
            if attempt >= _most_losses(error):
                raise
            budget.spend(time.monotonic() - began)
            most = 0.01 * min(attempt + 1, MOST_CREATIONS)
            await budget.pause(most / 2, most, describe(error))
        else:
            return


def _most_losses(error: Exception) -> float:
    if isinstance(error, _WAITED):
        return math.inf
    return MOST_CREATIONS if _is_race(error) else MOST_RACES if isinstance(error, _ALREADY_THERE) else 0
