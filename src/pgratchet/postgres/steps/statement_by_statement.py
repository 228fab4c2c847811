"""Scripts that run statement by statement, because some of their statements refuse to run in a transaction.

A statement that may run in a transaction is committed together with its count. A bare one, which may not, is marked as
begun before it runs, and counted after it, each in a transaction of its own: a later run knows which statement is in
doubt, and checks whether it took effect.
"""

from collections.abc import Iterable
from itertools import islice, pairwise

import asyncpg

from pgratchet.core.model import Mode, Segment, State, Step
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
from pgratchet.postgres.wire.failures import REFUSALS, Spot, StepError, from_message, from_server, is_of_plpgsql
from pgratchet.postgres.wire.message import END, Framing, Message, Part
from pgratchet.postgres.wire.sending import Wire


def first_bare(steps: Iterable[Step]) -> tuple[str, str] | None:
    """Return the path of the first script that runs outside a transaction, and the reason; None if there is none."""
    for step in steps:
        if step.script.mode is Mode.STATEMENTS:
            refusing = (segment.refuses for segment in step.script.segments if segment.refuses)
            return step.script.source.path, next(refusing, "its directive")
    return None


async def run_script(wire: Wire, framing: Framing, claim: Claim) -> None:
    """Run the statements that are not counted yet, and record the script as finished.

    Raises StepError for the statement that failed; those before it stay committed and counted.
    """
    try:
        await _Script(wire, framing, claim).run()
    except UnreadableError as error:
        # The answer to a query of ours, in a session whose encoding the file has changed.
        await wire.roll_back("")
        raise StepError(from_server(claim, error, Spot()), error, in_doubt=True) from error


class _Script:
    """A script while it runs.

    `_doubt` is the statement that an earlier run has begun and not counted; None once it is known whether it is done.
    """

    def __init__(self, wire: Wire, framing: Framing, claim: Claim) -> None:
        self._wire = wire
        self._framing = framing
        self._records = framing.records
        self._claim = claim
        self._lock_timeout = milliseconds(framing.limits.of(claim.step.script.source.options).lock_timeout)
        self._note = notes.noting(framing.facts.login)
        self._note_again = notes.noting_again(framing.facts.login)
        self._doubt = doubt(claim.step.over)

    async def run(self) -> None:
        script, done = self._claim.step.script, self._claim.step.done
        claimed = self._recording(self._records.claim(self._claim, self._framing.facts.writer))
        # SET, not SET LOCAL: bare statements have no transaction.
        await self._ours(claimed + self._framing.settings(self._claim, "SET"), in_doubt=self._doubt is not None)
        self._wire.progress.begin(self._claim.step)
        self._wire.progress.left = State.INTERRUPTED
        for segment in session_settings(script, done):
            # The session that had these settings is gone. `_refuse_another_session` compares the result.
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
            count = self._records.tally(self._claim, segment.first, after)
            if segment.refuses or self._doubt or not await self._together(segment, before, count):
                await self._bare(segment, before, after, count)
            self._wire.tell_finished(self._claim.step, segment)
        await self._ours(self._recording(self._records.record(self._claim)))
        self._wire.progress.left = None

    async def _refuse_another_session(self) -> None:
        """Raise HistoryError if this session lacks settings or objects that the finished statements had in theirs."""
        step = self._claim.step
        at = cursor_of(step.over)
        was = at and at.session
        session = notes.session(self._framing.facts.login)
        now: str = (await own.ask(self._wire.connection, f"SELECT ({session}) AS now"))["now"]
        if was not in (None, now):
            raise other_session(step, was, now)

    def _recording(self, sql: str) -> str:
        return self._framing.setting("SET", "lock_timeout", self._lock_timeout) + self._framing.recording(sql)

    async def _bare(self, segment: Segment, before: str, after: str, count: str) -> None:
        """Run a statement outside a transaction: mark it as begun, run it, count it."""
        mark = self._records.begin(self._claim, segment.first - 1, before, after)
        # A statement that an earlier run has begun keeps the objects that were there at that time.
        about = read(self._claim.step.script.text_of(segment))
        aim = notes.aim(about, self._doubt and self._doubt.there)
        self._wire.progress.left = State.INTERRUPTED if about.is_recoverable else State.IN_DOUBT
        await self._ours(self._noting(mark, self._note + aim), in_doubt=self._doubt is not None)
        await Supervised(self._wire, self._claim, segment, self._doubt).run()
        # If this fails, the statement is done, and not counted: the next run has to check.
        await self._ours(self._noting(count, self._note), in_doubt=True)
        self._doubt = None
        self._wire.progress.left = State.INTERRUPTED

    def _noting(self, sql: str, note: str) -> str:
        """Return a transaction of our own that notes the state of the session before it runs `sql`."""
        limit = self._framing.setting("SET LOCAL", "lock_timeout", self._lock_timeout)
        return f"BEGIN;{note}{limit}{self._framing.ourselves}{sql}COMMIT"

    async def _together(self, segment: Segment, before: str, count: str) -> bool:
        """Run a statement and its count as one transaction. False: the statement refuses a transaction."""
        # The last COMMIT may have ended some of the noted settings and objects: SET LOCAL, ON COMMIT DROP.
        head = f"{self._noting(self._records.note(self._claim, before), self._note_again)};" if before else ""
        head += f"BEGIN;{self._framing.boundary}"
        # Deferred constraints are checked with the role of the script, before it becomes ours.
        ours = f"{self._framing.boundary}{self._note}{self._framing.ourselves}"
        tail = f"SET CONSTRAINTS ALL IMMEDIATE;{ours}{count}COMMIT"
        text = f"{head}{self._claim.step.script.text_of(segment)}{END}{tail}"
        message = Message(text, (Part(len(head), self._claim, segment),))
        place = f"statement {segment.first} of {self._claim.step.script.source.path}"
        try:
            await self._wire.retried(place, lambda: self._wire.send(message))
        except REFUSALS:
            return False
        except asyncpg.PostgresError as error:
            if self._framing.facts.plpgsql and is_of_plpgsql(error):
                self._framing = self._framing.without_plpgsql()
                return await self._together(segment, before, count)
            if not (isinstance(error, UnreadableError) and await self._is_counted(segment)):
                crossed = self._wire.crossed if self._framing.marker else None
                raise self._failed(message, error, crossed) from error
        return True

    def _failed(self, message: Message, error: asyncpg.PostgresError, crossed: int | None = 1) -> StepError:
        """Return the failure of the statement that is the only part of a message."""
        failure = from_message(self._claim, error, message, message.parts[0], self._records, crossed)
        return StepError(failure, error, final=True, in_doubt=self._doubt is not None)

    async def _is_counted(self, segment: Segment) -> bool:
        """Return whether the history counts a statement as done."""
        version = self._claim.step.migration.version
        rows = await History(self._records.table).read_some(self._wire.connection, [version])
        return any(row.token == self._claim.token and row.statements_done >= segment.first for row in rows)

    async def _ours(self, text: str, *, in_doubt: bool = False) -> None:
        """Run statements of ours, repeated while another session has locked the history.

        Raises StepError, without a place in the file, if they fail.
        """
        step = self._claim.step
        place = f"{step.direction} {step.migration.version} {step.migration.name}"
        try:
            await self._wire.retried(place, lambda: self._wire.send(Message(text)))
        except asyncpg.PostgresError as error:
            failure = from_message(self._claim, error, Message(text), None, self._records, 0)
            raise StepError(failure, error, final=True, in_doubt=in_doubt) from error
