from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from pgratchet.core.errors import FilesError, HistoryError, UsageError
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
from pgratchet.core.plan import halfway, planning
from pgratchet.core.sql.scripts import compile_script, digests
from pgratchet.files.layouts.own import own

STARTED = datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)
FINISHED = datetime(2026, 3, 1, 12, 30, 45, tzinfo=UTC)
PLAIN = Options()
BY_STATEMENT = Options(no_transaction=True)


def migration(
    version: int, *, up: str = "", down: str | None = "", checksum: str = "same", options: Options = PLAIN
) -> Migration:
    path = f"m/{version:03}_name.sql"
    return Migration(
        version=str(version),
        rank=(version,),
        name=f"name{version}",
        kind=Kind.SQL,
        checksum=checksum,
        up=Source(path, up, options),
        down=None if down is None else Source(path.replace(".sql", ".down.sql"), down, options),
    )


def row(version: int, state: RecordState = RecordState.APPLIED, **changes: Any) -> HistoryRow:
    return HistoryRow(
        version=str(version),
        name=f"name{version}",
        kind="sql",
        checksum="same",
        state=state,
        statements_done=0,
        statements_total=3,
        cursor=None,
        started_at=STARTED,
        finished_at=FINISHED,
        applied_by="alice@host app",
        backend_pid=4711,
        token="token",  # noqa: S106 - no password
        compatible_with=None,
        error=None,
    )._replace(**changes)


def compare(migrations: Iterable[Migration], history: Iterable[HistoryRow]) -> tuple[Entry, ...]:
    return planning.compare(migrations, history, own.rank)


def judge(entries: Sequence[Entry], *, allow_late: bool = False, strict: bool = False) -> tuple[str, ...]:
    return planning.refuse_disagreement(entries, own.rank, allow_late=allow_late, strict=strict)


def entries(on_disk: Sequence[int], applied: Sequence[int]) -> tuple[Entry, ...]:
    return compare(map(migration, on_disk), map(row, applied))


def versions(plan: Plan) -> list[str]:
    return [step.migration.version for step in plan.steps]


def cursor_after(text: str, statements: int) -> str:
    script = compile_script(Source("m/x.sql", text, BY_STATEMENT), Kind.SQL, Direction.UP)
    return list(digests(script))[statements - 1]


@pytest.mark.parametrize(
    ("recorded", "with_file", "with_other_file", "without_file"),
    [
        (RecordState.APPLIED, State.APPLIED, State.CHANGED, State.UNKNOWN),
        (RecordState.FAILED, State.FAILED, State.FAILED, State.UNKNOWN),
        (RecordState.RUNNING, State.IN_DOUBT, State.IN_DOUBT, State.IN_DOUBT),
        (RecordState.REVERTING, State.IN_DOUBT, State.IN_DOUBT, State.IN_DOUBT),
    ],
)
def test_a_recorded_version_has_the_state_of_its_row_and_its_file(
    recorded: RecordState, with_file: State, with_other_file: State, without_file: State
) -> None:
    history = [row(1, recorded, statements_done=1)]

    assert [entry.state for entry in compare([migration(1)], history)] == [with_file]
    assert [entry.state for entry in compare([migration(1, checksum="other")], history)] == [with_other_file]
    assert [entry.state for entry in compare([], history)] == [without_file]


HALF_DONE = "SELECT 1;\nCALL work();\nCREATE INDEX CONCURRENTLY i ON t (n);\nSELECT 4;"


