"""The steps of a run, done in order and recorded. A step is reported once it is known to be committed and durable."""

import logging
import time
from bisect import insort
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from uuid import uuid4

import asyncpg

from pgratchet.core.errors import ConnectionLostError, MigrationFailedError, PgratchetError, ServerError
from pgratchet.core.model import Direction, Failure, Finished, HistoryRow, Kind, Lock, Mode, RecordState, Segment, Step
from pgratchet.core.printing import in_ascii
from pgratchet.core.sql.scripts import loads_another_library
from pgratchet.core.sql.statements import scan
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.ledger.records import FLUSH, Applied, Claim, Records
from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import Budget, Tries, retry
from pgratchet.postgres.link.own import Guard, UnreadableError
from pgratchet.postgres.link.session import Connection, OutdatedSessionError, describe
from pgratchet.postgres.steps import python_steps, statement_by_statement
from pgratchet.postgres.wire import failures
from pgratchet.postgres.wire.discretion import recordable
from pgratchet.postgres.wire.failures import OvertakenError, StepError
from pgratchet.postgres.wire.message import Framing, Message, Part, share
from pgratchet.postgres.wire.progress import Group, Progress
from pgratchet.postgres.wire.sending import Wire

_FAILS = "SELECT 1 OPERATOR(pg_catalog./) 0;"
"""A statement that fails before anything behind it in its message runs."""

_log = logging.getLogger("pgratchet")


