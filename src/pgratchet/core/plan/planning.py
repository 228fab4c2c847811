"""Files and history are compared: this decides whether the image may run on the database, and the steps of a run.

The two lists decide, and nothing else.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple

from pgratchet.core.arguments import spelled
from pgratchet.core.errors import FilesError, HistoryError, UsageError
from pgratchet.core.events import Looked
from pgratchet.core.model import (
    Direction,
    Entry,
    HistoryRow,
    Kind,
    Migration,
    Plan,
    Problem,
    Ranking,
    RecordState,
    State,
    Step,
)
from pgratchet.core.plan import halfway
from pgratchet.core.printing import LEAST_RANGE, in_ascii, printable, ranges

NOTHING = "0"
"""The version below all others, unless a version has that name: to go down to it reverts everything."""

_OLDER = "the files here are older than those of the run that did it: start the release that has these"

RUNNABLE = (State.PENDING, State.FAILED, State.LATE)
"""The states of the versions that `up` would run."""


class Phase(NamedTuple):
    """One direction of a run: `plan` decides the steps from both sides of every version."""

    direction: Direction
    plan: Callable[[Sequence[Entry]], Plan]


def compare(
    migrations: Iterable[Migration],
    history: Iterable[HistoryRow],
    rank: Ranking,
    at_work: Collection[str] = (),
) -> tuple[Entry, ...]:
    """Return one entry for each version that is on disk or in the history, in the order of their ranks.

    Of the half-done versions those are running that are `at_work`, because the session of their runner is.

    A row without a rank comes behind everything that was applied before it, and makes no file late. There is no entry
    for a row that left nothing behind and has no file: its file was renumbered, or given up. A file below an applied
    version is late also if an attempt has failed, but not if a person has judged that it is to run again.
    """
    files = {migration.version: migration for migration in migrations}
    rows = {row.version: row for row in history}
    ranks = {version: rank(version) for version in rows.keys() - files.keys()}
    ranks |= {version: migration.rank for version, migration in files.items()}
    applied = (ranks[row.version] for row in rows.values() if row.state is RecordState.APPLIED)
    newest = max((known for known in applied if known is not None), default=None)
    ranked = sorted((known, version) for version, known in ranks.items() if known is not None)
    order = [version for _, version in ranked]
    if len(order) < len(ranks):
        _insert(order, rows, ranks.keys() - set(order))
    entries = []
    for version in order:
        migration, row = files.get(version), rows.get(version)
        if migration is not None and newest is not None and migration.rank < newest and _may_be_late(migration, row):
            state = State.LATE
        elif row is None:
            state = State.PENDING
        elif migration or row.state is RecordState.APPLIED or halfway.is_begun(row):
            state = State.RUNNING if version in at_work else _recorded_state(migration, row)
        else:
            continue
        entries.append(Entry(version, state, migration, row))
    return tuple(entries)


def _insert(order: list[str], rows: Mapping[str, HistoryRow], versions: Iterable[str]) -> None:
    """Insert versions without a rank, each behind everything in `order` that was applied before it."""
    applied = sorted((_moment(rows[version]), place) for place, version in enumerate(order, 1) if version in rows)
    moments = [moment for moment, _ in applied]
    behind = [0, *accumulate((place for _, place in applied), max)]
    # The latest comes first: an insertion moves nothing that is before it.
    for moment, version in sorted(((_moment(rows[version]), version) for version in versions), reverse=True):
        order.insert(behind[bisect_right(moments, moment)], version)


def _moment(row: HistoryRow) -> datetime:
    """Return the time at which a row was applied, or begun; the oldest for a row without times, as adopted ones are."""
    moment = row.finished_at or row.started_at
    if not isinstance(moment, datetime):
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _recorded_state(migration: Migration | None, row: HistoryRow) -> State:
    if row.state in halfway.HALF_DONE:
        return (
            State.INTERRUPTED
            if _is_interrupted(Entry(row.version, State.INTERRUPTED, migration, row))
            else State.IN_DOUBT
        )
    if migration is None:
        return State.UNKNOWN
    if row.state is RecordState.FAILED:
        return State.FAILED if _is_about(row, migration) else State.PENDING
    if row.state is RecordState.PENDING:
        return State.PENDING
    return State.APPLIED if row.checksum == migration.checksum else State.CHANGED


def _is_interrupted(entry: Entry) -> bool:
    """Say whether the next run in its direction goes on with a half-done version that nobody is at work on."""
    row = entry.row
    if row is None or row.cursor is None:
        return False
    try:
        if entry.migration is None:
            return halfway.doubt(row) is None
        direction = Direction.UP if row.state is RecordState.RUNNING else Direction.DOWN
        halfway.refuse_unrecoverable(_plan([entry], direction).steps)
        return not halfway.has_lost_objects(row)
    except (HistoryError, FilesError, ValueError):  # a ValueError, because the table may be anybody's
        return False


def _may_be_late(migration: Migration, row: HistoryRow | None) -> bool:
    """Say whether a version is to run, and no person has judged that this very migration is to run again."""
    if row is None or row.state is RecordState.FAILED:
        return True
    return row.state is RecordState.PENDING and row.name != migration.name


def attempt_at(entry: Entry) -> HistoryRow | None:
    """Return the row of the last attempt at a version; None if it was another file that has left nothing behind."""
    _, state, migration, row = entry
    if row is None or (state in (State.PENDING, State.LATE) and migration and not _is_about(row, migration)):
        return None
    return row


def _is_about(row: HistoryRow, migration: Migration) -> bool:
    names = migration.name, in_ascii(migration.name)  # as `Execution` records a failure in a database that lacks it
    return halfway.is_begun(row) or (row.name in names and row.checksum == migration.checksum)


def looked(entries: Iterable[Entry]) -> Looked:
    """Return the event that tells of a comparison."""
    by: dict[State, list[str]] = {state: [] for state in State}
    for entry in entries:
        state = State.PENDING if entry.state is State.LATE else entry.state
        by[state if entry.migration else State.UNKNOWN].append(entry.version)
    return Looked(
        applied=len(by[State.APPLIED]) + len(by[State.CHANGED]),
        pending=tuple(by[State.PENDING]),
        running=tuple(by[State.RUNNING]),
        failed=tuple(by[State.FAILED]),
        unknown=tuple(by[State.UNKNOWN]),
        interrupted=tuple(by[State.INTERRUPTED]),
        in_doubt=tuple(by[State.IN_DOUBT]),
    )


def unheard(warnings: Iterable[Problem], entries: Iterable[Entry]) -> list[Problem]:
    """Return the warnings about files that are not applied: the run that applies a file is the last to tell of it."""
    applied = {
        entry.migration.up.path
        for entry in entries
        if entry.migration and entry.row and entry.row.state is RecordState.APPLIED
    }
    return [warning for warning in warnings if warning.path not in applied]


def refuse_disagreement(
    entries: Sequence[Entry],
    rank: Ranking,
    awaited: Collection[str] = (),
    *,
    allow_late: bool = False,
    strict: bool = False,
) -> tuple[str, ...]:
    """Return warnings about differences between files and history that do not stop a run.

    The versions that the run has `awaited` were not applied when it began: another run has worked on them meanwhile.

    Raises HistoryError with all other differences: an edited migration; a late one, unless late ones are allowed; a
    version without a file whose floor lies above the newest file. With `strict`, any version without a file is one of
    them; otherwise it is a warning, because an older image has to start after a rollback (sqlalchemy/alembic#691).
    """
    files = {entry.version: entry.migration for entry in entries if entry.migration}
    newest = max(files.values(), key=attrgetter("rank"), default=None)
    wrong: list[tuple[str, str]] = []
    ahead: list[HistoryRow] = []
    for version, state, migration, row in entries:
        if migration is None and row is not None:
            if below := _below_floor(row, files, newest, rank):
                wrong.append((version, below))
            elif strict:
                wrong.append((version, f"{_no_file(row)}; deploy the release that has it"))
            else:
                ahead.append(row)
        elif migration is not None and state is State.CHANGED:
            when = f" on {row.finished_at:%Y-%m-%d %H:%M:%S%z}" if row and row.finished_at else ""
            cure = (
                "restore the file and put the change into a new migration, or accept the file as it is: "
                f"pgratchet repair {version} --accept --reason ..."
            )
            said = f"was edited after it had been applied{when}; {cure}"
            if version in awaited:
                by = f" by {row.applied_by}" if row and row.applied_by else ""
                said = f"is not the file that was applied{when}{by} while this run waited; {_OLDER}"
            wrong.append((version, f"{migration.up.path} {said}"))
        elif migration is not None and state is State.LATE and not allow_late:
            cure = f"give it a number above them, or allow late migrations ({spelled('allow_late', value=True)})"
            said = f"is pending, but later versions are applied; {cure}"
            if version in awaited:
                said = f"is pending, but later versions were applied without it while this run waited; {_OLDER}"
            wrong.append((version, f"{migration.up.path} {said}"))
    if wrong:
        raise HistoryError("\n".join(printable(text) for _, text in wrong), [version for version, _ in wrong])
    return _warnings_of(ahead, entries)


def _warnings_of(ahead: Sequence[HistoryRow], entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return the warnings about versions that have no files here: one for all, except those that are half done."""
    begun = [_no_file(row) for row in ahead if halfway.is_begun(row)]
    done = [row for row in ahead if not halfway.is_begun(row)]
    if len(done) < LEAST_RANGE:
        return (*begun, *map(_no_file, done))
    versions = ranges([row.version for row in done], [entry.version for entry in entries])
    return (*begun, f"{versions} are in the database, but have no files here")


def _no_file(row: HistoryRow) -> str:
    where = "half done" if halfway.is_begun(row) else "in the database"
    return f"{row.version} {row.name} is {where}, but has no file here"


def _below_floor(row: HistoryRow, files: Collection[str], newest: Migration | None, rank: Ranking) -> str | None:
    """Return the problem of a version without a file whose author has ruled out code as old as the files here."""
    floor = row.compatible_with
    if floor is None or floor in files:
        return None
    known = rank(floor)
    if newest is not None and known is not None and newest.rank >= known:
        return None
    here = "there are no files here" if newest is None else f"the newest file here is {newest.version}"
    return (
        f"{row.version} {row.name} is in the database, and code that does not know version {floor} cannot live with "
        f"it (compatible-with={floor}), but {here}; deploy a release that has version {floor}, or revert "
        f"{row.version} with the release that has it"
    )


def pending(entries: Sequence[Entry], to: str | None = None) -> tuple[Entry, ...]:
    """Return the entries that `up` would run, in order: all of them, or all up to and including `to`.

    Raises UsageError where there is no version `to`.
    """
    return tuple(
        entry
        for entry in (entries if to is None else entries[: _place(entries, to)])
        if entry.state in RUNNABLE or halfway.goes_on(entry, Direction.UP)
    )


def missing(entries: Sequence[Entry], to: str | None = None) -> tuple[str, ...]:
    """Return the versions, up to and including `to`, that are not applied yet, by this runner or another one.

    Versions without a file here are left out. Raises UsageError where there is no version `to`.
    """
    wanted = (*RUNNABLE, State.RUNNING, State.INTERRUPTED, State.IN_DOUBT)
    chosen = entries if to is None else entries[: _place(entries, to)]
    return tuple(entry.version for entry in chosen if entry.migration and entry.state in wanted)


def plan_up(entries: Sequence[Entry], to: str | None = None) -> Plan:
    """Return the steps that bring the database up to `to`, or to the newest file.

    Raises FilesError with all problems of all scripts concerned, HistoryError where a half-done migration
    cannot go on with the file as it is now, UsageError where there is no version `to`.
    """
    return _plan(pending(entries, to), Direction.UP)


def plan_again(entries: Sequence[Entry], versions: Sequence[str], absent: Collection[str]) -> Plan:
    """Return the steps that apply again those of `versions` that are not applied.

    Raises HistoryError where a version below them is not applied either, unless it was `absent` before.
    """
    there = pending(entries)
    steps = [entry for entry in there if entry.version in versions]
    if wrong := [entry for entry in _others_before(steps, there) if entry.version not in absent]:
        raise _moved(wrong, entries, "reverted", "apply both with up")
    return _plan(steps, Direction.UP)


def _others_before(steps: Sequence[Entry], there: Sequence[Entry]) -> list[Entry]:
    """Return the entries that come before the last of the steps and are no steps."""
    ours = {step.version for step in steps}
    return [entry for entry in there[: there.index(steps[-1])] if entry.version not in ours] if steps else []


def _moved(wrong: Iterable[Entry], order: Iterable[Entry], what: str, cure: str) -> HistoryError:
    versions = [entry.version for entry in wrong]
    shown = ranges(versions, (entry.version for entry in order))
    return HistoryError(f"another runner has {what} {shown} meanwhile: {cure}", versions)


def choose_down(entries: Sequence[Entry], *, to: str | None = None, steps: int | None = None) -> tuple[str, ...]:
    """Return the versions that a way down reverts: those above `to`, or the newest `steps` ones; newest first.

    One of the two is given, and `steps` is 1 or more.
    Raises UsageError where there is no version `to`, HistoryError where one of them has no file: the database is ahead
    of the files.
    """
    chosen = _revertible(entries if to is None else entries[_place(entries, to) :])[:steps]
    strangers = [entry.row for entry in chosen if entry.row and entry.state is State.UNKNOWN]
    if strangers:
        text = "\n".join(printable(f"{_no_file(row)}; revert it with the release that has it") for row in strangers)
        raise HistoryError(text, [row.version for row in strangers])
    return tuple(entry.version for entry in chosen)


def plan_down(entries: Sequence[Entry], versions: Sequence[str]) -> Plan:
    """Return the steps that revert those of `versions` that are in the database, newest first.

    Raises HistoryError where a version above them is in the database and is not one of them.
    """
    there = _revertible(entries)
    steps = [entry for entry in there if entry.version in versions]
    if wrong := _others_before(steps, there):
        raise _moved(wrong, reversed(entries), "applied", "choose again what to revert")
    return _plan(steps, Direction.DOWN)


class WayDown:
    """A way down that chooses its versions once: after a lost connection it reverts no more than these."""

    def __init__(self, to: str | None, steps: int | None) -> None:
        self._to = to
        self._steps = steps
        self._versions: tuple[str, ...] | None = None
        self._absent: tuple[str, ...] = ()

    def plan(self, entries: Sequence[Entry]) -> Plan:
        """Return the rest of the way down, as `plan_down` does."""
        if self._versions is None:
            self._versions = choose_down(entries, to=self._to, steps=self._steps)
            self._absent = missing(entries)
        return plan_down(entries, self._versions)

    def plan_again(self, entries: Sequence[Entry]) -> Plan:
        """Return the steps up again, as the function `plan_again` does."""
        return plan_again(entries, self._versions or (), self._absent)


def _revertible(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries that are in the database, in full or half reverted; newest first."""
    return [
        entry
        for entry in reversed(list(entries))
        if entry.row and entry.row.state in (RecordState.APPLIED, RecordState.REVERTING)
    ]


def _place(entries: Sequence[Entry], to: str) -> int:
    """Return the number of entries up to and including `to`; raises UsageError where there is no version `to`."""
    place = next((count for count, entry in enumerate(entries, 1) if entry.version == to), 0)
    if not place and to != NOTHING:
        raise UsageError(f"there is no version {to}")
    return place


def _plan(entries: Iterable[Entry], direction: Direction) -> Plan:
    steps: list[Step] = []
    problems: list[Problem] = []
    warnings: list[str] = []
    for entry in entries:
        version, _, migration, row = entry
        # Not above: the modules that split SQL compile many patterns, and most starts find nothing to plan.
        from pgratchet.core.sql.scripts import compile_script  # noqa: PLC0415

        if migration is None:
            raise HistoryError(printable(_no_file(row) if row else f"{version} has no file here"), [version])
        source = migration.up if direction is Direction.UP else migration.down
        if source is None:
            cure = f"write {migration.up.path.removesuffix('.sql')}.down.sql"
            problems.append(Problem(migration.up.path, "there is no way down from it", cure))
            continue
        try:
            script = compile_script(source, migration.kind, direction)
        except FilesError as error:
            problems += error.problems
        else:
            if migration.kind is Kind.SQL and not (script.statements or source.options.empty):
                said = "it has no statement, and does nothing; '-- pgratchet: empty' says that this is meant"
                warnings.append(printable(f"{source.path}: {said}"))
            done, over = halfway.resumed(entry, direction, script) if row else (0, None)
            left = row is not None and row.state in (RecordState.FAILED, RecordState.PENDING)
            steps.append(Step(migration, direction, script, done, over, replaces=left and over is None))
        if direction is Direction.UP and migration.kind is Kind.SQL and migration.down is not None:
            try:
                # Read now: when the way down is needed it is too late to find out that it is unfit.
                compile_script(migration.down, migration.kind, Direction.DOWN)
            except FilesError as error:
                problems += error.problems
    if problems:
        raise FilesError(problems)
    return Plan(tuple(steps), tuple(warnings))