@pytest.mark.parametrize("recorded", [RecordState.RUNNING, RecordState.REVERTING])
@pytest.mark.parametrize(
    ("done", "begun", "with_file", "without_file"),
    [
        (1, "", State.INTERRUPTED, State.INTERRUPTED),
        (1, ">{2} {{}} 2026-01-01", State.IN_DOUBT, State.IN_DOUBT),
        (2, ">{3} {{}} 2026-01-01", State.INTERRUPTED, State.IN_DOUBT),
        (2, ">{3} 2026-01-01", State.IN_DOUBT, State.IN_DOUBT),
        (2, ">{1} {{}} 2026-01-01", State.IN_DOUBT, State.IN_DOUBT),
        (2, ">{3} {{x}} 2026-01-01", State.IN_DOUBT, State.IN_DOUBT),
    ],
    ids=["between statements", "CALL", "index", "index, objects unknown", "other statement", "no number"],
)
def test_a_half_done_version_is_interrupted_if_the_next_run_goes_on_with_it_and_else_in_doubt(
    recorded: RecordState, done: int, begun: str, with_file: State, without_file: State
) -> None:
    digests = ["", *(cursor_after(HALF_DONE, number) for number in range(1, 5))]
    half_done = row(1, recorded, statements_done=done, cursor=digests[done] + begun.format(*digests))
    files = [migration(1, up=HALF_DONE, down=HALF_DONE, options=BY_STATEMENT)]

    assert [entry.state for entry in compare(files, [half_done])] == [with_file]
    assert [entry.state for entry in compare([], [half_done])] == [without_file]
    edited = [migration(1, up="SELECT 0;\n" + HALF_DONE, down="SELECT 0;\n" + HALF_DONE, options=BY_STATEMENT)]
    assert [entry.state for entry in compare(edited, [half_done])] == [State.IN_DOUBT]
    for each in ([], files, edited):
        (entry,) = planning.compare(each, [half_done], own.rank, at_work={"1"})
        assert entry.state is State.RUNNING


def test_a_failure_that_left_nothing_is_forgotten_with_its_file() -> None:
    failed = row(1, RecordState.FAILED)

    assert compare([], [failed]) == ()
    assert [entry.version for entry in compare([migration(2)], [failed])] == ["2"]
    assert [entry.state for entry in compare([migration(1)], [failed])] == [State.FAILED]


@pytest.mark.parametrize(
    ("newer", "expected"),
    [
        (RecordState.APPLIED, State.LATE),
        (RecordState.FAILED, State.PENDING),
        (RecordState.RUNNING, State.PENDING),
        (RecordState.REVERTING, State.PENDING),
    ],
)
def test_a_file_without_a_row_is_late_below_an_applied_version(newer: RecordState, expected: State) -> None:
    first, _ = compare([migration(1), migration(2)], [row(2, newer)])

    assert first.state is expected


@pytest.mark.parametrize("done", [0, 2])
@pytest.mark.parametrize("of_the_file", [{}, {"name": "another"}, {"checksum": "other"}], ids=str)
def test_a_failed_version_is_late_below_an_applied_one(of_the_file: dict[str, str], done: int) -> None:
    failed = row(1, RecordState.FAILED, statements_done=done, **of_the_file)
    compared = compare([migration(1), migration(2)], [failed, row(2)])

    assert [entry.state for entry in compared] == [State.LATE, State.APPLIED]
    with pytest.raises(HistoryError, match="later versions are applied"):
        judge(compared)
    assert judge(compared, allow_late=True) == ()
    assert planning.missing(compared) == ("1",)


def test_a_person_has_judged_only_the_file_of_that_name() -> None:
    reset = row(1, RecordState.PENDING, name="another", reason="cleaned up")

    assert [entry.state for entry in compare([migration(1), migration(2)], [reset, row(2)])] == [
        State.LATE,
        State.APPLIED,
    ]


@pytest.mark.parametrize("other", [{"name": "another"}, {"checksum": "other"}], ids=str)
def test_the_failure_of_an_earlier_file_is_not_charged_to_the_present_one(other: dict[str, Any]) -> None:
    failed = row(1, RecordState.FAILED, error="syntax error")
    (same,), (new,) = compare([migration(1)], [failed]), compare([migration(1)], [failed._replace(**other)])
    (begun,) = compare([migration(1)], [failed._replace(statements_done=1, **other)])

    assert [entry.state for entry in (same, new, begun)] == [State.FAILED, State.PENDING, State.FAILED]
    assert [planning.attempt_at(entry) for entry in (same, new, begun)] == [same.row, None, begun.row]