class Execution:
    """The steps of one run, in one session; `progress` is kept up to date all along.

    The steps that are left are in groups; the steps of a group share a message. The `rest` is grouped as it is needed:
    while the server works.
    """

    def __init__(self, wire: Wire, framing: Framing, progress: Progress) -> None:
        self._progress = progress
        self._wire = wire
        self._framing = framing
        self._overtaken: set[tuple[str, str | None]] = set()
        self._groups: deque[Group] = deque()
        self._rest: Iterator[Group] = iter(())
        self._next: tuple[Group, tuple[Message, ...]] | None = None

    async def carry_out(self, records: Records, steps: Iterable[Step], applied: Iterable[str]) -> None:
        """Run the steps; raises MigrationFailedError for the first that fails, and does not run those after it.

        `applied` are the versions that were applied when the steps were planned. Raises OvertakenError if others are
        by now, BusyError if another runner has the lock, OutdatedSessionError if the rest needs a new session.
        """
        self._framing = self._framing._replace(records=records)
        alone = records.lock is not Lock.SESSION
        event_triggers = self._framing.facts.event_triggers
        self._groups = deque()
        self._rest = _one_by_one(steps, applied) if alone else share(steps, event_triggers=event_triggers)
        with self._wire.listening():
            while self._has_group(0):
                last, finished = self._groups[0][-1].step, len(self._progress.finished)
                try:
                    await retry(self._run_first, Tries(), self._before_retry, _repeatable)
                except StepError as error:
                    claim, failure, cause = self._groups[0][0], error.failure, error.cause
                    if isinstance(cause, asyncpg.PostgresError):
                        error.failure = failure = await attributed(self._wire, self._framing, claim, failure, cause)
                    if failure.history is None:
                        await self._record_failure(claim, error)
                    raise MigrationFailedError(failure, self._progress.finished) from error.cause
                done = (step.version for step in self._progress.finished[finished:])
                if self._has_group(0) and last.migration.version in done and loads_another_library(last.script):
                    # Otherwise a new database, built at once, would differ from one that was built release by release.
                    raise OutdatedSessionError

    def _has_group(self, at: int) -> bool:
        """Return whether so many groups, and one more, are left."""
        self._groups.extend(islice(self._rest, max(0, at + 1 - len(self._groups))))
        return at < len(self._groups)

    async def _run_first(self) -> None:
        """Run the first group, or a part of it, and take the steps that are done out of the groups.

        Raises StepError if the first of the steps that are left has failed; OvertakenError or BusyError if it must not
        begin, or its row belongs to another run.
        """
        group = self._groups[0]
        step = group[0].step
        self._progress.unanswered = group
        self._progress.left = None
        self._progress.attempts += 1
        limits = self._framing.limits.of(step.script.source.options)
        self._wire.begin(group, limits.lock_timeout)
        if self._framing.marker is None:
            # The server does not say when it has claimed the step.
            self._progress.begin(step)
        try:
            if step.script.mode is Mode.STATEMENTS:
                await self._alone(statement_by_statement.run_script, group[0])
            elif step.migration.kind is Kind.PYTHON:
                await self._alone(python_steps.run_function, group[0])
            else:
                await self._together(group)
        except StepError as error:
            is_python = step.migration.kind is Kind.PYTHON
            if is_python and self._framing.marker and failures.is_of_plpgsql(error.cause):
                self._framing = self._framing.without_plpgsql()
                return
            failures.raise_if_not_its_turn(self._framing.records, error.cause)
            migration, over = self._groups[0][0].step.migration, self._groups[0][0].step.over
            claimed = migration.version, over and over.token
            if claimed not in self._overtaken and await self._is_taken(self._groups[0][0], error.cause):
                self._overtaken.add(claimed)
                raise OvertakenError from error
            raise
        self._progress.unanswered = ()

    async def _alone(self, run: Callable[[Wire, Framing, Claim], Awaitable[None]], claim: Claim) -> None:
        started = time.monotonic()
        await run(self._wire, self._framing, claim)
        self._groups.popleft()
        report(self._progress, claim.step, time.monotonic() - started)

    async def _together(self, group: Group) -> None:
        sent: list[Part] = []
        ready = self._next is not None and self._next[0] is group
        messages: Iterable[Message] = self._next[1] if self._next and ready else self._framing.messages(group)
        started = time.monotonic()
        for message in messages:
            sent += message.parts
            try:
                read = await self._wire.send(message, self._compose_next)
            except asyncpg.PostgresError as error:
                await self._after_error(message, sent, error)
                return
        self._groups.popleft()
        seconds: dict[str, float | None] = {group[0].step.migration.version: time.monotonic() - started}
        if len(group) > 1:
            # Of steps that shared a message only the history knows how long each took.
            seconds.clear()
            with suppress(ServerError):
                rows = History(self._framing.records.table).was_read(read)
                seconds = {row.version: _seconds(row) for row in rows}
        for claim in group:
            report(self._progress, claim.step, seconds.get(claim.step.migration.version))

    async def _compose_next(self) -> None:
        """Compose the next message, if it is a short one, while the server works on this one."""
        if not self._has_group(1):
            return
        group = self._groups[1]
        if len(group) > 1 and (self._next is None or self._next[0] is not group):
            self._next = group, tuple(self._framing.messages(group))

    async def _after_error(self, message: Message, sent: Sequence[Part], error: asyncpg.PostgresError) -> None:
        """Take the steps that are done out of the first group; raises StepError if the first of the others failed."""
        without_marks = self._framing.facts.plpgsql and failures.is_of_plpgsql(error)
        if without_marks:
            # A script has taken the language away, or its role has no right to it.
            self._framing, self._next = self._framing.without_plpgsql(), None
        await self._wire.roll_back(self._framing.reset)
        await resolve(self._wire.connection, self._framing.records, self._progress, self._wire.budget)
        group = self._groups.popleft()
        rest = self._progress.unanswered
        if rest and without_marks:
            self._groups.appendleft(rest)
            return
        if not rest and (without_marks or isinstance(error, UnreadableError)):
            # It was about a notice, or about the reset, which has succeeded by now.
            _log.warning("%s", describe(error))
            return
        if not rest:
            raise ConnectionLostError(f"the session could not be reset: {describe(error)}") from error
        culprit = failures.owner(message, error)
        if culprit is not None and culprit.claim in rest[1:]:
            # A syntax error: the server reads a message as a whole before it runs any of it.
            cut = rest.index(culprit.claim)
            self._groups.extendleft((rest[cut:], rest[:cut]))
            return
        if failures.may_be_of_any(error) and len(rest) == len(group) > 1 and self._wire.marks == 0:
            # Nothing says which step it is about: the server reads and converts a message as a whole, too.
            self._groups.extendleft((claim,) for claim in reversed(rest))
            return
        self._groups.extendleft(group for group in (rest[1:], rest[:1]) if group)
        reached = failures.reached(sent, rest[0], self._wire.marks)
        crossed = self._wire.crossed if self._framing.marker and len(rest) == len(group) else None
        failure = failures.from_message(rest[0], error, message, reached, self._framing.records, crossed)
        raise StepError(failure, error) from error

    async def _before_retry(self, error: asyncpg.PostgresError, attempt: int) -> None:
        step = self._groups[0][0].step
        place = f"{step.direction} {step.migration.version} {step.migration.name}"
        await self._wire.before_retry(place, error, attempt)

    async def _is_taken(self, claim: Claim, error: BaseException) -> bool:
        """Return whether the row belongs to another run, which was first, or took over because we seemed to be dead."""
        table = self._framing.records.table
        if isinstance(error, asyncpg.UniqueViolationError):
            return (error.schema_name, error.table_name) == (table.schema, table.name)
        if claim.step.script.mode is not Mode.STATEMENTS or self._framing.records.guards.raised(error) is None:
            return False
        rows = await History(table).read_some(self._wire.connection, [claim.step.migration.version])
        return any(row.token != claim.token for row in rows)

    async def _record_failure(self, claim: Claim, error: StepError) -> None:
        text = recordable(error.failure, error.cause, claim.step.script.source.text)
        try:
            try:
                await self._record(claim, text, in_doubt=error.in_doubt)
            except asyncpg.UntranslatableCharacterError:
                # The encoding of the database lacks a character of the title, or of the text.
                migration = claim.step.migration
                named = claim.step._replace(migration=migration._replace(name=in_ascii(migration.name)))
                await self._record(claim._replace(step=named), in_ascii(text), in_doubt=error.in_doubt)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, PgratchetError) as trouble:
            _log.warning("the failure could not be recorded: %s", describe(trouble))

    async def _record(self, claim: Claim, text: str, *, in_doubt: bool) -> None:
        records, writer = self._framing.records, self._framing.facts.writer
        sql = records.doubt(claim, text) if in_doubt else records.fail(claim, writer, text)
        await self._wire.send_apart(Message(self._framing.recording(sql)))


