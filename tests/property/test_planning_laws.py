from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from pgratchet.core.errors import HistoryError
from pgratchet.core.model import (
    Direction,
    Entry,
    HistoryRow,
    Kind,
    Migration,
    Mode,
    Options,
    Plan,
    RecordState,
    Source,
    State,
)
from pgratchet.core.plan import planning
from pgratchet.core.plan.halfway import is_begun
from pgratchet.core.printing import LEAST_RANGE
from pgratchet.core.sql.scripts import compile_script, digests
from pgratchet.files.layouts.own import own

SCRIPTS = ["", "SELECT 1", "CREATE TABLE a (b int);\nCREATE TABLE c ();\n", "CREATE INDEX CONCURRENTLY i ON a (b);"]
VERSIONS = st.integers(0, 30) | st.integers(20260101000000, 20261231235959)
quick = settings(max_examples=60)


class World(NamedTuple):
    """The files on disk, and the rows in the database."""

    migrations: tuple[Migration, ...]
    history: tuple[HistoryRow, ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        return planning.compare(self.migrations, self.history, own.rank)


def recorded(migration: Migration, state: RecordState = RecordState.APPLIED, done: int = 0) -> HistoryRow:
    return HistoryRow(
        version=migration.version,
        name=migration.name,
        kind=migration.kind,
        checksum=migration.checksum,
        state=state,
        statements_done=done,
        statements_total=1,
        cursor=None,
        started_at=None,
        finished_at=None,
        applied_by=None,
        backend_pid=None,
        token=None,
        compatible_with=None,
        error=None,
    )


@st.composite
def a_migration(draw: st.DrawFn, version: int) -> Migration:
    up, down = draw(st.sampled_from(SCRIPTS)), draw(st.sampled_from(SCRIPTS))
    path = f"m/{version:04}_x.sql"
    return Migration(
        str(version), (version,), "x", Kind.SQL, f"sum of {up}", Source(path, up), Source(f"{path}.down", down)
    )


@st.composite
def worlds(draw: st.DrawFn, *, unknown: bool = False) -> World:
    """Any files, any of them applied or failed, in any order; where `unknown`, rows without a file as well."""
    versions = draw(st.lists(VERSIONS, unique=True, max_size=8))
    migrations = [draw(a_migration(version)) for version in versions]
    states = st.sampled_from([None, RecordState.APPLIED, RecordState.FAILED])
    missing = draw(st.sets(st.sampled_from(versions))) if unknown and versions else set()
    history = [
        # A half-done version with its file goes on by a cursor: a law of its own.
        recorded(migration, state, draw(st.integers(0, 1)) if int(migration.version) in missing else 0)
        for migration in migrations
        if (state := draw(states))
    ]
    on_disk = [migration for migration in migrations if int(migration.version) not in missing]
    return World(tuple(draw(st.permutations(on_disk))), tuple(draw(st.permutations(history))))


def applied(world: World, plan: Plan) -> World:
    """Return the world after a run has done what the plan says."""
    history = {row.version: row for row in world.history}
    for step in plan.steps:
        if step.direction is Direction.UP:
            history[step.migration.version] = recorded(step.migration)
        else:
            del history[step.migration.version]
    return world._replace(history=tuple(history.values()))


def numbers(plan: Plan) -> list[int]:
    return [int(step.migration.version) for step in plan.steps]


def applied_numbers(world: World) -> list[int]:
    return sorted(int(row.version) for row in world.history if row.state is RecordState.APPLIED)


@quick
@given(worlds())
def test_nothing_is_pending_after_everything_was_applied(world: World) -> None:
    after = applied(world, planning.plan_up(world.entries))

    assert planning.pending(after.entries) == ()
    assert {entry.state for entry in after.entries} <= {State.APPLIED}
    assert planning.refuse_disagreement(after.entries, own.rank, strict=True) == ()
    assert planning.plan_up(after.entries) == Plan(())


@quick
@given(worlds(unknown=True))
def test_up_applies_each_missing_version_once_and_in_order(world: World) -> None:
    plan = planning.plan_up(world.entries)

    done = set(applied_numbers(world))
    assert numbers(plan) == sorted({int(migration.version) for migration in world.migrations} - done)


@quick
@given(worlds(), st.data())
def test_going_up_in_two_stages_is_going_up(world: World, data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(["0", *(migration.version for migration in world.migrations)]))

    first = planning.plan_up(world.entries, target)
    second = planning.plan_up(applied(world, first).entries)

    assert all(number <= int(target) for number in numbers(first))
    assert sorted(numbers(first) + numbers(second)) == numbers(planning.plan_up(world.entries))


@quick
@given(worlds(), st.data())
def test_down_to_a_version_reverts_the_versions_above_it_in_reverse_order(world: World, data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(["0", *(migration.version for migration in world.migrations)]))

    plan = planning.plan_down(world.entries, planning.choose_down(world.entries, to=target))

    above = [number for number in applied_numbers(world) if number > int(target)]
    assert numbers(plan) == above[::-1]
    assert all(number <= int(target) for number in applied_numbers(applied(world, plan)))


@quick
@given(worlds(), st.integers(1, 15))
def test_down_by_steps_reverts_the_newest_versions_in_reverse_order(world: World, steps: int) -> None:
    plan = planning.plan_down(world.entries, planning.choose_down(world.entries, steps=steps))

    assert numbers(plan) == applied_numbers(world)[::-1][:steps]


@quick
@given(worlds(), st.integers(1, 15))
def test_redo_ends_where_it_began(world: World, steps: int) -> None:
    chosen = planning.choose_down(world.entries, steps=steps)
    reverted = applied(world, planning.plan_down(world.entries, chosen))

    again = planning.plan_again(reverted.entries, chosen, planning.missing(world.entries))

    assert numbers(again) == sorted(map(int, chosen))
    assert applied_numbers(applied(reverted, again)) == applied_numbers(world)


@quick
@given(worlds(unknown=True), st.integers(1, 9))
def test_down_leads_through_known_versions_or_is_refused_with_the_others(world: World, steps: int) -> None:
    newest = applied_numbers(world)[::-1][:steps]
    strangers = [number for number in newest if number not in {int(file.version) for file in world.migrations}]

    chosen, refused_for = chosen_or_refused(world.entries, steps)

    assert refused_for == strangers
    assert chosen == ([] if strangers else newest)


def chosen_or_refused(entries: Sequence[Entry], steps: int) -> tuple[list[int], list[int]]:
    try:
        return list(map(int, planning.choose_down(entries, steps=steps))), []
    except HistoryError as error:
        return [], list(map(int, error.versions))


@quick
@given(worlds(unknown=True))
def test_the_order_of_files_and_rows_is_irrelevant(world: World) -> None:
    entries = planning.compare(reversed(world.migrations), sorted(world.history), own.rank)

    assert entries == world.entries
    assert [int(entry.version) for entry in entries] == sorted(int(entry.version) for entry in entries)
    assert len({entry.version for entry in entries}) == len(entries)


@quick
@given(worlds(unknown=True))
def test_every_version_that_is_on_disk_or_left_something_has_one_entry(world: World) -> None:
    left = {row.version for row in world.history if row.state is not RecordState.FAILED or row.statements_done}
    versions = {file.version for file in world.migrations} | left

    assert [entry.version for entry in world.entries] == sorted(versions, key=int)


@quick
@given(worlds(unknown=True))
def test_a_pending_version_is_late_if_and_only_if_it_is_below_an_applied_one(world: World) -> None:
    newest = max(applied_numbers(world), default=-1)

    for entry in world.entries:
        if entry.row is None:
            assert (entry.state is State.LATE) == (int(entry.version) < newest)


@quick
@given(worlds(unknown=True))
def test_a_directory_without_edits_is_refused_only_for_a_late_file(world: World) -> None:
    late = tuple(entry.version for entry in world.entries if entry.state is State.LATE)
    unknown = [entry for entry in world.entries if entry.state is State.UNKNOWN]

    warnings = planning.refuse_disagreement(world.entries, own.rank, allow_late=True)
    done = [entry for entry in unknown if entry.row and not is_begun(entry.row)]
    assert len(warnings) == len(unknown) - len(done) + (len(done) if len(done) < LEAST_RANGE else 1)
    assert refused(world.entries) == late


def refused(entries: Sequence[Entry]) -> tuple[str, ...]:
    try:
        planning.refuse_disagreement(entries, own.rank)
    except HistoryError as error:
        return error.versions
    return ()


@quick
@given(worlds(unknown=True), st.data())
def test_a_floor_forbids_exactly_the_images_whose_newest_file_lies_below_it(world: World, data: st.DataObject) -> None:
    floors = st.none() | VERSIONS.map(str)
    history = tuple(row._replace(compatible_with=data.draw(floors)) for row in world.history)
    entries = planning.compare(world.migrations, history, own.rank)
    newest = max((int(migration.version) for migration in world.migrations), default=-1)

    forbidding = tuple(
        entry.version
        for entry in entries
        if entry.state is State.UNKNOWN and entry.row and int(entry.row.compatible_with or -1) > newest
    )
    late = {entry.version for entry in entries if entry.state is State.LATE}

    assert tuple(version for version in refused(entries) if version not in late) == forbidding


def by_statement(statements: Iterable[str]) -> Source:
    return Source("m/1_x.sql", "".join(f"SELECT '{each}';\n" for each in statements), Options(no_transaction=True))


def half_done(source: Source, done: int, cursor: str | None) -> tuple[Entry, ...]:
    migration = Migration("1", (1,), "x", Kind.SQL, "sum", source)
    row = recorded(migration, RecordState.FAILED)._replace(statements_done=done, cursor=cursor, checksum="before")
    return planning.compare([migration], [row], own.rank)


@quick
@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.lists(st.sampled_from("abc"), max_size=6), st.data()
)
def test_a_half_done_script_goes_on_if_and_only_if_its_beginning_is_the_same(
    before: Sequence[str], after: Sequence[str], data: st.DataObject
) -> None:
    done = data.draw(st.integers(1, len(before)))
    script = compile_script(by_statement(before), Kind.SQL, Direction.UP)
    entries = half_done(by_statement(after), done, list(digests(script))[done - 1])

    try:
        (step,) = planning.plan_up(entries).steps
    except HistoryError:
        assert before[:done] != after[:done]
    else:
        assert before[:done] == after[:done]
        assert (step.done, step.script.mode) == (done, Mode.STATEMENTS)
