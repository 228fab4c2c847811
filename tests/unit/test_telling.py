import json
import logging
from datetime import UTC, datetime

import pytest

from pgratchet import (
    Direction,
    Done,
    Event,
    Failed,
    Failure,
    Finished,
    Locked,
    Looked,
    Retried,
    Started,
    StatementFinished,
    Waiting,
)
from pgratchet.runs.telling import fields, tell

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
FINISHED = Finished("3", "add_users", Direction.UP, 2, 0.5)
SENTENCES: dict[Event, tuple[int, str]] = {
    Looked(2, ("3",), ("4",), (), ()): (logging.DEBUG, "2 applied, 2 to do"),
    Waiting("somebody", NOON): (logging.INFO, "waiting since 12:00:00Z for somebody"),
    Locked(1.25): (logging.INFO, "locked after 1.2 s"),
    Started("3", "add_users", Direction.UP, 2): (logging.INFO, "up 3 add_users"),
    StatementFinished("3", "add_users", Direction.UP, 1, 2): (logging.DEBUG, "up 3 add_users: 1 of 2 statements"),
    Retried("3", "up 3 add_users", 1, "lock", "pid 7"): (
        logging.WARNING,
        "up 3 add_users: lock; blocked by pid 7; trying again",
    ),
    Retried("3", "up 3 add_users", 1, "lock", ""): (logging.WARNING, "up 3 add_users: lock; trying again"),
    FINISHED: (logging.INFO, "up 3 add_users: done"),
    Done((FINISHED,)): (logging.INFO, "done: 1 step(s)"),
    Done(()): (logging.DEBUG, "nothing to do"),
    Failed("ServerError", "no server"): (logging.ERROR, "ServerError: no server"),
    Failed("CancelledError", ""): (logging.WARNING, "cancelled"),
}


@pytest.fixture(autouse=True)
def log_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pgratchet")


@pytest.mark.parametrize(("event", "line"), SENTENCES.items(), ids=lambda each: type(each).__name__)
def test_each_event_has_its_line_and_its_fields(
    event: Event, line: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[Event] = []
    heard: list[Event] = []

    tell(taken.append, heard.append, event)

    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [line]
    assert caplog.records[0].migration_event == type(event).__name__  # type: ignore[attr-defined]  # a field of ours
    assert taken == heard == [event]


def test_fields_are_the_parts_under_names_that_no_record_has_yet() -> None:
    assert fields(Started("3", "add_users", Direction.UP, 2)) == {
        "migration_event": "Started",
        "migration_version": "3",
        "migration_name": "add_users",
        "migration_direction": "up",
        "migration_statements": 2,
    }


@pytest.mark.parametrize("event", [*SENTENCES, Failed("x", "x", Failure("3", "x", Direction.UP, "x.sql", "x"))])
def test_fields_can_be_written_as_json(event: Event) -> None:
    assert json.loads(json.dumps(fields(event)))["migration_event"] == type(event).__name__


def test_a_listener_that_raises_is_logged_and_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def listener(_: Event) -> None:
        raise LookupError("broken")

    tell(list[Event]().append, listener, Waiting("somebody", NOON))

    assert [record.getMessage() for record in caplog.records] == [
        "waiting since 12:00:00Z for somebody",
        "the listener failed at Waiting",
    ]
    assert caplog.records[1].exc_info is not None


def test_nobody_has_to_listen(caplog: pytest.LogCaptureFixture) -> None:
    tell(list[Event]().append, None, Waiting("somebody", NOON))

    assert len(caplog.records) == 1
