"""Failures of steps, in terms of files: path, line, column, statement."""

import asyncio
import re
import traceback
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

from pgratchet.core.causes import told
from pgratchet.core.model import Failure, Mode
from pgratchet.core.printing import line_of
from pgratchet.core.sql.statements import scan
from pgratchet.postgres.ledger import trust
from pgratchet.postgres.ledger.columns import COLUMNS
from pgratchet.postgres.ledger.lock import BusyError
from pgratchet.postgres.ledger.records import Claim, Records
from pgratchet.postgres.link.own import Guard, UnreadableError
from pgratchet.postgres.link.session import Connection, OutdatedSessionError
from pgratchet.postgres.link.sql import Table, identifier
from pgratchet.postgres.wire.message import Message, Part, part_at

_OF_CHARACTERS = {"22021", "22P05"}
_OF_A_MESSAGE = _OF_CHARACTERS | {"42601", "54000", "54001", "53200", "08P01"}
"""SQLSTATEs of errors that a message as a whole may raise before any of it runs: conversion, lexing, its size."""

_OF_A_LANGUAGE = {"42501", "42704", "42883", "0A000"}

UNIQUE_VIOLATION = "23505"
SYNTAX_ERROR = "42601"
"""Our own statements have none: a script that ends too early lets the server find it in them."""

_LEAVE_ALONE = "the migration changes the history, or puts a trigger on it: let it leave that table alone"

_BYTES = re.compile(r"0x[0-9a-f]{2}(?: 0x[0-9a-f]{2})*")

EXCERPT_LINES = 2
"""How many lines are shown before and after the one that failed."""


REFUSALS = (asyncpg.ActiveSQLTransactionError, asyncpg.InvalidTransactionTerminationError)
"""Errors of statements that refuse a transaction although their words do not show it: REINDEX of a partitioned table,
CALL of a procedure that commits."""

SELF_CANCELLED = "nobody has cancelled the run: the migration cancelled itself, or awaited a task that was cancelled"


class StepError(Exception):
    """A step failed, is rolled back, and is not recorded yet.

    A `final` failure is not tried again; a step `in_doubt` may have taken effect in part.
    """

    def __init__(self, failure: Failure, cause: BaseException, *, final: bool = False, in_doubt: bool = False) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.cause = cause
        self.final = final or in_doubt
        self.in_doubt = in_doubt


class OvertakenError(Exception):
    """Another runner has been at work: the history must be read again."""


def raise_if_not_its_turn(records: Records, error: BaseException) -> None:
    """Raise BusyError, OvertakenError or OutdatedSessionError if the error says that the step must not begin now.

    It must not begin as planned, or not in this session.
    """
    match records.guards.raised(error):
        case Guard.BUSY:
            raise BusyError
        case Guard.MOVED | Guard.TABLE:
            raise OvertakenError
        case Guard.SESSION:
            # Otherwise a new database, built at once, would differ from one that was built release by release.
            raise OutdatedSessionError


class Spot(NamedTuple):
    """A place in a script: the offset of the character and the number of the statement, None if unknown."""

    offset: int | None = None
    statement: int | None = None


def owner(message: Message, error: asyncpg.PostgresError) -> Part | None:
    """Return the part of a message that an error points into, None if it has no position in a part."""
    return None if error.position is None else part_at(message, int(error.position))


def may_be_of_any(error: asyncpg.PostgresError) -> bool:
    """Return whether an error may be about any part of a message, if no part of it has run."""
    return error.position is None and not error.context and error.sqlstate in _OF_A_MESSAGE


def is_of_plpgsql(error: BaseException | None) -> bool:
    """Return whether an error may be that of a marker: the language, or its library, is gone or not allowed."""
    if not isinstance(error, asyncpg.PostgresError) or error.position is not None or error.context:
        return False
    code = error.sqlstate or ""
    return (code in _OF_A_LANGUAGE or code[:2] in {"58", "XX"}) and "plpgsql" in str(error.args[0])


def spot(message: Message, error: asyncpg.PostgresError, reached: Part | None) -> Spot:
    """Return the place of an error: its own position, or else the part that execution had `reached`."""
    part = owner(message, error)
    if part is not None and error.position is not None:
        return inside(part, min(part.segment.start + int(error.position) - 1 - part.at, part.segment.end))
    if reached is None:
        return Spot()
    if may_be_of_any(error) and error.sqlstate in _OF_CHARACTERS:
        mine = [part for part in message.parts if part.claim is reached.claim]
        if mine[:1] == [reached]:
            return _of_character(mine, _character(error))
    return _beginning(reached)


