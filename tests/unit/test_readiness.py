import threading
from typing import Any

import pytest

from pgratchet import Condition, Direction, Done, Event, Failed, Failure, Finished, Locked, Looked, Readiness, Started
from pgratchet.core.model import Rank
from pgratchet.core.readiness import Course
from pgratchet.files.layouts.own import own

MISSING = Looked(applied=2, pending=("3", "4"), running=(), failed=(), unknown=())
COMPLETE = Looked(applied=4, pending=(), running=(), failed=(), unknown=("9",))


def after(*events: Event) -> Readiness:
    course = Course(own.rank)
    for event in events:
        course.take(event)
    return course.readiness


def started(version: str, direction: Direction = Direction.UP) -> Started:
    return Started(version, "x", direction, 1)


def finished(version: str, direction: Direction = Direction.UP) -> Finished:
    return Finished(version, "x", direction, 1, None)


def failed(version: str) -> Failed:
    return Failed("MigrationFailedError", "x", Failure(version, "x", Direction.UP, "x.sql", "x"))


def test_readiness_is_unknown_before_the_first_look() -> None:
    assert after() == Readiness(Condition.UNKNOWN)
    assert not after().ready


def test_a_look_alone_does_not_make_an_application_ready() -> None:
    assert after(COMPLETE) == Readiness(Condition.PENDING, applied=4, unknown=("9",))


def test_a_run_that_finds_everything_applied_makes_an_application_ready() -> None:
    assert after(COMPLETE, Done(())).ready


def test_a_run_that_ends_with_a_missing_version_does_not_make_an_application_ready() -> None:
    assert after(MISSING, Done(())).state is Condition.PENDING


def test_steps_go_from_pending_over_running_to_applied() -> None:
    assert after(MISSING, started("3")) == Readiness(Condition.RUNNING, 2, pending=("4",), running=("3",))
    assert after(MISSING, started("3"), finished("3"), started("4"), finished("4"), Done(())) == Readiness(
        Condition.APPLIED, applied=4
    )


def test_a_step_that_a_look_has_found_done_already_counts_once() -> None:
    assert after(MISSING, started("3"), Looked(3, ("4",), (), (), ()), finished("3")) == Readiness(
        Condition.PENDING, applied=3, pending=("4",)
    )


def test_a_step_that_is_tried_again_runs_once() -> None:
    assert after(MISSING, started("3"), started("3")).running == ("3",)


def test_a_failure_names_its_version_and_makes_the_versions_behind_it_pending() -> None:
    assert after(MISSING, started("3"), started("4"), failed("3")) == Readiness(
        Condition.FAILED, applied=2, pending=("4",), failed=("3",)
    )


@pytest.mark.parametrize("error", ["CancelledError", "BudgetExceededError"])
def test_an_error_outside_a_step_is_a_failure_too(error: str) -> None:
    events = (MISSING, started("3"), Failed(error, ""))

    assert after(*events) == Readiness(Condition.FAILED, applied=2, pending=("3", "4"))
    assert after(*events, Locked(0.0)) == after(*events)


def test_only_another_run_ends_the_state_failed() -> None:
    events = (MISSING, Failed("CancelledError", ""))

    assert not after(*events, COMPLETE).ready
    assert after(*events, COMPLETE, Done(())).ready


def test_another_look_that_finds_everything_applied_leaves_an_application_ready() -> None:
    assert after(COMPLETE, Done(()), COMPLETE).ready


def test_a_look_that_finds_a_missing_version_ends_readiness() -> None:
    assert after(COMPLETE, Done(()), MISSING).state is Condition.PENDING


def test_a_failed_way_down_leaves_its_versions_applied() -> None:
    failure = Failure("4", "x", Direction.DOWN, "x.sql", "x")
    events = (COMPLETE, started("4", Direction.DOWN), Failed("MigrationFailedError", "x", failure))

    assert after(*events) == Readiness(Condition.FAILED, applied=4, unknown=("9",))
    assert after(COMPLETE, started("4", Direction.DOWN), Failed("CancelledError", "")).applied == 4


def test_a_failure_behind_a_finished_way_down_leaves_its_versions_reverted() -> None:
    reverted = Readiness(Condition.FAILED, applied=3, pending=("4",), unknown=("9",))
    cancelled = Failed("CancelledError", "")

    assert after(COMPLETE, started("4", Direction.DOWN), finished("4", Direction.DOWN), cancelled) == reverted


def test_a_failure_behind_a_look_leaves_what_the_look_has_found() -> None:
    found = Looked(applied=3, pending=("4",), running=(), failed=(), unknown=("9",))

    assert after(COMPLETE, started("4", Direction.DOWN), found, Failed("CancelledError", "")) == Readiness(
        Condition.FAILED, applied=3, pending=("4",), unknown=("9",)
    )