async def attributed(
    wire: Wire, framing: Framing, claim: Claim, failure: Failure, cause: asyncpg.PostgresError
) -> Failure:
    """Return the failure, as the history's if our own statements fail alone as well.

    They do so behind a script, or with a deferred constraint that calls a function, or where a trigger undoes them.
    """
    records = framing.records
    raised = records.guards.raised(cause)
    if failure.history is None:
        is_placed = cause.position is not None and failure.line is not None
        if failures.may_be_of_any(cause) and failure.line is None:
            return await _found(wire, claim, failure, cause)
        if is_placed or failures.may_be_of_any(cause) or raised not in (None, Guard.ROW):
            return failure
        is_whole = claim.step.script.mode is Mode.TRANSACTION
        alone = framing.opening(claim) + framing.closing(claim) if is_whole else records.touch(claim)
        try:
            await own.execute(wire.connection, f"BEGIN;{alone}SET CONSTRAINTS ALL IMMEDIATE;ROLLBACK")
        except asyncpg.PostgresError as error:
            await wire.roll_back(framing.reset)
            is_same = raised is Guard.ROW or (error.args[0], error.context) == (cause.args[0], cause.context)
            if not is_same or records.guards.raised(error) is not raised or error.sqlstate != cause.sqlstate:
                return failure
        else:
            return failure
    return await failures.explained(wire.connection, claim, cause, records)


