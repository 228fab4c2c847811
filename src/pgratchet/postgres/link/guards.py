"""Errors that statements of our own raise on purpose, and how a run knows them again."""

from enum import StrEnum
from typing import NamedTuple
from uuid import uuid4

from pgratchet.postgres.link.sql import literal

INVALID_TEXT_REPRESENTATION = "22P02"

_CLOSING_QUOTES = "\"'»«“”„』」 \N{NO-BREAK SPACE}"
"""Characters that follow a value in the server's translations of a message that ends with it."""


class Guard(StrEnum):
    """The reasons for which a statement of our own raises."""

    BUSY = "another runner is at work"
    """It is not a step's turn now."""
    MOVED = "another runner has been at work"
    """It is not a step's turn any more."""
    LOCK = "the lock is not held any more"
    ROW = "the history row is not as this run has written it"
    TABLE = "the history table, or its triggers, have changed since this run inspected them"
    OWNER = "the history table belongs to a role that this run may not trust"
    COLUMNS = "the table has not the columns of a history"
    POLICY = "row level security may hide rows of the history"


class Guards(NamedTuple):
    """The errors of one run, or of one read.

    `secret` is a random token that is never stored: an error is our own statement's only if it says it. A migration
    can raise anything else, and so can a value in a row, which the server quotes.
    """

    secret: str

    @classmethod
    def new(cls) -> "Guards":
        """Return guards that no error of today or before can be taken for."""
        return cls(uuid4().hex)

    def alarm(self, guard: Guard) -> str:
        """Return the text that cannot be cast to a number, and so stands at the end of the server's error."""
        return f"pgratchet {self.secret}: {guard}"

    def unless(self, condition: str, guard: Guard, source: str = "") -> str:
        """Return SQL that raises, without plpgsql, unless the condition holds; `source` is a FROM clause for it.

        The condition must not be constant: the planner would evaluate the cast.
        """
        return (
            f"SELECT CAST(CASE WHEN {condition} THEN '1' ELSE {literal(self.alarm(guard))} END AS pg_catalog.int4)"
            f"{source and ' '}{source};"
        )

    def raised(self, error: BaseException) -> Guard | None:
        """Return the guard that an error is, None for any other error."""
        if getattr(error, "sqlstate", None) != INVALID_TEXT_REPRESENTATION:
            return None
        said = str(error.args[0]).rstrip(_CLOSING_QUOTES)
        return next((guard for guard in Guard if said.endswith(self.alarm(guard))), None)