def test_a_file_above_all_that_is_applied_is_pending() -> None:
    assert [entry.state for entry in entries([1, 2, 3], [1, 2])] == [State.APPLIED, State.APPLIED, State.PENDING]


def test_a_file_below_an_unknown_version_is_late() -> None:
    assert [entry.state for entry in entries([1, 2], [1, 3])] == [State.APPLIED, State.LATE, State.UNKNOWN]


def test_versions_are_compared_as_numbers() -> None:
    compared = entries([10, 9, 100], [9, 99])

    assert [entry.version for entry in compared] == ["9", "10", "99", "100"]
    assert [entry.state for entry in compared] == [State.APPLIED, State.LATE, State.UNKNOWN, State.PENDING]


def test_version_zero_is_a_version() -> None:
    assert [entry.state for entry in entries([0, 1], [])] == [State.PENDING, State.PENDING]
    assert [entry.state for entry in entries([0, 1], [0])] == [State.APPLIED, State.PENDING]


def test_an_entry_has_both_sides_of_its_version() -> None:
    applied, unknown, pending = compare([migration(4), migration(2)], [row(2), row(3)])

    assert (pending.migration, pending.row) == (migration(4), None)
    assert (applied.migration, applied.row) == (migration(2), row(2))
    assert (unknown.migration, unknown.row) == (None, row(3))
    assert [entry.name for entry in (pending, applied, unknown)] == ["name4", "name2", "name3"]


def test_the_name_is_the_files_where_there_is_one() -> None:
    (entry,) = compare([migration(1)._replace(name="renamed")], [row(1)])

    assert (entry.name, entry.state) == ("renamed", State.APPLIED)


def test_an_interrupted_migration_is_refused_with_the_facts() -> None:
    compared = compare([migration(1), migration(2)], [row(1), row(2, RecordState.RUNNING, statements_done=1)])

    with pytest.raises(HistoryError) as caught:
        halfway.taken_over(compared, Direction.UP)

    assert caught.value.versions == ("2",)
    for fact in ("up 2 name2", "2026-03-01 12:30:15", "alice@host app", "4711", "1 of 3 statements"):
        assert fact in str(caught.value)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("error", [None, "division by zero"])
def test_an_interrupted_way_up_is_refused_in_both_directions(direction: Direction, error: str | None) -> None:
    compared = compare([migration(1)], [row(1, RecordState.RUNNING, error=error)])

    with pytest.raises(HistoryError, match="up 1 name1"):
        halfway.taken_over(compared, direction)


@pytest.mark.parametrize(
    ("state", "own", "other"),
    [
        (RecordState.RUNNING, Direction.UP, Direction.DOWN),
        (RecordState.REVERTING, Direction.DOWN, Direction.UP),
    ],
)
@pytest.mark.parametrize("error", [None, "division by zero"])
def test_a_version_that_counts_its_statements_goes_on_in_its_own_direction(
    state: RecordState, own: Direction, other: Direction, error: str | None
) -> None:
    compared = compare([migration(1)], [row(1, state, cursor="", error=error)])

    assert halfway.taken_over(compared, own) == [compared[0].row]
    with pytest.raises(HistoryError, match=f"{own} 1 name1.*Finish it with `pgratchet {own}`.*`pgratchet repair 1`"):
        halfway.taken_over(compared, other)


@pytest.mark.parametrize("cursor", [None, "", "abc"])
def test_a_half_done_version_without_a_file_is_refused_on_the_way_down_only(cursor: str | None) -> None:
    compared = compare([], [row(1, RecordState.RUNNING, cursor=cursor)])

    assert halfway.taken_over(compared, Direction.UP) == []
    assert planning.missing(compared) == ()
    assert judge(compared) == ("1 name1 is half done, but has no file here",)
    with pytest.raises(HistoryError, match="1 name1 is half done"):
        judge(compared, strict=True)
    with pytest.raises(HistoryError, match="up 1 name1"):
        halfway.taken_over(compared, Direction.DOWN)


