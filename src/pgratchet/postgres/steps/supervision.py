"""A bare statement, which runs outside a transaction: checked if it may have run before, repeated, cleaned up after."""

import logging
from collections.abc import Sequence
from functools import partial

import asyncpg

from pgratchet.core.errors import ServerError
from pgratchet.core.model import Failure, Segment
from pgratchet.core.plan.halfway import Begun, doubtful
from pgratchet.core.sql.bare import read
from pgratchet.core.sql.statements import Nature
from pgratchet.postgres.ledger.records import Claim
from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import Tries, retry
from pgratchet.postgres.link.own import UnreadableError
from pgratchet.postgres.link.session import describe
from pgratchet.postgres.link.sql import EQ, NE, literal
from pgratchet.postgres.steps import indexes, notes
from pgratchet.postgres.steps.indexes import Index
from pgratchet.postgres.wire.failures import Spot, StepError, at_spot, from_server, spot
from pgratchet.postgres.wire.message import Message, Part
from pgratchet.postgres.wire.sending import Wire

MOST_BUILDS = 3
"""How often an index is built if it is invalid although its build has succeeded."""

_DETACHING = (
    "SELECT (SELECT inhdetachpending FROM pg_catalog.pg_inherits "
    f"WHERE inhrelid {EQ} {{}}::pg_catalog.oid AND inhparent {EQ} {{}}::pg_catalog.oid) AS pending"
)

_DROPPED = (
    f"SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid {EQ} {{oid}}::pg_catalog.oid) AS gone, "
    f"COALESCE(pg_catalog.to_regclass({{name}})::pg_catalog.oid {NE} {{oid}}::pg_catalog.oid, true) AS other"
)

_log = logging.getLogger("pgratchet")


