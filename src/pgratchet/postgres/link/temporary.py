"""Errors that pass: the same work may well succeed when it is tried again."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from enum import Enum, auto

import asyncpg

from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.session import Connection, describe

_ALREADY_THERE = asyncpg.DuplicateSchemaError, asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError

_BY_CODE = {None, "exec_stmt_raise", "PLy_elog_impl", "dblink_res_error", "pgfdw_report_error"}
"""Functions of the server that raise what they are told to, by PL/pgSQL, by PL/Python, by another server.

An exception that was made in Python names none.
"""


_LOST_RACES = {"tuple concurrently updated", "tuple concurrently deleted"}
"""Messages that PostgreSQL does not translate, and raises with the SQLSTATE of any internal error."""

LONGEST_PAUSE = 0.5
"""Seconds, at most, between two tries to make the history table."""


class Cause(Enum):
    """Why work failed that may succeed when it is tried again."""

    LOCK = auto()
    """Somebody has a lock. That may be for long, and it harms nobody to ask again."""
    CONFLICT = auto()
    """A deadlock, or transactions that cannot be serialized: the next victim may be the application's transaction."""
    RACE = auto()
    """Two sessions changed the same catalog rows at once. Nothing says that the reason will go away."""
    THERE = auto()
    """IF NOT EXISTS gets this all the same where another session commits between its look and its work."""
    CODE = auto()
    """Code, or another server, has raised one of the errors above, by its SQLSTATE; it may do so each time."""


MOST = {Cause.LOCK: math.inf, Cause.CONFLICT: 20, Cause.RACE: 5, Cause.CODE: 5}
"""How often a step is tried again, for each cause."""

_MOST_CREATIONS = {Cause.LOCK: math.inf, Cause.CONFLICT: 50, Cause.RACE: 50, Cause.THERE: 5, Cause.CODE: 5}
"""The same for the history table and its grants, which many runners may be making at once."""


class Tries:
    """How often one piece of work has failed so far, by what was the cause."""

    def __init__(self, most: Mapping[Cause, float] = MOST) -> None:
        self._most = most
        self._failed: Counter[Cause | None] = Counter()

    @property
    def attempt(self) -> int:
        """The number of the attempt that has failed last, from 0."""
        return self._failed.total() - 1

    def may_pass(self, error: Exception) -> bool:
        """Take into account that the work has failed once more, and say whether it may succeed when tried again."""
        cause = _cause(error)
        self._failed[cause] += 1
        return cause is not None and self._failed[cause] <= self._most.get(cause, 0)


def _cause(error: Exception) -> Cause | None:
    if isinstance(error, asyncpg.LockNotAvailableError | asyncpg.DeadlockDetectedError | asyncpg.SerializationError):
        if error.server_source_function in _BY_CODE:
            return Cause.CODE
        return Cause.LOCK if isinstance(error, asyncpg.LockNotAvailableError) else Cause.CONFLICT
    if isinstance(error, asyncpg.UniqueViolationError):
        return Cause.RACE if error.schema_name == "pg_catalog" else None
    if isinstance(error, asyncpg.InternalServerError):
        return Cause.RACE if error.args[0] in _LOST_RACES else None
    return Cause.THERE if isinstance(error, _ALREADY_THERE) else None


async def through_races(connection: Connection, sql: str, budget: Budget) -> None:
    """Run SQL as one transaction, or as a part of the open one, as often as it takes to win: histories share catalogs.

    Raises what the server says of anything else; BudgetExceededError where somebody's lock stays in the way.
    """
    tries = Tries(_MOST_CREATIONS)
    while True:
        began = time.monotonic()
        try:
            async with connection.transaction():
                await own.execute(connection, sql)
        except asyncpg.PostgresError as error:
            if not tries.may_pass(error):
                raise
            budget.spend(time.monotonic() - began)
            most = min(0.01 * (tries.attempt + 1), LONGEST_PAUSE)
            await budget.pause(most / 2, most, describe(error))
        else:
            return