def test_many_versions_without_files_are_one_warning_beside_those_that_are_half_done() -> None:
    begun = row(8, RecordState.RUNNING, cursor="")
    compared = compare([migration(1), migration(5)], [*map(row, [*range(1, 8), 9]), begun])

    assert judge(compared) == (
        "8 name8 is half done, but has no file here",
        "2 to 4, 6, 7, 9 are in the database, but have no files here",
    )
    assert judge(entries([1, 4], [1, 2, 3, 4])) == (
        "2 name2 is in the database, but has no file here",
        "3 name3 is in the database, but has no file here",
    )


@pytest.mark.parametrize("allowed", [True, False])
def test_a_version_that_a_person_has_reset_is_pending_and_never_late(*, allowed: bool) -> None:
    compared = compare(
        [migration(1, checksum="other"), migration(2)], [row(1, RecordState.PENDING, reason="cleaned up"), row(2)]
    )

    assert [entry.state for entry in compared] == [State.PENDING, State.APPLIED]
    assert judge(compared, allow_late=allowed) == ()
    (step, *_) = planning.plan_up(compared).steps
    assert step.replaces
    assert versions(planning.plan_up(compared)) == ["1"]
    assert [halfway.taken_over(compared, direction) for direction in Direction] == [[], []]
    assert planning.choose_down(compared, steps=1) == ("2",)
    assert compare([], [row(1, RecordState.PENDING)]) == ()


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("state", [RecordState.APPLIED, RecordState.FAILED])
def test_a_version_that_is_not_half_done_is_no_interruption(state: RecordState, direction: Direction) -> None:
    assert halfway.taken_over(compare([migration(1)], [row(1, state)]), direction) == []


@pytest.mark.parametrize("failed", [1, 2, 3])
def test_a_way_up_that_failed_half_way_is_open_upwards_only(failed: int) -> None:
    rows = [row(version) for version in (1, 2, 3) if version != failed]
    half_done = row(failed, RecordState.FAILED, statements_done=2, error="no column b")
    compared = compare(map(migration, (1, 2, 3)), [*rows, half_done])

    assert halfway.taken_over(compared, Direction.UP) == []
    with pytest.raises(HistoryError) as caught:
        halfway.taken_over(compared, Direction.DOWN)

    assert caught.value.versions == (str(failed),)
    for fact in (f"up {failed} name{failed}", "2 of 3 statements", "no column b"):
        assert fact in str(caught.value)


def test_up_runs_pending_versions_in_order() -> None:
    plan = planning.plan_up(entries([3, 10, 1, 2], [1]))

    assert versions(plan) == ["2", "3", "10"]
    assert {step.direction for step in plan.steps} == {Direction.UP}


def test_up_runs_late_and_failed_versions() -> None:
    compared = compare([migration(1), migration(2), migration(3)], [row(1, RecordState.FAILED), row(3), row(4)])

    assert versions(planning.plan_up(compared)) == ["1", "2"]


@pytest.mark.parametrize(
    ("to", "expected"),
    [("1", []), ("2", ["2"]), ("3", ["2", "3"]), ("4", ["2", "3", "4"]), ("0", []), (None, ["2", "3", "4"])],
)
def test_up_stops_behind_the_version_it_is_to_go_to(to: str | None, expected: list[str]) -> None:
    assert versions(planning.plan_up(entries([1, 2, 3, 4], [1]), to)) == expected


@pytest.mark.parametrize("to", ["5", "99", "-1", "one", "", "1.0", "²"])
def test_there_has_to_be_a_version_to_go_to(to: str) -> None:
    with pytest.raises(UsageError, match="there is no version"):
        planning.plan_up(entries([1, 2], [1]), to)
    with pytest.raises(UsageError, match="there is no version"):
        planning.choose_down(entries([1, 2], [1]), to=to)


@pytest.mark.parametrize(("to", "expected"), [(None, ("1", "2", "4")), ("2", ("1", "2")), ("3", ("1", "2")), ("0", ())])
def test_a_version_is_missing_until_it_is_applied(to: str | None, expected: tuple[str, ...]) -> None:
    history = [row(1, RecordState.RUNNING), row(2, RecordState.FAILED), row(3)]
    compared = compare([migration(version) for version in (1, 2, 3, 4)], history)

    assert planning.missing(compared, to) == expected


