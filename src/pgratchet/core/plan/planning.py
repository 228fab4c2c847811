"""What is to be done, decided from two lists and nothing else."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import NamedTuple

from pgratchet.core.errors import FilesError, HistoryError, UsageError
from pgratchet.core.model import (
    Direction,
    Entry,
    HistoryRow,
    Kind,
    Migration,
    Plan,
    Problem,
    Rank,
    Ranking,
    RecordState,
    State,
    Step,
)
from pgratchet.core.plan import halfway
from pgratchet.core.plan.judging import unknown
from pgratchet.core.printing import printable

NOTHING = "0"
"""The version below all others, unless there is one of that name: to go down to it reverts everything."""


class Phase(NamedTuple):
    """One direction of a run: `plan` decides, from what files and history say, what is to be done."""

    direction: Direction
    plan: Callable[[Sequence[Entry]], Plan]


RUNNABLE = (State.PENDING, State.FAILED, State.LATE)
"""The states of the versions that `up` would run."""


def compare(migrations: Iterable[Migration], history: Iterable[HistoryRow], rank: Ranking) -> tuple[Entry, ...]:
    """Return one entry for each version that is on disk or in the history, in the order of their ranks.

    A row that has no rank comes behind everything that was applied before it, and makes no file late. What left nothing
    behind, of a file that is gone, is no entry: it was renumbered, or given up.
    """
    files = {migration.version: migration for migration in migrations}
    rows = {row.version: row for row in history}
    ranks = {version: rank(version) for version in rows.keys() - files.keys()}
    ranks |= {version: migration.rank for version, migration in files.items()}
    newest = max((known for row in rows.values() if (known := _applied_rank(row, ranks)) is not None), default=None)
    entries = []
    for version in _in_order(rows, ranks):
        migration, row = files.get(version), rows.get(version)
        if migration is not None and row is None:
            state = State.LATE if newest is not None and migration.rank < newest else State.PENDING
        elif row is not None and (migration or row.state is RecordState.APPLIED or halfway.is_begun(row)):
            state = _recorded_state(migration, row)
        else:
            continue
        entries.append(Entry(version, state, migration, row))
    return tuple(entries)


def _applied_rank(row: HistoryRow, ranks: Mapping[str, Rank | None]) -> Rank | None:
    return ranks[row.version] if row.state is RecordState.APPLIED else None


def _in_order(rows: Mapping[str, HistoryRow], ranks: Mapping[str, Rank | None]) -> list[str]:
    """Return the versions by rank, those that have none where they were applied."""
    ranked = sorted((known, version) for version, known in ranks.items() if known is not None)
    unranked = sorted((_moment(rows[version]), version) for version, known in ranks.items() if known is None)
    order = [version for _, version in ranked]
    if not unranked:
        return order
    applied = sorted((_moment(rows[version]), place) for place, version in enumerate(order, 1) if version in rows)
    moments = [moment for moment, _ in applied]
    behind = [0, *accumulate((place for _, place in applied), max)]
    # The latest comes first: an insertion moves nothing that is before it.
    for moment, version in reversed(unranked):
        order.insert(behind[bisect_right(moments, moment)], version)
    return order


def _moment(row: HistoryRow) -> datetime:
    """Return when a row was applied, or begun. One that does not say it, as adopted ones may not, is the oldest."""
    moment = row.finished_at or row.started_at
    if not isinstance(moment, datetime):
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _recorded_state(migration: Migration | None, row: HistoryRow) -> State:
    if row.state in (RecordState.RUNNING, RecordState.REVERTING):
        return State.RUNNING
    if migration is None:
        return State.UNKNOWN
    if row.state in (RecordState.FAILED, RecordState.PENDING):
        return State(row.state)
    return State.APPLIED if row.checksum == migration.checksum else State.CHANGED


def failures(entries: Iterable[Entry]) -> list[HistoryRow]:
    """Return the rows of what has failed."""
    return [entry.row for entry in entries if entry.row and entry.row.state is RecordState.FAILED]


def pending(entries: Sequence[Entry], to: str | None = None) -> tuple[Entry, ...]:
    """Return what `up` would run, in order: everything, or everything up to and including `to`.

    Raises UsageError where there is no version `to`.
    """
    return tuple(
        entry
        for entry in entries[: _place(entries, to)]
        if entry.state in RUNNABLE or halfway.goes_on(entry, Direction.UP)
    )


def missing(entries: Sequence[Entry], to: str | None = None) -> tuple[str, ...]:
    """Return the versions, up to and including `to`, that are not applied yet, whoever is to apply them.

    Those that have no file here are nobody's that reads these files. Raises UsageError where there is no version `to`.
    """
    wanted = (*RUNNABLE, State.RUNNING)
    return tuple(entry.version for entry in entries[: _place(entries, to)] if entry.migration and entry.state in wanted)


def plan_up(entries: Sequence[Entry], to: str | None = None) -> Plan:
    """Return the steps that bring the database up to `to`, or to the newest file.

    Raises FilesError with all problems of all scripts concerned, HistoryError where a half-done migration
    cannot go on with the file as it is now, UsageError where there is no version `to`.
    """
    return _plan(pending(entries, to), Direction.UP)


def plan_again(entries: Sequence[Entry], versions: Sequence[str], absent: Collection[str]) -> Plan:
    """Return the steps that bring back those of `versions` that are not applied.

    Raises HistoryError where one below them is not, beside those that were `absent` before.
    """
    there = pending(entries)
    steps = [entry for entry in there if entry.version in versions]
    if wrong := [entry for entry in _others_before(steps, there) if entry.version not in absent]:
        raise _moved(wrong, "reverted", "apply both with up")
    return _plan(steps, Direction.UP)


def _others_before(steps: Sequence[Entry], there: Sequence[Entry]) -> list[Entry]:
    """Return what comes before the last of the steps, and is none of them."""
    ours = {step.version for step in steps}
    return [entry for entry in there[: there.index(steps[-1])] if entry.version not in ours] if steps else []


def _moved(wrong: Sequence[Entry], what: str, cure: str) -> HistoryError:
    versions = [entry.version for entry in wrong]
    return HistoryError(f"another runner has {what} {', '.join(versions)} meanwhile: {cure}", versions)


def choose_down(entries: Sequence[Entry], *, to: str | None = None, steps: int | None = None) -> tuple[str, ...]:
    """Return the versions above `to`, or the newest `steps` ones, that a way down leads through; newest first.

    One of the two is given, and `steps` is 1 or more.
    Raises UsageError where there is no version `to`, HistoryError where one of them is unknown: the database is ahead
    of the files.
    """
    above = entries if to is None else entries[_place(entries, to) :]
    chosen = _revertible(above)[:steps]
    strangers = [entry for entry in chosen if entry.state is State.UNKNOWN]
    if strangers:
        text = "\n".join(printable(f"{unknown(entry)}; revert it with the release that has it") for entry in strangers)
        raise HistoryError(text, [entry.version for entry in strangers])
    return tuple(entry.version for entry in chosen)


def plan_down(entries: Sequence[Entry], versions: Sequence[str]) -> Plan:
    """Return the steps that revert those of `versions` that are there, newest first.

    Raises HistoryError where one above them is there that is not to go.
    """
    there = _revertible(entries)
    steps = [entry for entry in there if entry.version in versions]
    if wrong := _others_before(steps, there):
        raise _moved(wrong, "applied", "choose again what to revert")
    return _plan(steps, Direction.DOWN)


class WayDown:
    """A way down whose versions are chosen once: asked again after a lost connection, it goes no further."""

    def __init__(self, to: str | None, steps: int | None) -> None:
        self._to = to
        self._steps = steps
        self._versions: tuple[str, ...] | None = None
        self._absent: tuple[str, ...] = ()

    def plan(self, entries: Sequence[Entry]) -> Plan:
        """Return what is left of the way down, as `plan_down` does."""
        if self._versions is None:
            self._versions = choose_down(entries, to=self._to, steps=self._steps)
            self._absent = missing(entries)
        return plan_down(entries, self._versions)

    def plan_again(self, entries: Sequence[Entry]) -> Plan:
        """Return the steps up again, as the function does."""
        return plan_again(entries, self._versions or (), self._absent)


def _revertible(entries: Iterable[Entry]) -> list[Entry]:
    """Return what is in the database, or half out of it; newest first."""
    return [
        entry
        for entry in reversed(list(entries))
        if entry.row and entry.row.state in (RecordState.APPLIED, RecordState.REVERTING)
    ]


def _place(entries: Sequence[Entry], to: str | None) -> int:
    """Return how many of the entries come up to and including `to`."""
    if to is None:
        return len(entries)
    place = next((count for count, entry in enumerate(entries, 1) if entry.version == to), 0)
    if not place and to != NOTHING:
        raise UsageError(f"there is no version {to}")
    return place


def _plan(entries: Iterable[Entry], direction: Direction) -> Plan:
    steps: list[Step] = []
    problems: list[Problem] = []
    for entry in entries:
        try:
            steps.append(_step(entry, direction))
        except FilesError as error:
            problems += error.problems
        if direction is Direction.UP:
            problems += _problems_of_way_down(entry)
    if problems:
        raise FilesError(problems)
    return Plan(tuple(steps))


def _problems_of_way_down(entry: Entry) -> Sequence[Problem]:
    """Return what is wrong with the way down of a version that is to go up: later is too late to find out."""
    if entry.migration is None or entry.migration.kind is Kind.PYTHON or entry.migration.down is None:
        return ()
    from pgratchet.core.sql.scripts import compile_script  # noqa: PLC0415 - as in _step

    try:
        compile_script(entry.migration.down, entry.migration.kind, Direction.DOWN)
    except FilesError as error:
        return error.problems
    return ()


def _step(entry: Entry, direction: Direction) -> Step:
    # Not above: reading SQL takes a package of patterns, and most starts find nothing to plan.
    from pgratchet.core.sql.scripts import compile_script  # noqa: PLC0415

    migration = entry.migration
    if migration is None:
        raise HistoryError(printable(unknown(entry)), [entry.version])
    source = migration.up if direction is Direction.UP else migration.down
    if source is None:
        cure = f"write {migration.up.path.removesuffix('.sql')}.down.sql"
        raise FilesError([Problem(migration.up.path, "there is no way down from it", cure)])
    script = compile_script(source, migration.kind, direction)
    done, over = halfway.resumed(entry, direction, script)
    left = entry.row is not None and entry.row.state in (RecordState.FAILED, RecordState.PENDING)
    return Step(migration, direction, script, done, over, replaces=left and over is None)
