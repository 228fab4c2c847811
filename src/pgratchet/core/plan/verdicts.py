"""A person's verdict changes a version's row; a verdict that contradicts the row is refused."""

from typing import NamedTuple

from pgratchet.core.errors import HistoryError, UsageError
from pgratchet.core.model import Entry, HistoryRow, RecordState, Verdict
from pgratchet.core.plan.halfway import HALF_DONE, Settled, cursor_of, is_begun
from pgratchet.core.printing import printable


class Judgement(NamedTuple):
    """A person's verdict on a version, and the reason for it."""

    version: str
    verdict: Verdict
    reason: str


def settle(entry: Entry, verdict: Verdict) -> Settled:
    """Return the new values of the row.

    Raises UsageError where there is no such version, HistoryError where the verdict contradicts the row.
    """
    row = entry.row
    if entry.migration is None and row is None:
        raise UsageError(f"there is no version {entry.version}")
    match verdict:
        case Verdict.APPLIED:
            if row is not None and row.state is RecordState.APPLIED:
                raise _pointless(entry, "it is recorded as applied already")
            return Settled(RecordState.APPLIED, row.statements_total if row else 0)
        case Verdict.NOT_APPLIED:
            if row is None or row.state is RecordState.PENDING:
                raise _pointless(entry, "nothing of it is recorded: it is pending already")
            return Settled(RecordState.PENDING)
        case Verdict.AGAIN | Verdict.SKIP:
            return _statement(entry, row, verdict)
        case Verdict.ACCEPT:
            return _accepted(entry, row)


def _statement(entry: Entry, row: HistoryRow | None, verdict: Verdict) -> Settled:
    at = cursor_of(row)
    if row is not None and row.state in HALF_DONE and row.cursor is None:
        whole = Verdict.NOT_APPLIED if verdict is Verdict.AGAIN else Verdict.APPLIED
        raise _pointless(
            entry, f"it was to be one transaction: no statement of it stands alone; the nearest verdict is '{whole}'"
        )
    if row is None or at is None or at.begun is None or row.state not in HALF_DONE:
        rest = "; the next run goes on behind the statements that are committed" if row and is_begun(row) else ""
        raise _pointless(entry, f"no statement of it is in doubt{rest}")
    if verdict is Verdict.SKIP:
        return Settled(row.state, row.statements_done + 1, at.counted)
    return Settled(row.state, row.statements_done, at.unmarked)


def _accepted(entry: Entry, row: HistoryRow | None) -> Settled:
    if row is None or row.state is not RecordState.APPLIED:
        raise _pointless(entry, "it is not applied: the next run takes its file as it is")
    if entry.migration is None:
        raise _pointless(entry, "it has no file here to accept")
    if entry.migration.checksum == row.checksum:
        raise _pointless(entry, "its file is the one that was applied: nothing differs")
    return Settled(row.state, row.statements_done, row.cursor)


def _pointless(entry: Entry, why: str) -> HistoryError:
    return HistoryError(printable(f"{entry.version} {entry.name} cannot be repaired like that: {why}"), [entry.version])