@pytest.mark.parametrize("to", ["3", "one"])
def test_nothing_is_missing_up_to_a_version_that_does_not_exist(to: str) -> None:
    with pytest.raises(UsageError, match="there is no version"):
        planning.missing(entries([1, 2], [1, 2]), to)


def test_a_step_carries_its_script() -> None:
    compared = compare([migration(1, up="SELECT 1; SELECT 2;")], [])

    (step,) = planning.plan_up(compared).steps
    assert (step.script.mode, step.script.statements, step.done) == (Mode.TRANSACTION, 2, 0)
    assert step.script.source == migration(1, up="SELECT 1; SELECT 2;").up


def test_problems_of_all_scripts_that_would_run_are_told_at_once() -> None:
    compared = compare(
        [migration(1, up="COMMIT;"), migration(2, up="\\i x"), migration(3, up="SELECT 1;\nVACUUM;")], [row(1)]
    )

    with pytest.raises(FilesError) as caught:
        planning.plan_up(compared)

    assert [(problem.path, problem.line) for problem in caught.value.problems] == [
        ("m/002_name.sql", 1),
        ("m/003_name.sql", 2),
    ]


def test_problems_of_the_ways_down_of_planned_versions_are_reported_too() -> None:
    compared = compare(
        [migration(1, down="COMMIT;"), migration(2, up="\\i x", down="\nCOMMIT;"), migration(3, down="SELECT 'a")],
        [row(1)],
    )

    for plan in (planning.plan_up, lambda entries: planning.plan_again(entries, ["3", "2"], [])):
        with pytest.raises(FilesError) as caught:
            plan(compared)

        assert [(problem.path, problem.line) for problem in caught.value.problems] == [
            ("m/002_name.sql", 1),
            ("m/002_name.down.sql", 2),
            ("m/003_name.down.sql", 1),
        ]


@pytest.mark.parametrize("down", [None, "VACUUM;", "-- nothing"])
def test_a_way_down_that_is_missing_or_in_order_holds_nothing_up(down: str | None) -> None:
    assert versions(planning.plan_up(compare([migration(1, down=down)], []))) == ["1"]


def test_a_python_migration_needs_no_way_down_to_go_up() -> None:
    source = Source("m/1_x.py", "async def up(connection): ...\n")
    python = Migration("1", (1,), "x", Kind.PYTHON, "same", source, source)

    assert versions(planning.plan_up(compare([python], []))) == ["1"]


def test_scripts_that_would_not_run_are_not_checked() -> None:
    bad = [migration(1, up="COMMIT;", down="COMMIT;"), migration(3, up="COMMIT;", down="COMMIT;")]
    compared = compare([*bad, migration(2)], [row(1)])

    assert versions(planning.plan_up(compared, "2")) == ["2"]
    assert versions(planning.plan_down(compare([*bad, migration(2)], [row(1), row(2)]), ["2"])) == ["2"]


def test_down_takes_the_newest_first() -> None:
    compared = entries([1, 2, 3, 4], [1, 2, 3])

    assert planning.choose_down(compared, steps=2) == ("3", "2")
    assert planning.choose_down(compared, steps=9) == ("3", "2", "1")


@pytest.mark.parametrize(("to", "expected"), [("0", ("3", "2", "1")), ("1", ("3", "2")), ("3", ()), ("4", ())])
def test_down_leaves_the_version_that_it_goes_back_to(to: str, expected: tuple[str, ...]) -> None:
    assert planning.choose_down(entries([1, 2, 3, 4], [1, 2, 3]), to=to) == expected


@pytest.mark.parametrize(("to", "steps"), [("1", None), (None, 1), (None, 2)])
def test_down_is_refused_while_the_database_is_ahead_of_the_files(to: str | None, steps: int | None) -> None:
    with pytest.raises(HistoryError) as caught:
        planning.choose_down(entries([1, 2], [1, 2, 3]), to=to, steps=steps)

    assert caught.value.versions == ("3",)
    assert "revert it with the release that has it" in str(caught.value)