def _beginning(part: Part) -> Spot:
    return Spot(part.segment.start, part.segment.first if part.segment.statements == 1 else None)


def _of_character(parts: Sequence[Part], character: str) -> Spot:
    """Return the place of a character that the server has refused before it ran any of a step's parts, or the first.

    The place is unknown if the character is, or if it stands in the title of the file.
    """
    for part in parts if character else ():
        if (found := part.claim.step.script.text_of(part.segment).find(character)) >= 0:
            return inside(part, part.segment.start + found)
    if character in parts[0].claim.step.migration.name and (character or len(parts) > 1):
        return Spot()
    return _beginning(parts[0])


def _character(error: asyncpg.PostgresError) -> str:
    """Return the character that an error names by its bytes, empty if it names none."""
    named = _BYTES.search(str(error.args[0]) if error.args else "")
    return bytes.fromhex(named[0].replace("0x", "")).decode(errors="ignore") if named else ""


def reached(sent: Sequence[Part], claim: Claim, marks: int) -> Part | None:
    """Return the part of a step that was running after that number of markers; None if that is unknown.

    It is unknown without markers, and after the last part: a deferred constraint fails there, for example.
    """
    mine = [part for part in sent if part.claim is claim]
    if len(mine) <= 1:
        return mine[0] if mine else None
    done = marks - sum(part.marked for part in sent[: sent.index(mine[0])])
    return mine[done] if mine[0].marked and 0 <= done < len(mine) else None


def inside(part: Part, offset: int) -> Spot:
    """Return the place of a character of a part's script."""
    if part.segment.statements == 1:
        return Spot(offset, part.segment.first)
    text = part.claim.step.script.source.text[part.segment.start : part.segment.end]
    before = sum(statement.end < offset - part.segment.start for statement in scan(text))
    return Spot(offset, part.segment.first + before)


def from_message(  # noqa: PLR0913, PLR0917 - the error, and all that tells where it comes from
    claim: Claim,
    error: asyncpg.PostgresError,
    message: Message,
    reached: Part | None,
    records: Records,
    crossed: int | None,
) -> Failure:
    """Return the server's error about a step in a message as a failure; `reached` is the part that was running.

    `crossed` counts the boundaries that the server has passed in this step; None if it does not tell.
    """
    raised = records.guards.raised(error)
    is_of_text = owner(message, error) is not None or (error.sqlstate == SYNTAX_ERROR and not error.context)
    is_outside = crossed is None and error.position is not None
    if raised is None and not is_of_text and (is_outside or is_of_ours(error, records.table, crossed)):
        return from_history(claim, error, records.table, crossed)
    return from_server(claim, error, spot(message, error, reached), raised)


def is_of_ours(error: asyncpg.PostgresError, table: Table, crossed: int | None) -> bool:
    """Return whether a statement of ours, before or behind the script, has failed.

    Without a count of the boundaries only an error that names the history does.
    """
    is_of_all = (error.sqlstate or "").startswith("40") or (may_be_of_any(error) and crossed == 0)
    if is_of_all or isinstance(error, UnreadableError):
        return False
    return (error.schema_name, error.table_name) == table if crossed is None else crossed != 1


def from_history(
    claim: Claim, error: asyncpg.PostgresError, table: Table, crossed: int | None, cure: str = _LEAVE_ALONE
) -> Failure:
    """Return the server's error about a statement of ours as a failure without a place in a file.

    It is the history's if the script had not begun. Behind a script, the script may have changed the history.
    """
    message = f"the history {table} cannot be written: {error.args[0] if error.args else error}"
    hint = "; ".join(filter(None, (error.hint, cure)))
    history = str(table) if crossed == 0 else None
    return from_server(claim, error, Spot())._replace(message=message, hint=hint, history=history)