def test_a_look_tells_the_versions_of_other_runs_as_they_are() -> None:
    assert after(Looked(applied=1, pending=("4",), running=("2",), failed=("3",), unknown=())) == Readiness(
        Condition.PENDING, applied=1, pending=("4",), running=("2",), failed=("3",)
    )


def test_a_mistake_of_the_caller_does_not_change_readiness() -> None:
    assert after(COMPLETE, Done(()), COMPLETE, Failed("UsageError", "no such version")).ready
    assert not after(COMPLETE, Done(()), COMPLETE, Failed("HistoryError", "edited")).ready
    assert after(Failed("UsageError", "no such folder")).state is Condition.FAILED
    assert after(MISSING, Failed("UsageError", "no such version")).state is Condition.FAILED


def test_a_way_down_makes_a_schema_pending_and_the_next_way_up_makes_it_ready() -> None:
    down: list[Event] = [started("4", Direction.DOWN), finished("4", Direction.DOWN)]

    assert after(COMPLETE, *down, Done(())) == Readiness(Condition.PENDING, 3, pending=("4",), unknown=("9",))
    assert after(COMPLETE, *down, started("4"), finished("4"), Done(())).ready


def test_readiness_lists_versions_in_their_order_also_on_the_way_down() -> None:
    eleven = Looked(applied=11, pending=(), running=(), failed=(), unknown=())
    steps = [started(version, Direction.DOWN) for version in ("11", "10", "9")]

    assert after(eleven, Done(()), *steps).running == ("9", "10", "11")


def test_the_events_of_a_read_only_run_are_ignored_while_another_run_works() -> None:
    course = Course(own.rank)
    with course.working() as work:
        work(COMPLETE)
        look = course.looking()
        work(started("4", Direction.DOWN))
        for event in (COMPLETE, Done(())):
            look(event)
        assert course.readiness == Readiness(Condition.RUNNING, 3, running=("4",), unknown=("9",))
        work(finished("4", Direction.DOWN))
        work(Done(()))

    look(Failed("BehindError", ""))
    assert course.readiness == Readiness(Condition.PENDING, 3, pending=("4",), unknown=("9",))


def test_the_events_of_a_read_only_run_count_again_after_its_next_look() -> None:
    course = Course(own.rank)
    look = course.looking()
    look(MISSING)
    with course.working() as work:
        for event in (COMPLETE, Done(())):
            work(event)

    look(Failed("BehindError", ""))
    assert course.readiness.ready
    look(MISSING)
    assert not course.readiness.ready


@pytest.mark.parametrize("event", [Done(()), Failed("CancelledError", "")])
def test_forgetting_ends_readiness_but_not_a_failure(event: Event) -> None:
    course = Course(own.rank)
    for each in (COMPLETE, event):
        course.take(each)
    before = course.readiness

    course.forget()

    assert course.readiness == (Readiness() if before.ready else before)


def test_an_event_waits_for_a_thread_that_sums_up_readiness() -> None:
    begun, end = threading.Event(), threading.Event()
    seen: list[Readiness] = []

    def rank(version: str) -> Rank | None:
        begun.set()
        end.wait(5)
        return own.rank(version)

    course = Course(rank)
    course.take(MISSING)
    reader = threading.Thread(target=lambda: seen.append(course.readiness))
    writer = threading.Thread(target=course.take, args=(started("3"),))

    reader.start()
    begun.wait(5)
    writer.start()
    writer.join(0.05)
    waits = writer.is_alive()
    end.set()
    for thread in (reader, writer):
        thread.join()

    assert waits
    assert seen == [Readiness(Condition.PENDING, applied=2, pending=("3", "4"))]
    assert course.readiness.running == ("3",)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (MISSING, Readiness(Condition.RUNNING, 2, pending=("4",), running=("3",))),
        (MISSING._replace(pending=("4",), interrupted=("3",)), Readiness(Condition.RUNNING, 2, ("4",), ("3",))),
        (MISSING._replace(applied=3, pending=("4",)), Readiness(Condition.PENDING, 3, pending=("4",))),
    ],
    ids=["rolled back", "half done", "done by another"],
)
def test_a_step_that_has_begun_runs_also_behind_another_look_unless_somebody_has_done_it(
    found: Looked, expected: Readiness
) -> None:
    assert after(MISSING, started("3"), found) == expected
    assert after(MISSING, started("3"), found, finished("3"), finished("4"), Done(())).ready


@pytest.mark.parametrize("before", ["interrupted", "in_doubt", "failed", "running"])
def test_a_cancelled_step_is_as_it_was_before_it_began(before: str) -> None:
    missing: dict[str, Any] = {"pending": ("4",), before: ("3",)}

    left = after(MISSING._replace(**missing), started("3"), Failed("CancelledError", ""))
    assert left == Readiness(Condition.FAILED, 2)._replace(**missing)