@pytest.mark.parametrize(
    ("to", "steps", "expected"),
    [("2", None, ("3",)), ("1", None, ("3", "2")), (None, 1, ("3",)), (None, 2, ("3", "2"))],
)
def test_down_does_not_mind_an_unknown_version_below(
    to: str | None, steps: int | None, expected: tuple[str, ...]
) -> None:
    assert planning.choose_down(entries([2, 3], [1, 2, 3]), to=to, steps=steps) == expected


def test_down_is_refused_where_it_leads_through_an_unknown_version() -> None:
    with pytest.raises(HistoryError) as caught:
        planning.choose_down(entries([1, 3], [1, 2, 3]), to="1")

    assert caught.value.versions == ("2",)


def test_down_ignores_pending_and_failed_versions() -> None:
    compared = compare([migration(1), migration(2), migration(3)], [row(1), row(2, RecordState.FAILED)])

    assert planning.choose_down(compared, steps=1) == ("1",)


def test_a_way_down_that_failed_is_taken_again() -> None:
    compared = compare([migration(1), migration(2)], [row(1), row(2, RecordState.REVERTING, error="division by zero")])

    assert planning.choose_down(compared, steps=1) == ("2",)
    assert versions(planning.plan_down(compared, ["2"])) == ["2"]


def test_the_chosen_versions_are_reverted_newest_first() -> None:
    plan = planning.plan_down(entries([1, 2, 3, 10], [1, 2, 3, 10]), ["3", "10"])

    assert versions(plan) == ["10", "3"]
    assert {step.direction for step in plan.steps} == {Direction.DOWN}
    assert plan.steps[0].script.source.path == "m/010_name.down.sql"


def test_a_reverted_version_is_not_reverted_again() -> None:
    assert versions(planning.plan_down(entries([1, 2, 3], [1]), ["3", "2", "1"])) == ["1"]


def test_a_migration_without_a_way_down_is_refused_with_the_name_of_the_file_to_write() -> None:
    compared = compare([migration(1, down=None), migration(2, down="COMMIT;")], [row(1), row(2)])

    with pytest.raises(FilesError) as caught:
        planning.plan_down(compared, ["2", "1"])

    assert [problem.path for problem in caught.value.problems] == ["m/002_name.down.sql", "m/001_name.sql"]
    assert caught.value.problems[1].cure == "write m/001_name.down.sql"


def test_redo_applies_the_versions_that_it_reverted_and_no_others() -> None:
    reverted = entries([1, 2, 3, 4], [1])

    assert versions(planning.plan_again(reverted, ["3", "2"], [])) == ["2", "3"]


def test_redo_does_not_apply_an_applied_version_twice() -> None:
    assert versions(planning.plan_again(entries([1, 2, 3], [1, 2]), ["3", "2"], [])) == ["3"]


def test_redo_leaves_no_gap_that_another_runner_has_made_meanwhile() -> None:
    reverted = entries([1, 2, 3], [])

    with pytest.raises(HistoryError, match="another runner has reverted 1 meanwhile"):
        planning.plan_again(reverted, ["3", "2"], [])
    assert versions(planning.plan_again(reverted, ["3", "2"], ["1"])) == ["2", "3"]
    assert not planning.plan_again(entries([1, 2, 3], [2, 3]), ["3", "2"], []).steps


def test_a_way_down_leaves_nothing_above_it_that_another_runner_has_applied_meanwhile() -> None:
    with pytest.raises(HistoryError, match="another runner has applied 3 meanwhile") as caught:
        planning.plan_down(entries([1, 2, 3], [1, 2, 3]), ["2"])

    assert caught.value.versions == ("3",)
    assert not planning.plan_down(entries([1, 2, 3], [1, 3]), ["2"]).steps


UP = "CREATE TABLE a ();\nCREATE INDEX CONCURRENTLY i ON a (b);\nCREATE TABLE c ();\n"


