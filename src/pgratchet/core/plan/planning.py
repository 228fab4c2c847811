"""What is to be done, decided from two lists and nothing else."""

from collections.abc import Callable, Collection, Iterable, Sequence
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
    RecordState,
    State,
    Step,
)
from pgratchet.core.plan import halfway
from pgratchet.core.plan.judging import unknown
from pgratchet.core.printing import printable


class Phase(NamedTuple):
    """One direction of a run: `plan` decides, from what files and history say, what is to be done."""

    direction: Direction
    plan: Callable[[Sequence[Entry]], Plan]


RUNNABLE = (State.PENDING, State.FAILED, State.LATE)
"""The states of the versions that `up` would run."""


def compare(migrations: Iterable[Migration], history: Iterable[HistoryRow]) -> tuple[Entry, ...]:
    """Return one entry for each version that is on disk or in the history, in the order of versions.

    What left nothing behind, of a file that is gone, is no entry: it was renumbered, or given up.
    """
    files = {migration.version: migration for migration in migrations}
    rows = {row.version: row for row in history}
    newest = newest_applied(rows.values())
    entries = []
    for version in sorted(files.keys() | rows.keys(), key=int):
        migration, row = files.get(version), rows.get(version)
        if row is None:
            state = State.LATE if int(version) < newest else State.PENDING
        elif migration is None and row.state is not RecordState.APPLIED and not halfway.is_begun(row):
            continue
        else:
            state = _recorded_state(migration, row)
        entries.append(Entry(version, state, migration, row))
    return tuple(entries)


def _recorded_state(migration: Migration | None, row: HistoryRow) -> State:
    if row.state in (RecordState.RUNNING, RecordState.REVERTING):
        return State.RUNNING
    if migration is None:
        return State.UNKNOWN
    if row.state in (RecordState.FAILED, RecordState.PENDING):
        return State(row.state)
    return State.APPLIED if row.checksum == migration.checksum else State.CHANGED


def newest_applied(history: Iterable[HistoryRow]) -> int:
    """Return the number of the newest applied version, -1 where there is none."""
    return max((row.number for row in history if row.state is RecordState.APPLIED), default=-1)


def failures(entries: Iterable[Entry]) -> list[HistoryRow]:
    """Return the rows of what has failed."""
    return [entry.row for entry in entries if entry.row and entry.row.state is RecordState.FAILED]


def pending(entries: Iterable[Entry], to: str | None = None) -> tuple[Entry, ...]:
    """Return what `up` would run, in order: everything, or everything up to and including `to`."""
    return tuple(
        entry
        for entry in entries
        if (entry.state in RUNNABLE or halfway.goes_on(entry, Direction.UP))
        and (to is None or int(entry.version) <= int(to))
    )


def missing(entries: Sequence[Entry], to: str | None = None) -> tuple[str, ...]:
    """Return the versions, up to and including `to`, that are not applied yet, whoever is to apply them.

    Those that have no file here are nobody's that reads these files. Raises UsageError where there is no version `to`.
    """
    _known(entries, to)
    wanted = (*RUNNABLE, State.RUNNING)
    return tuple(
        entry.version
        for entry in entries
        if entry.migration and entry.state in wanted and (to is None or int(entry.version) <= int(to))
    )


def plan_up(entries: Sequence[Entry], to: str | None = None) -> Plan:
    """Return the steps that bring the database up to `to`, or to the newest file.

    Raises FilesError with all problems of all scripts concerned, HistoryError where a half-done migration
    cannot go on with the file as it is now, UsageError where there is no version `to`.
    """
    _known(entries, to)
    return _plan(pending(entries, to), Direction.UP)


def plan_again(entries: Sequence[Entry], versions: Sequence[str], absent: Collection[str]) -> Plan:
    """Return the steps that bring back those of `versions` that are not applied.

    Raises HistoryError where one below them is not, beside those that were `absent` before.
    """
    there = pending(entries)
    steps = [entry for entry in there if entry.version in versions]
    others = [entry for entry in there if entry.version not in {*versions, *absent}]
    if wrong := [entry for entry in others if steps and int(entry.version) < int(steps[-1].version)]:
        raise _moved(wrong, "reverted", "apply both with up")
    return _plan(steps, Direction.UP)


def _moved(wrong: Sequence[Entry], what: str, cure: str) -> HistoryError:
    versions = [entry.version for entry in wrong]
    return HistoryError(f"another runner has {what} {', '.join(versions)} meanwhile: {cure}", versions)


def choose_down(entries: Sequence[Entry], *, to: str | None = None, steps: int | None = None) -> tuple[str, ...]:
    """Return the versions above `to`, or the newest `steps` ones, that a way down leads through; newest first.

    One of the two is given, and `steps` is 1 or more.
    Raises UsageError where there is no version `to`, HistoryError where one of them is unknown: the database is ahead
    of the files.
    """
    _known(entries, to)
    chosen = [entry for entry in _revertible(entries) if to is None or int(entry.version) > int(to)][:steps]
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
    others = [entry for entry in there if entry.version not in versions]
    if wrong := [entry for entry in others if steps and int(entry.version) > int(steps[-1].version)]:
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


def _known(entries: Iterable[Entry], to: str | None) -> None:
    if to is None or (to.isdecimal() and int(to) == 0):
        return
    if not to.isdecimal() or all(int(to) != int(entry.version) for entry in entries):
        raise UsageError(f"there is no version {to}")


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
