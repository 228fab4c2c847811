"""Scripts that run statement by statement, because one of them refuses to run in a transaction.

Each statement that can be is committed together with its count; one that cannot is counted right after.
"""

import asyncpg

from pgratchet.core.model import Segment
from pgratchet.core.scripts import digests
from pgratchet.postgres.failures import Spot, StepError, from_server, spot
from pgratchet.postgres.frames import OURSELVES, Framing
from pgratchet.postgres.message import END, Message, Part
from pgratchet.postgres.records import Claim
from pgratchet.postgres.sql import literal, milliseconds
from pgratchet.postgres.temporary import may_pass
from pgratchet.postgres.wire import Wire

_REFUSALS = (asyncpg.ActiveSQLTransactionError, asyncpg.InvalidTransactionTerminationError)
"""The answers of statements that refuse a transaction without saying so in their words: REINDEX of a partitioned
table, CALL of a procedure that commits."""


async def run(wire: Wire, framing: Framing, claim: Claim, *, over_failed: bool) -> None:
    """Run the statements that are not counted yet, and record the script as finished.

    Raises StepError for the statement that failed; those before it stay committed and counted.
    """
    script = claim.step.script
    await _ours(wire, claim, _opening(framing, claim, over_failed=over_failed))
    for done, (segment, cursor) in enumerate(zip(script.segments, digests(script), strict=True)):
        if done >= claim.step.done:
            count = framing.records.tally(claim, done + 1, cursor)
            await _statement(wire, framing, claim, segment, count)
    await _ours(wire, claim, framing.recording(framing.records.close(claim)))


async def _ours(wire: Wire, claim: Claim, text: str, *, in_doubt: bool = False) -> None:
    """Send statements of ours; raises StepError, at no place of the script, where they cannot be carried out."""
    try:
        await wire.send(text)
    except asyncpg.PostgresError as error:
        if wire.connection.is_closed():
            raise
        await wire.roll_back("")
        raise StepError(from_server(claim, error, Spot()), error, final=True, in_doubt=in_doubt) from error


def _opening(framing: Framing, claim: Claim, *, over_failed: bool) -> str:
    options = claim.step.script.source.options
    statement_timeout = framing.limits.of(options).statement_timeout
    return (
        framing.recording(framing.records.claim(claim, framing.writer, over_failed=over_failed))
        # For the whole session: statements that run bare have no transaction to be local to. No lock_timeout:
        # it would end CREATE INDEX CONCURRENTLY while that waits for older transactions.
        + f"SET lock_timeout = 0;SET statement_timeout = {milliseconds(statement_timeout)};"
        + f"SET application_name = {literal(framing.application(claim))}"
    )


async def _statement(wire: Wire, framing: Framing, claim: Claim, segment: Segment, count: str) -> None:
    path = claim.step.script.source.path
    refused = segment.refuses is not None
    attempt = 0
    while True:
        message = _bare(claim, segment) if refused else _together(framing, claim, segment, count)
        try:
            await wire.send(message.text)
        except asyncpg.PostgresError as error:
            if wire.connection.is_closed():
                raise
            await wire.roll_back("")
            if not refused and isinstance(error, _REFUSALS):
                refused = True
            elif not refused and may_pass(error, attempt):
                await wire.before_retry(f"statement {segment.first} of {path}", error, attempt)
                attempt += 1
            else:
                failure = from_server(claim, error, spot(message, error, message.parts[0]))
                raise StepError(failure, error, final=True) from error
        else:
            break
    if refused:
        # It is done, and not counted: to run it again is for a person to decide.
        await _ours(wire, claim, f"BEGIN;{OURSELVES}{count}COMMIT", in_doubt=True)


def _bare(claim: Claim, segment: Segment) -> Message:
    text = claim.step.script.source.text[segment.start : segment.end]
    return Message(text, (Part(0, claim, segment),))


def _together(framing: Framing, claim: Claim, segment: Segment, count: str) -> Message:
    """Return a statement and its count as one transaction; a lock_timeout that the script has set is kept."""
    limit = milliseconds(framing.limits.of(claim.step.script.source.options).lock_timeout)
    head = (
        f"BEGIN;SELECT pg_catalog.set_config('lock_timeout', {limit}, true) "
        "WHERE pg_catalog.current_setting('lock_timeout') = '0';"
    )
    text = claim.step.script.source.text[segment.start : segment.end]
    return Message(f"{head}{text}{END}{OURSELVES}{count}COMMIT", (Part(len(head), claim, segment),))