def half_done(up: str, *, options: Options = BY_STATEMENT, done: int = 2) -> tuple[Entry, ...]:
    cursor = cursor_after(UP, done) if done else None
    failed = row(1, RecordState.FAILED, checksum="before", statements_done=done, cursor=cursor, error="no column b")
    return compare([migration(1, up=up, options=options)], [failed])


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_half_done_migration_goes_on_where_it_stopped(done: int) -> None:
    (step,) = planning.plan_up(half_done(UP, done=done)).steps

    assert step.done == done


@pytest.mark.parametrize(
    "up",
    [
        UP.replace("TABLE c", "TABLE d"),
        UP + "SELECT 1;",
        "CREATE TABLE a ();\nCREATE INDEX CONCURRENTLY i ON a (b);\n",
        "-- now\nCREATE TABLE a ();CREATE INDEX CONCURRENTLY i ON a (b);SELECT 2",
    ],
)
def test_statements_after_the_committed_ones_may_be_fixed(up: str) -> None:
    assert planning.plan_up(half_done(up)).steps[0].done == 2


@pytest.mark.parametrize(
    "up",
    [
        UP.replace("TABLE a", "TABLE b"),
        UP.replace("i ON", "j ON"),
        "SELECT 1;\n" + UP,
        "CREATE INDEX CONCURRENTLY i ON a (b);\nCREATE TABLE a ();\n",
        "CREATE TABLE a ();",
        "",
    ],
)
def test_committed_statements_must_not_be_edited(up: str) -> None:
    with pytest.raises(HistoryError) as caught:
        planning.plan_up(half_done(up))

    assert caught.value.versions == ("1",)
    assert "first 2 statement(s)" in str(caught.value)


def test_a_half_done_migration_cannot_become_a_transaction() -> None:
    with pytest.raises(HistoryError, match="committed since an earlier run"):
        planning.plan_up(half_done("CREATE TABLE a ();\nSELECT 2;\n", options=PLAIN))


@pytest.mark.parametrize("mark", ["", ">after 2026-03-01 12:30:15+00"])
@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_migration_that_was_cut_off_goes_on_where_it_was(done: int, mark: str) -> None:
    cursor = (cursor_after(UP, done) if done else "") + mark
    cut_off = row(1, RecordState.RUNNING, statements_done=done, cursor=cursor, checksum="before")
    compared = compare([migration(1, up=UP, options=BY_STATEMENT)], [cut_off])

    (step,) = planning.plan_up(compared).steps
    assert (step.done, step.over) == (done, cut_off)
    assert versions(planning.plan_again(compared, ["1"], [])) == ["1"]
    for edited in (migration(1, up="SELECT 1;" + UP, options=BY_STATEMENT), migration(1, up="CREATE TABLE a ()")):
        if done or edited.up.options is PLAIN:
            with pytest.raises(HistoryError, match="restore them as they were"):
                planning.plan_up(compare([edited], [cut_off]))


def test_a_transaction_that_has_escaped_is_not_planned() -> None:
    compared = compare([migration(1, up=UP, options=BY_STATEMENT)], [row(1, RecordState.RUNNING)])

    assert planning.plan_up(compared).steps == ()
    assert planning.missing(compared) == ("1",)


def test_a_half_done_way_down_goes_on_where_it_stopped() -> None:
    reverting = row(1, RecordState.REVERTING, statements_done=1, cursor=cursor_after(UP, 1), error="locked")
    compared = compare([migration(1, down=UP, options=BY_STATEMENT)], [reverting])

    (step,) = planning.plan_down(compared, ["1"]).steps
    assert (step.direction, step.done) == (Direction.DOWN, 1)


def test_statements_counted_on_the_way_up_are_not_those_of_the_way_down() -> None:
    applied = row(1, statements_done=3, cursor=cursor_after(UP, 3))
    compared = compare([migration(1, down="DROP TABLE a;")], [applied])

    assert planning.plan_down(compared, ["1"]).steps[0].done == 0
