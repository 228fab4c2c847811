import inspect
import pickle

import pytest

from pgratchet.core import errors
from pgratchet.core.errors import (
    AbsentError,
    BehindError,
    BudgetExceededError,
    ConnectionLostError,
    FilesError,
    ForeignTableError,
    HistoryError,
    MigrationFailedError,
    PgratchetError,
    ScriptError,
    ServerError,
    StartInterruptedError,
    UsageError,
)
from pgratchet.core.model import Direction, Failure, Finished, Problem

FAILURE = Failure("7", "add_users", Direction.UP, "m/007_add_users.sql", "no such table")
FINISHED = Finished("6", "before", Direction.UP, 2, 0.5)
OURS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
EXAMPLES = [
    PgratchetError("what"),
    UsageError("what"),
    ServerError("what"),
    AbsentError("what"),
    ConnectionLostError("what"),
    ScriptError("unterminated", 12),
    FilesError([Problem("m/1_a.sql", "a gap", "fill it")]),
    MigrationFailedError(FAILURE, [FINISHED]),
    HistoryError("what", ["12", "13"]),
    ForeignTableError("what"),
    BehindError(["12", "13"]),
    BehindError(["12", "13"], ["12"], ["13"]),
    BudgetExceededError("what"),
    StartInterruptedError("what"),
]


def test_everything_raised_on_purpose_has_one_base() -> None:
    assert len(OURS) >= 11
    assert all(issubclass(kind, PgratchetError) for kind in OURS)


def test_a_lost_connection_is_the_servers_and_a_foreign_table_is_historys() -> None:
    assert issubclass(ConnectionLostError, ServerError)
    assert issubclass(ForeignTableError, HistoryError)


def test_the_problems_of_files_are_one_line_each() -> None:
    problems = [Problem("m/1_a.sql", "a gap", "fill it"), Problem("m/2_b.sql", "a psql command", "remove it", 3)]

    error = FilesError(problems)

    assert error.problems == tuple(problems)
    assert str(error).splitlines() == ["m/1_a.sql: a gap; fill it", "m/2_b.sql:3: a psql command; remove it"]


def test_a_failure_is_told_with_its_place_and_its_code() -> None:
    error = MigrationFailedError(FAILURE._replace(line=3, column=14, sqlstate="42P01"), [FINISHED])

    assert str(error) == "m/007_add_users.sql:3:14: up 7 failed: no such table (42P01)"
    assert error.finished == (FINISHED,)


def test_a_failure_without_a_place_is_told_with_its_file() -> None:
    error = MigrationFailedError(FAILURE)

    assert str(error) == "m/007_add_users.sql: up 7 failed: no such table"
    assert error.finished == ()


def test_an_error_keeps_its_texts_unchanged_in_its_attributes() -> None:
    finished, versions = [FINISHED], ["1"]
    failed, history, behind = MigrationFailedError(FAILURE, finished), HistoryError("", versions), BehindError(versions)

    finished.clear()
    versions.clear()

    assert failed.finished == (FINISHED,)
    assert (history.versions, behind.versions) == (("1",), ("1",))


def test_being_behind_names_the_versions() -> None:
    error = BehindError(["3", "4"])

    assert error.versions == ("3", "4")
    assert str(error) == "2 migration(s) pending: 3, 4"


@pytest.mark.parametrize(
    ("versions", "order", "shown"),
    [
        ("5 6 7 8", "3 4 5 6 7 8", "5 to 8"),
        ("5 6", "5 6", "5, 6"),
        ("3 4 6 8 9 12", "3 4 6 7 8 9 10 12", "3 to 6, 8, 9, 12"),
        ("3 4 5", "", "3, 4, 5"),
        ("1 x y 2 3 4", "1 2 3 4", "1, x, y, 2 to 4"),
        ("20260101 20260309 20261130", "20260101 20260309 20261130", "20260101 to 20261130"),
    ],
)
def test_being_behind_tells_neighbours_as_a_range(versions: str, order: str, shown: str) -> None:
    error = BehindError(versions.split(), order=order.split())

    assert str(error).endswith(f" pending: {shown}")


def test_a_script_error_says_where() -> None:
    error = ScriptError("unterminated", 12)

    assert (str(error), error.offset) == ("unterminated", 12)


@pytest.mark.parametrize("error", [HistoryError("what"), ForeignTableError("what")])
def test_history_errors_need_no_versions(error: HistoryError) -> None:
    assert (str(error), error.versions) == ("what", ())


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_reaches_another_process_whole(error: PgratchetError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - it was made one line above

    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_can_be_made_again_from_its_arguments(error: PgratchetError) -> None:
    again = type(error)(*error.args)

    assert (str(again), vars(again)) == (str(error), vars(error))


def test_the_examples_are_of_every_error_there_is() -> None:
    assert {type(error) for error in EXAMPLES} == set(OURS)