async def _found(wire: Wire, claim: Claim, failure: Failure, cause: asyncpg.PostgresError) -> Failure:
    """Return the failure with the place of the first statement that the server cannot read, if that is one of the file.

    The server reads a message as a whole before it runs any of it. So it fails to read one with that statement in it;
    of any other the first statement fails, and nothing runs.
    """
    text, segments = claim.step.script.source.text, claim.step.script.segments
    statements = list(scan(text)) if segments else []

    async def cannot_read(count: int) -> bool:
        end = statements[count - 1].end
        begin = Part(len(_FAILS), claim, Segment(0, end, first=1, statements=count))
        try:
            await wire.send(Message(_FAILS + text[:end], (begin,)))
        except asyncpg.PostgresError as error:
            return error.sqlstate == cause.sqlstate
        return False

    if not statements or not await cannot_read(len(statements)):
        return failure
    read, unread = 0, len(statements)
    while unread - read > 1:
        middle = (read + unread) // 2
        read, unread = (read, middle) if await cannot_read(middle) else (middle, unread)
    place = statements[unread - 1].start
    segment = next(segment for segment in segments if place < segment.end)
    found = failures.at_spot(claim, failures.inside(Part(0, claim, segment), place), failure.message)
    return failure._replace(line=found.line, column=found.column, statement=found.statement, excerpt=found.excerpt)


async def resolve(connection: Connection, records: Records, progress: Progress, budget: Budget) -> None:
    """Report the unanswered steps that are done, from the first on, once they are durable; the others stay unanswered.

    After an error, or without an answer, only the history knows which are done. To be called when no session is at work
    on the steps any more: a server may notice late that its client is gone, and finish the work.
    """
    group = progress.unanswered
    versions = [claim.step.migration.version for claim in group]
    rows = {row.version: row for row in await History(records.table).read_patiently(connection, budget, versions)}
    done = []
    for claim in group:
        row = rows.get(claim.step.migration.version)
        if claim.step.direction is Direction.DOWN:
            is_done = row is None
        else:
            is_done = row is not None and row.token == claim.token and row.state is RecordState.APPLIED
        if not is_done:
            break
        done.append((claim.step, _seconds(row)))
    if 0 < len(done) < len(group):
        # All but the last of a group commit asynchronously; a reported step must survive a crash of the server.
        await own.execute(connection, FLUSH)
    for step, seconds in done:
        report(progress, step, seconds)
    progress.unanswered = group[len(done) :]


def report(progress: Progress, step: Step, seconds: float | None) -> None:
    """Add a step to the finished ones, and tell it."""
    progress.begin(step)
    migration = step.migration
    finished = Finished(migration.version, migration.name, step.direction, step.script.statements, seconds)
    progress.finished.append(finished)
    progress.tell(finished)


def _repeatable(error: Exception) -> asyncpg.PostgresError | None:
    """Return the server's error after which a step may be run again, if it is a temporary one; None for any other."""
    if isinstance(error, StepError) and isinstance(error.cause, asyncpg.PostgresError) and not error.final:
        return error.cause
    return None


def _one_by_one(steps: Iterable[Step], applied: Iterable[str]) -> Iterator[Group]:
    """Yield the steps, claimed, each alone and with the versions that are applied when its turn comes."""
    there = sorted(version.encode() for version in applied)
    for step in steps:
        yield (Claim(step, uuid4().hex, Applied.of(there)),)
        version = step.migration.version.encode()
        if step.direction is Direction.UP:
            insort(there, version)
        else:
            there.remove(version)


def _seconds(row: HistoryRow | None) -> float | None:
    """Return how long a row's step took; None if that is unknown, as with a type codec that makes no datetime."""
    if row is None or not (isinstance(row.finished_at, datetime) and isinstance(row.started_at, datetime)):
        return None
    return (row.finished_at - row.started_at).total_seconds()