async def explained(connection: Connection, claim: Claim, error: asyncpg.PostgresError, records: Records) -> Failure:
    """Return the failure of the history that an error is, with its cure."""
    table = records.table
    attached = " and ".join(await trust.attached(connection, table))
    is_named = (error.schema_name, error.table_name) == table
    if is_named and error.column_name and error.column_name not in COLUMNS:
        column = identifier(error.column_name)
        cure = (
            f"the column {error.column_name} is not pgratchet's, and needs a default: "
            f"ALTER TABLE {table.quoted} ALTER COLUMN {column} SET DEFAULT ..., or DROP NOT NULL"
        )
    elif is_named and error.constraint_name and error.sqlstate != UNIQUE_VIOLATION:
        drop = f"ALTER TABLE {table.quoted} DROP CONSTRAINT {identifier(error.constraint_name)}"
        cure = f"the constraint {error.constraint_name} is not pgratchet's, and refuses its rows: {drop}"
    elif attached:
        cure = f"{attached} of the table runs when it is written: correct that, or take it off the table"
    elif await trust.has_active_policies(connection, table):
        cure = f"row level security is enabled, and no policy lets the role write all rows: {trust.opening(table)}"
    else:
        cure = f"somebody has changed the table since it was made: psql shows how by \\d+ {table.quoted}"
    failure = from_history(claim, error, table, 0, cure)
    if records.guards.raised(error) is not None:
        message = f"the history {table} cannot be written: something undoes what this run writes there"
        failure = failure._replace(message=message, sqlstate=None)
    return failure


def from_server(claim: Claim, error: asyncpg.PostgresError, spot: Spot, raised: Guard | None = None) -> Failure:
    """Return the server's error about a step as a failure at a place in its file; `raised` is our guard in it."""
    message, hint = str(error.args[0] if error.args else error), error.hint
    if raised is not None:
        message = str(raised)
        hint = "a migration must not end its transaction, release locks, or write to the history"
    elif spot.offset is None and (character := _character(error)) and character in claim.step.migration.name:
        hint = "the title of the file has a character that the encoding of the database lacks: rename the file"
    elif isinstance(error, REFUSALS) and claim.step.script.mode is Mode.TRANSACTION:
        hint = "move the statement to an SQL file of its own, with a first line '-- pgratchet: no-transaction'"
    return at_spot(claim, spot, message)._replace(
        sqlstate=error.sqlstate,
        detail=error.detail,
        hint=hint,
        context=error.context,
    )


def from_python(
    claim: Claim, error: BaseException, reason: BaseException, records: Records, crossed: int | None
) -> Failure:
    """Return an exception of a Python step as a failure, at the innermost line of the migration's own file.

    `reason` is the error itself, or the only one inside of it; `crossed` is as in `from_message`.
    """
    raised = records.guards.raised(reason)
    if isinstance(reason, asyncpg.PostgresError) and raised is None and is_of_ours(reason, records.table, crossed):
        return from_history(claim, reason, records.table, crossed)
    path, text = claim.step.script.source.path, claim.step.script.source.text
    # A task that is started from a library has no line of the file: then the group's own line counts.
    line = _line(reason, path) or _line(error, path)
    offset = None if line is None else _start_of(text, line)
    if isinstance(reason, asyncpg.PostgresError):
        return from_server(claim, reason, Spot(offset), raised)
    hint = SELF_CANCELLED if isinstance(reason, asyncio.CancelledError) else None
    return at_spot(claim, Spot(offset), told(reason))._replace(hint=hint)


def _line(error: BaseException, path: str) -> int | None:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return frames[-1].lineno if frames else None


def _start_of(text: str, line: int) -> int:
    before = text.split("\n")[: line - 1]
    return sum(len(each) + 1 for each in before)


def at_spot(claim: Claim, spot: Spot, message: str) -> Failure:
    """Return a failure of a step at a place in its file."""
    step = claim.step
    text = step.script.source.text
    line = column = None
    excerpt: tuple[tuple[int, str], ...] = ()
    if spot.offset is not None:
        line = line_of(text, spot.offset)
        column = spot.offset - (text.rfind("\n", 0, spot.offset) + 1) + 1
        excerpt = _excerpt(text, line)
    return Failure(
        version=step.migration.version,
        name=step.migration.name,
        direction=step.direction,
        path=step.script.source.path,
        message=message,
        mode=step.script.mode,
        line=line,
        column=column,
        statement=spot.statement,
        statements=step.script.statements,
        excerpt=excerpt,
    )


def _excerpt(text: str, line: int) -> tuple[tuple[int, str], ...]:
    first = max(1, line - EXCERPT_LINES)
    lines = text.split("\n")[first - 1 : line + EXCERPT_LINES]
    return tuple(enumerate((each.removesuffix("\r") for each in lines), first))