class Supervised:
    """One bare statement.

    A `doubt` means that an earlier run has begun it, and that its end is unknown. `_may_be_done` is true from then on,
    or from its answer on, or while it runs if an error would not tell: then it must not simply run again. `_there` are
    the oids of the objects that were there when it was begun first.
    """

    def __init__(self, wire: Wire, claim: Claim, segment: Segment, doubt: Begun | None) -> None:
        self._wire = wire
        self._claim = claim
        self._segment = segment
        self._text = claim.step.script.text_of(segment)
        self._about = read(self._text)
        self._table = self._about.table or ""
        self._doubt = doubt
        self._may_be_done = doubt is not None
        self._there: Sequence[int] = (doubt and doubt.there) or ()

    async def run(self) -> None:
        """Return once the statement is done: an index that it builds is there and valid.

        Raises StepError if it failed; the invalid index that it may have left is dropped then. Raises HistoryError if
        only a person can say whether it is done already.
        """
        # CREATE INDEX CONCURRENTLY waits for older transactions, and a limit would end that.
        was = await indexes.suspend(self._wire.connection, "lock_timeout") if self._about.concurrently else {}
        place = f"statement {self._segment.first} of {self._claim.step.script.source.path}"
        await retry(self._attempt, Tries(), partial(self._wire.before_retry, place), self._repeatable)
        await indexes.restore(self._wire.connection, was)

    def _repeatable(self, error: Exception) -> asyncpg.PostgresError | None:
        """Return the server's error after which the statement may be run again, if it is a temporary one.

        None for any other error, and if the statement may have taken effect and there is no way to check.
        """
        unknown = self._about.nature is Nature.OPAQUE and (self._may_be_done or self._about.concurrently)
        if isinstance(error, StepError) and isinstance(error.cause, asyncpg.PostgresError) and not unknown:
            return error.cause
        return None

    async def _attempt(self) -> None:
        try:
            await self._once()
        except asyncpg.PostgresError as error:
            await self._wire.roll_back("")
            if isinstance(error, UnreadableError):
                self._may_be_done = True
                if await self._is_done():
                    return
            raise StepError(await self._failure(error), error, final=True, in_doubt=self._may_be_done) from error

    async def _once(self) -> None:
        if not self._may_be_done:
            there = f"SELECT {notes.target(self._about)}::pg_catalog.int8[] AS there"
            self._there = (await own.ask(self._wire.connection, there))["there"]
        elif await self._is_done():
            return
        match self._about.nature:
            case Nature.BUILD:
                await self._build()
            case Nature.DETACH:
                await self._detach()
            case _:
                await self._send(self._text)
                if self._doubt and self._about.nature is Nature.REINDEX:
                    await self._warn_of_leftovers()

    async def _is_done(self) -> bool:
        """Return whether the statement in doubt has taken effect; False also if the catalog cannot show it."""
        match self._about.nature:
            case Nature.BUILD:
                return self._is_built(await self._found())
            case Nature.DROP:
                return await self._is_dropped()
            case Nature.DETACH:
                return await self._pending() is None
            case _:
                return False

    async def _is_dropped(self) -> bool:
        """Return whether the index is gone that had the name when the statement was begun."""
        (oid,) = self._there
        found = await own.ask(self._wire.connection, _DROPPED.format(oid=oid, name=literal(self._about.name)))
        if oid and found["other"] and not found["gone"]:
            raise doubtful(
                self._claim.step, f"{self._about.name} is another index now than when the statement was begun. "
            )
        return bool(oid) and found["gone"] is True

    async def _send(self, text: str) -> None:
        # A statement that is bare although its words do not show why, such as CALL, has commits of its own: an error
        # does not tell how many of them came before it.
        self._may_be_done = self._about.nature is Nature.OPAQUE and self._segment.refuses is None
        await self._wire.send(self._message(text))
        # It is done, and not counted: a later error is no failure of it.
        self._may_be_done = True

    def _message(self, text: str) -> Message:
        return Message(text, (Part(0, self._claim, self._segment),))

    async def _build(self) -> None:
        found = await self._found()
        for _ in range(MOST_BUILDS):
            await indexes.drop_invalid(self._wire, found)
            await self._send(self._text)
            found = await self._found()
            if found and all(index.valid for index in found):
                return
        what = f"is invalid, also after {MOST_BUILDS} builds" if found else "is there, but not an index of this table"
        message = f"{', '.join(index.name for index in found) or self._about.name} {what}"
        failure = at_spot(self._claim, Spot(self._segment.start, self._segment.first), message)
        hint = "; ".join(await self._clean_up()) or None
        raise StepError(failure._replace(hint=hint), ServerError(message), final=True)

    def _is_built(self, found: Sequence[Index]) -> bool:
        """Return whether one of the indexes is valid, and was not there when the statement was begun."""
        new = [index for index in found if index.oid not in self._there]
        built = any(index.valid for index in new)
        if self._about.name is None and (built or len(new) > 1):
            names = ", ".join(index.name if index.valid else f"{index.name} (invalid)" for index in new)
            raise doubtful(
                self._claim.step,
                f"It names no index, so that any new one may be its own; new on {self._table} since then: {names}. ",
            )
        return built

    async def _found(self) -> list[Index]:
        """Return the index that the statement builds, or has built, if it is there.

        A statement without a name builds one that was not there before.
        """

        def ours(index: Index) -> bool:
            return index.wanted if self._about.name else index.oid not in self._there

        return await indexes.settled(self._wire, self._table, self._about.name, ours)

    async def _detach(self) -> None:
        # PostgreSQL refuses to begin an interrupted detachment again.
        finish = f"ALTER TABLE {self._table} DETACH PARTITION {self._about.name} FINALIZE"
        await self._send(finish if await self._pending() else self._text)

    async def _pending(self) -> bool | None:
        """Return whether the partition is half detached; None if it is no partition of the table."""
        pending: bool | None = (await own.ask(self._wire.connection, _DETACHING.format(*self._there)))["pending"]
        return pending

    async def _failure(self, error: asyncpg.PostgresError) -> Failure:
        message = self._message(self._text)
        failure = from_server(self._claim, error, spot(message, error, message.parts[0]))
        hints = [failure.hint] if failure.hint else []
        if isinstance(error, asyncpg.UniqueViolationError) and self._about.nature is Nature.BUILD:
            hints.append("fix the data")
        if not self._may_be_done:
            hints += await self._clean_up()
        return failure._replace(hint="; ".join(hints) or None)

    async def _clean_up(self) -> list[str]:
        """Remove the invalid index that a failed statement has left, and return sentences about that."""
        try:
            if self._about.nature is Nature.REINDEX:
                return await self._warn_of_leftovers()
            if self._about.nature is Nature.BUILD:
                dropped = await indexes.drop_invalid(self._wire, await self._found())
                return [f"the invalid index {name} that it left was dropped" for name in dropped]
        except asyncpg.PostgresError as trouble:
            await self._wire.roll_back("")
            return [f"an invalid index may be left: {describe(trouble)}"]
        return []

    async def _warn_of_leftovers(self) -> list[str]:
        found = await indexes.leftovers(self._wire.connection)
        for sentence in found:
            _log.warning("%s", sentence)
        return found
