"""Scripts that run statement by statement, because one of them refuses to run in a transaction.

Each statement that can be is committed together with its count. Before one that cannot, it is committed that it is
begun, and after it that it is done: a later run knows which one is in doubt, and judges it.
"""

from collections.abc import Iterable
from itertools import islice, pairwise

import asyncpg

from pgratchet.core.model import Mode, Segment, Step
from pgratchet.core.plan.halfway import cursor_of, doubt, other_session
from pgratchet.core.sql.bare import read
from pgratchet.core.sql.scripts import digests, session_settings
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.ledger.records import Claim
from pgratchet.postgres.link import own
from pgratchet.postgres.link.own import UnreadableError
from pgratchet.postgres.link.sql import milliseconds
from pgratchet.postgres.steps import notes
from pgratchet.postgres.steps.supervision import Supervised
from pgratchet.postgres.wire.failures import Spot, StepError, from_server, spot
from pgratchet.postgres.wire.message import END, Framing, Message, Part
from pgratchet.postgres.wire.sending import Wire

_REFUSALS = (asyncpg.ActiveSQLTransactionError, asyncpg.InvalidTransactionTerminationError)
"""The answers of statements that refuse a transaction without saying so in their words: REINDEX of a partitioned
table, CALL of a procedure that commits."""


def first_bare(steps: Iterable[Step]) -> tuple[str, str] | None:
    """Return the path of the first script that runs outside a transaction, and why it does; None if all run inside."""
    for step in steps:
        if step.script.mode is Mode.STATEMENTS:
            refusing = (segment.refuses for segment in step.script.segments if segment.refuses)
            return step.script.source.path, next(refusing, "its directive")
    return None


async def run(wire: Wire, framing: Framing, claim: Claim) -> None:
    """Run the statements that are not counted yet, and record the script as finished.

    Raises StepError for the statement that failed; those before it stay committed and counted.
    """
    try:
        await _Run(wire, framing, claim).run()
    except UnreadableError as error:
        # In answer to a query of ours, in a session whose encoding the file has changed.
        await wire.roll_back("")
        raise StepError(from_server(claim, error, Spot()), error, in_doubt=True) from error


