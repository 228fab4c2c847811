"""Versions that are half done: who may go on with them, and from where."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pgratchet.core.errors import HistoryError
from pgratchet.core.model import Direction, Entry, HistoryRow, Mode, RecordState, Script
from pgratchet.core.plan import cursor
from pgratchet.core.printing import printable


class Settled(NamedTuple):
    """What the row of a version is to say after a person has judged it."""

    state: RecordState
    statements_done: int = 0
    cursor: str | None = None


def goes_on(entry: Entry, direction: Direction) -> bool:
    """Say whether a run in this direction takes the version over once its own runner is gone."""
    row = entry.row
    if row is None or entry.migration is None or row.cursor is None:
        return False
    return row.state is (RecordState.RUNNING if direction is Direction.UP else RecordState.REVERTING)


def in_flight(entries: Iterable[Entry], direction: Direction) -> tuple[HistoryRow, ...]:
    """Return the rows that a run in this direction takes over."""
    return tuple(entry.row for entry in entries if entry.row and goes_on(entry, direction))


def resumed(entry: Entry, direction: Direction, script: Script) -> tuple[int, HistoryRow | None]:
    """Return how many statements are done, and whose row is taken over.

    Raises HistoryError where they are not those of the file any more.
    """
    row = entry.row
    if row is None or not (goes_on(entry, direction) or _failed_halfway(row, direction)):
        return 0, None
    at = cursor.of(row)
    if script.mode is Mode.TRANSACTION or digest_at(script, row.statements_done) != (at and at.digest):
        message = (
            f"{script.source.path}: its first {row.statements_done} statement(s) are committed since an earlier run, "
            "but are not the same any more, or would share a transaction now; restore them as they were, fix only "
            "what comes after"
        )
        raise HistoryError(printable(message), [entry.version])
    return row.statements_done, row


def digest_at(script: Script, done: int) -> str | None:
    """Return what stands for the first statements of a script; None where there are not so many."""
    # Not above: what splits SQL takes a package of patterns, and most starts find nothing half done.
    from pgratchet.core.sql.scripts import digests  # noqa: PLC0415

    return ["", *digests(script)][done] if done <= len(script.segments) else None


def _failed_halfway(row: HistoryRow, direction: Direction) -> bool:
    return row.state is RecordState.FAILED and row.statements_done > 0 and direction is Direction.UP


def refuse_interrupted(entries: Sequence[Entry], direction: Direction) -> None:
    """Raise HistoryError where a version is half done and this run cannot go on with it; to be asked under the lock.

    Only who holds the lock may judge: without it the runner may well be alive. On its way up, an older image
    leaves alone what it has no file of.
    """
    facts = [
        (entry, entry.row)
        for entry in entries
        if entry.row and is_begun(entry.row) and not _is_open(entry, entry.row, direction)
    ]
    if facts:
        text = "\n".join(printable(_interrupted(entry, row)) for entry, row in facts)
        raise HistoryError(text, [entry.version for entry, _ in facts])


def is_begun(row: HistoryRow) -> bool:
    """Say whether a run that did not finish may have left something of the version behind."""
    if row.state is RecordState.FAILED:
        return row.statements_done > 0
    return row.state in (RecordState.RUNNING, RecordState.REVERTING)


def _is_open(entry: Entry, row: HistoryRow, direction: Direction) -> bool:
    if direction is Direction.UP and (entry.migration is None or row.state is RecordState.FAILED):
        return True
    return goes_on(entry, direction)


def _interrupted(entry: Entry, row: HistoryRow) -> str:
    way = Direction.DOWN if row.state is RecordState.REVERTING else Direction.UP
    started = f"{row.started_at:%Y-%m-%d %H:%M:%S%z}" if row.started_at else "an unknown time"
    error = f" It ended with: {row.error}." if row.error else ""
    return (
        f"{way} {entry.version} {entry.name} was started at {started} by {row.applied_by} (server process "
        f"{row.backend_pid}) and not finished: {row.statements_done} of {row.statements_total} statements are "
        f"recorded as committed.{error} {_cure(entry, row, way)} `pgratchet repair {entry.version}`"
    )


def _cure(entry: Entry, row: HistoryRow, way: Direction) -> str:
    if row.cursor is None:
        return "It was to be one transaction, but has committed something: look at the database, and say what by"
    if entry.migration is None:
        return "It has no file here: finish it with the release that has it, or say how it stands by"
    return f"Finish it by `pgratchet {way}`, or say how it stands by"