class _Run:
    """One script on its way; a statement is in doubt until it is judged."""

    def __init__(self, wire: Wire, framing: Framing, claim: Claim) -> None:
        self._wire = wire
        self._framing = framing
        self._records = framing.records
        self._claim = claim
        self._limits = framing.limits.of(claim.step.script.source.options)
        self._note = notes.take(framing.facts.login)
        self._note_again = notes.take_again(framing.facts.login)
        self._doubt = doubt(claim.step.over)

    async def run(self) -> None:
        script, done = self._claim.step.script, self._claim.step.done
        await self._ours(self._opening(), in_doubt=self._doubt is not None)
        for segment in session_settings(script, done):
            # The session that they were made in is gone. The new one is compared with the recorded one below.
            message = Message(script.text_of(segment), (Part(0, self._claim, segment),))
            try:
                await self._wire.send(message)
            except asyncpg.PostgresError as error:
                await self._wire.roll_back("")
                if not isinstance(error, UnreadableError):
                    raise self._failed(message, error) from error
        await self._refuse_another_session()
        places = zip(script.segments, pairwise(["", *digests(script)]), strict=True)
        for segment, (before, after) in islice(places, done, None):
            await self._statement(segment, before, after)
        await self._ours(self._recording(self._records.record(self._claim)))

    async def _refuse_another_session(self) -> None:
        """Raise HistoryError where what the finished statements had made of their session is not there again."""
        step = self._claim.step
        at = cursor_of(step.over)
        was = at and at.session
        now: str = await own.fetchval(self._wire.connection, notes.session(self._framing.facts.login))
        if was not in (None, now):
            raise other_session(step, was, now)

    def _opening(self) -> str:
        claimed = self._recording(self._records.claim(self._claim, self._framing.facts.writer))
        # For the whole session: statements that run bare have no transaction to be local to.
        return claimed + self._framing.settings(self._claim, "SET")

    def _recording(self, sql: str) -> str:
        return f"SET lock_timeout = {milliseconds(self._limits.lock_timeout)};{self._framing.recording(sql)}"

    async def _statement(self, segment: Segment, before: str, after: str) -> None:
        tally = self._records.tally(self._claim, segment.first, after)
        if segment.refuses or self._doubt or not await self._together(segment, before, tally):
            await self._bare(segment, before, after, tally)
        self._wire.tell_finished(self._claim.step, segment)

    async def _bare(self, segment: Segment, before: str, after: str, tally: str) -> None:
        begin = self._records.begin(self._claim, segment.first - 1, before, after)
        # Of one that was begun before, it stays what was there then.
        aim = notes.aim(read(self._claim.step.script.text_of(segment)), self._doubt and self._doubt.there)
        await self._ours(self._noting(begin, self._note + aim), in_doubt=self._doubt is not None)
        await Supervised(self._wire, self._claim, segment, self._doubt).run()
        # It is done, and not counted: if that fails, the next run has to judge it.
        await self._ours(self._noting(tally, self._note), in_doubt=True)
        self._doubt = None

    def _noting(self, sql: str, note: str) -> str:
        """Return statements of ours as a transaction of their own, behind what notes the session."""
        limit = f"SET LOCAL lock_timeout = {milliseconds(self._limits.lock_timeout)};"
        return f"BEGIN;{note}{limit}{self._framing.ourselves}{sql}COMMIT"

    async def _together(self, segment: Segment, before: str, tally: str) -> bool:
        """Run a statement and its count as one transaction; False: it refuses that."""
        # What was noted before the last COMMIT may have ended with that: SET LOCAL, ON COMMIT DROP.
        head = f"{self._noting(self._records.note(self._claim, before), self._note_again)};" if before else ""
        head += "BEGIN;"
        # What is deferred is checked as the script, not as ourselves.
        tail = f"SET CONSTRAINTS ALL IMMEDIATE;{self._note}{self._framing.ourselves}{tally}COMMIT"
        text = f"{head}{self._claim.step.script.text_of(segment)}{END}{tail}"
        message = Message(text, (Part(len(head), self._claim, segment),))
        place = f"statement {segment.first} of {self._claim.step.script.source.path}"
        try:
            await self._wire.retried(place, lambda: self._wire.send(message))
        except _REFUSALS:
            return False
        except asyncpg.PostgresError as error:
            if not (isinstance(error, UnreadableError) and await self._is_counted(message)):
                raise self._failed(message, error) from error
        return True

    def _failed(self, message: Message, error: asyncpg.PostgresError) -> StepError:
        """Return the failure of the one statement that a message is about."""
        raised = self._records.guards.raised(error)
        failure = from_server(self._claim, error, spot(message, error, message.parts[0]), raised)
        return StepError(failure, error, final=True, in_doubt=self._doubt is not None)

    async def _is_counted(self, message: Message) -> bool:
        """Say whether the history has it that the statement of a message is done."""
        version = self._claim.step.migration.version
        rows = await History(self._records.table).read_some(self._wire.connection, [version])
        first = message.parts[0].segment.first
        return any(row.token == self._claim.token and row.statements_done >= first for row in rows)

    async def _ours(self, text: str, *, in_doubt: bool = False) -> None:
        """Send statements of ours, again and again while somebody's lock on the history is in the way.

        Raises StepError, at no place of the script, where they cannot be carried out.
        """
        step = self._claim.step
        place = f"{step.direction} {step.migration.version} {step.migration.name}"
        try:
            await self._wire.retried(place, lambda: self._wire.send(Message(text)))
        except asyncpg.PostgresError as error:
            failure = from_server(self._claim, error, Spot(), self._records.guards.raised(error))
            raise StepError(failure, error, final=True, in_doubt=in_doubt) from error
