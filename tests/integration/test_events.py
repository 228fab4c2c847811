"""What a listener is told of real runs, and what the log's records have of it."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import anyio
import pytest
import structlog

from pgratchet import (
    BudgetExceededError,
    Condition,
    Direction,
    Done,
    Event,
    Failed,
    FilesError,
    Finished,
    Locked,
    Looked,
    MigrationFailedError,
    Migrator,
    Readiness,
    Retried,
    Started,
    StatementFinished,
    Waiting,
)
from tests.support import PASS_GATE, Write, ask, connected, gate, runner_lock, tell, until

pytestmark = pytest.mark.anyio

UP = Direction.UP


def told(events: list[Event], *kinds: type) -> list[Event]:
    return [event for event in events if isinstance(event, kinds)]


def versions(events: list[Event], kind: type[Started | Finished]) -> list[str]:
    return [event.version for event in events if isinstance(event, kind)]


@pytest.fixture
def events() -> list[Event]:
    return []


async def test_a_run_tells_its_course(dsn: str, write: Write, events: list[Event]) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a (); SELECT 1; SELECT 2;", "002_b.sql": "CREATE TABLE b ();"})

    finished = await Migrator(dsn, folder, listener=events.append).up()

    looks = (Looked(0, ("1", "2"), (), (), ()),) * 2
    locked = events[1]
    assert isinstance(locked, Locked)
    assert events == [
        looks[0],
        locked,
        looks[1],
        Started("1", "a", UP, 3),
        *(StatementFinished("1", "a", UP, number, 3) for number in (1, 2, 3)),
        Started("2", "b", UP, 1),
        *finished,
        Done(finished),
    ]
    assert all(step.seconds is not None for step in finished)


async def test_a_run_with_nothing_to_do_tells_that(dsn: str, write: Write, events: list[Event]) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();"})
    await Migrator(dsn, folder).up()

    await Migrator(dsn, folder, listener=events.append).up()

    assert events == [Looked(1, (), (), (), ()), Done(())]


async def test_statements_are_told_while_the_step_is_under_way(dsn: str, write: Write, events: list[Event]) -> None:
    folder = write({"001_a.sql": f"SELECT 1; SELECT 2; {PASS_GATE}"})
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(Migrator(dsn, folder, lock_timeout=0, listener=events.append).up)
        await closed.reached()

        async def two() -> bool:
            return len(told(events, StatementFinished)) == 2

        await until(two)
        await closed.open()
    assert told(events, StatementFinished, Finished)[-2] == StatementFinished("1", "a", UP, 3, 3)


async def test_statements_of_a_file_without_a_transaction_are_told_as_they_are_counted(
    dsn: str, write: Write, events: list[Event]
) -> None:
    text = "-- pgratchet: no-transaction\nCREATE TABLE a (n int); CREATE INDEX CONCURRENTLY i ON a (n);"
    await Migrator(dsn, write({"001_a.sql": text}), listener=events.append).up()

    assert told(events, StatementFinished) == [StatementFinished("1", "a", UP, number, 2) for number in (1, 2)]


DEFERRED = "CREATE TABLE a (n int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO a VALUES (1), (1 / 1);"
ONE, THREE = "CREATE TABLE a ();", "CREATE TABLE c ();"
STOPPED = {
    "the first, at its end": (DEFERRED, "CREATE TABLE b ();", ["1"]),
    "at run time": (ONE, "CREATE TABLE b (); ALTER TABLE nowhere ADD x int;", ["1", "2"]),
    "in a function": (ONE, "SELECT 1/0;", ["1", "2"]),
    "at its first character": (ONE, "CREATE TABEL b ();", ["1"]),
    "statement by statement": (ONE, "-- pgratchet: no-transaction\nSELECT 1; SELECT 1/0;", ["1", "2"]),
}


@pytest.mark.parametrize(("first", "second", "begun"), STOPPED.values(), ids=STOPPED)
async def test_a_step_that_never_ran_has_not_begun(
    dsn: str, write: Write, first: str, second: str, begun: list[str]
) -> None:
    events: list[Event] = []
    files = {"001_a.sql": first, "002_b.sql": second, "003_c.sql": THREE}
    with pytest.raises(MigrationFailedError) as caught:
        await Migrator(dsn, write(files), listener=events.append).up()

    assert versions(events, Started) == begun
    finished = [step.version for step in caught.value.finished]
    assert versions(events, Finished) == finished
    events.clear()
    cures = {"1 / 1": "2", "nowhere": "b", "1/0": "1", "TABEL": "TABLE"}
    for wrong, right in cures.items():
        files = {name: text.replace(wrong, right) for name, text in files.items()}
    await Migrator(dsn, write(files), listener=events.append).up()
    assert versions(events, Started) == versions(events, Finished) == list("123"[len(finished) :])


async def test_a_step_begins_while_the_steps_of_its_message_before_it_are_not_told_to_be_done(
    dsn: str, write: Write, events: list[Event]
) -> None:
    """The log of a run that waits in the third of five files says so."""
    files = {f"00{n}_m.sql": f"CREATE TABLE t{n} ();" for n in range(1, 6)} | {"003_m.sql": "DROP TABLE old;"}
    await tell(dsn, "CREATE TABLE old ()")
    migrator = Migrator(dsn, write(files), lock_timeout=0, listener=events.append)

    async def in_the_third() -> bool:
        return versions(events, Started) == ["1", "2", "3"]

    async with connected(dsn) as reader, anyio.create_task_group() as tasks, reader.transaction():
        await reader.execute("SELECT * FROM old")
        tasks.start_soon(migrator.up)
        await until(in_the_third)
        assert told(events, Finished) == []
        assert migrator.readiness == Readiness(Condition.RUNNING, 0, ("4", "5"), ("1", "2", "3"))
    assert versions(events, Started) == list("12345")


async def test_a_step_that_is_tried_again_after_a_timeout_has_begun_once(
    dsn: str, write: Write, events: list[Event]
) -> None:
    await tell(dsn, "CREATE TABLE old ()")
    files = {"001_a.sql": ONE, "002_b.sql": "DROP TABLE old;", "003_c.sql": THREE}

    async def tried_twice() -> bool:
        return len(told(events, Retried)) == 2

    async with connected(dsn) as reader, anyio.create_task_group() as tasks, reader.transaction():
        await reader.execute("SELECT * FROM old")
        tasks.start_soon(Migrator(dsn, write(files), lock_timeout=0.1, listener=events.append).up)
        await until(tried_twice)
    assert versions(events, Started) == ["1", "2", "3"]


@pytest.mark.parametrize("mode", ["", "-- pgratchet: no-transaction\n"], ids=["transaction", "statements"])
@pytest.mark.parametrize("direction", list(Direction))
async def test_a_step_whose_session_was_lost_has_begun_once_and_runs_all_along(
    dsn: str, write: Write, events: list[Event], mode: str, direction: Direction
) -> None:
    slow, quick = f"{mode}SELECT 1;\n{PASS_GATE}", "SELECT 1;"
    up, down = (slow, quick) if direction is UP else (quick, slow)
    migrator = Migrator(dsn, write({"001_a.sql": up, "001_a.down.sql": down}), lock_timeout=0, listener=events.append)
    if direction is Direction.DOWN:
        await migrator.up()
        events.clear()
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(migrator.up if direction is UP else migrator.down)
        pid = await closed.reached()
        await tell(dsn, f"SELECT pg_terminate_backend({pid})")
        await closed.reached_by_another(pid)
        assert migrator.readiness == Readiness(Condition.RUNNING, running=("1",))
        await closed.open()
    assert told(events, Started) == [Started("1", "a", direction, 2)]
    assert migrator.readiness == (
        Readiness(Condition.APPLIED, 1) if direction is UP else Readiness(Condition.PENDING, 0, ("1",))
    )


async def test_of_two_runs_without_a_lock_only_the_one_that_claims_a_version_begins_it(dsn: str, write: Write) -> None:
    """The other one waits for the claim as long as the migration takes."""
    folder = write({"001_a.sql": PASS_GATE})
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
    first: list[Event] = []
    second: list[Event] = []
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(Migrator(dsn, folder, lock="none", lock_timeout=0, listener=first.append).up)
        await closed.reached()
        tasks.start_soon(Migrator(dsn, folder, lock="none", lock_timeout=0, listener=second.append).up)
        await until(lambda: ask(dsn, waits))
        await closed.open()
    assert (len(told(first, Started)), told(second, Started, Locked)) == (1, [])
    assert second[-1] == Done(())


async def test_where_no_notice_can_tell_that_a_step_has_begun_the_answer_does(
    dsn: str, write: Write, events: list[Event]
) -> None:
    await tell(dsn, "DROP EXTENSION plpgsql")
    files = {"001_a.sql": ONE, "002_b.sql": "CREATE TABLE b ();", "003_c.sql": "DROP TABLE no;", "004_d.sql": THREE}
    migrator = Migrator(dsn, write(files), listener=events.append)
    with pytest.raises(MigrationFailedError):
        await migrator.up()
    assert versions(events, Started) == versions(events, Finished) == ["1", "2"]
    await Migrator(dsn, write({"003_c.sql": "SELECT 1;"}), listener=events.append).up()


async def test_the_way_down_is_told_as_such(dsn: str, write: Write, events: list[Event]) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();", "001_a.down.sql": "DROP TABLE a;"})
    migrator = Migrator(dsn, folder, listener=events.append)
    await migrator.up()
    events.clear()
    await migrator.down()

    assert told(events, Started) == [Started("1", "a", Direction.DOWN, 1)]
    assert migrator.readiness == Readiness(Condition.PENDING, pending=("1",))


async def test_a_waiter_tells_for_whom_it_waits(dsn: str, write: Write, events: list[Event]) -> None:
    began = datetime.now(UTC)
    async with runner_lock(dsn), anyio.create_task_group() as tasks:
        tasks.start_soon(Migrator(dsn, write({"001_a.sql": "SELECT 1;"}), listener=events.append).up)

        async def waiting() -> bool:
            return bool(told(events, Waiting))

        await until(waiting)
        tasks.cancel_scope.cancel()
    (first, *_) = told(events, Waiting)
    assert isinstance(first, Waiting)
    assert first.holder.startswith("somebody else (role ")
    assert began <= first.since <= datetime.now(UTC)
    assert isinstance(events[-1], Failed)
    assert events[-1].error == "CancelledError"


async def test_a_retry_names_its_blocker(
    dsn: str, write: Write, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgratchet.postgres.wire.sending.LOOK_AFTER", 0.1)
    await tell(dsn, "CREATE TABLE busy (n int)")
    folder = write({"001_a.sql": "ALTER TABLE busy ADD m int;"})
    async with connected(dsn, application_name="night batch") as connection:
        await connection.execute("BEGIN; LOCK TABLE busy")
        with anyio.fail_after(20), pytest.raises(BudgetExceededError):
            await Migrator(dsn, folder, lock_timeout=0.5, budget=0.9, listener=events.append).up()
    retries = [event for event in events if isinstance(event, Retried)]
    assert [(each.version, each.what, each.attempt) for each in retries] == [
        ("1", "up 1 a", number) for number in range(1, len(retries) + 1)
    ]
    assert all("night batch" in each.blockers and "55P03" in each.reason for each in retries)
    assert isinstance(events[-1], Failed)
    assert events[-1].error == "BudgetExceededError"
    await Migrator(dsn, folder).up()


async def test_a_failure_is_told_with_its_place(dsn: str, write: Write, events: list[Event]) -> None:
    folder = write({"001_a.sql": "SELECT 1;\nSELECT 1/0;", "002_b.sql": "SELECT 2;"})
    migrator = Migrator(dsn, folder, listener=events.append)
    with pytest.raises(MigrationFailedError) as caught:
        await migrator.up()

    assert events[-1] == Failed("MigrationFailedError", str(caught.value), caught.value.failure)
    assert migrator.readiness == Readiness(Condition.FAILED, pending=("2",), failed=("1",))
    write({"001_a.sql": "SELECT 1;"})
    await migrator.up()
    assert migrator.readiness == Readiness(Condition.APPLIED, applied=2)


async def test_files_that_cannot_be_read_are_told_as_a_failure_too(dsn: str, write: Write, events: list[Event]) -> None:
    migrator = Migrator(dsn, write({"x.sql": ""}), listener=events.append)
    with pytest.raises(FilesError):
        await migrator.up()
    assert [type(event) for event in events] == [Failed]
    assert migrator.readiness.state is Condition.FAILED


async def test_a_waiter_is_ready_when_the_other_runner_is_done(dsn: str, write: Write, events: list[Event]) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})
    reader = Migrator(dsn, folder, listener=events.append)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.wait)

        async def looked() -> bool:
            return reader.readiness == Readiness(Condition.PENDING, pending=("1",))

        await until(looked)
        await Migrator(dsn, folder).up()
    assert reader.readiness == Readiness(Condition.APPLIED, applied=1)
    assert events[-1] == Done(())


async def test_a_waiter_follows_the_steps_of_the_other_runner(dsn: str, write: Write, events: list[Event]) -> None:
    reader = Migrator(dsn, write({"001_a.sql": "SELECT 1;", "002_b.sql": "SELECT 1/0;"}), listener=events.append)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.wait)

        async def told_for_whom() -> bool:
            return [event.holder for event in events if isinstance(event, Waiting)] == ["another runner to apply 1, 2"]

        async def failed() -> bool:
            return reader.readiness == Readiness(Condition.PENDING, applied=1, failed=("2",))

        await until(told_for_whom)
        with pytest.raises(MigrationFailedError):
            await Migrator(dsn, write({})).up()
        await until(failed)
        tasks.cancel_scope.cancel()


async def test_a_look_does_not_open_the_gate_in_the_middle_of_a_way_down(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();", "001_a.down.sql": PASS_GATE + "DROP TABLE a;"})
    migrator = Migrator(dsn, folder, lock_timeout=0)
    await migrator.up()
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(migrator.down)
        await closed.reached()
        await migrator.check()
        assert migrator.readiness == Readiness(Condition.RUNNING, running=("1",))
        await closed.open()
    assert migrator.readiness == Readiness(Condition.PENDING, pending=("1",))


async def test_a_look_and_a_rehearsal_tell_nothing(dsn: str, write: Write, events: list[Event]) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})
    migrator = Migrator(dsn, folder, listener=events.append)
    await migrator.up()
    before = migrator.readiness
    write({"002_b.sql": "SELECT 2;"})
    events.clear()

    await migrator.plan()
    await migrator.rehearse()
    await migrator.status()

    assert events == []
    assert migrator.readiness == before


async def test_a_listener_that_raises_changes_nothing(dsn: str, write: Write) -> None:
    def listener(event: Event) -> None:
        raise LookupError(type(event).__name__)

    assert len(await Migrator(dsn, write({"001_a.sql": "SELECT 1;"}), listener=listener).up()) == 1


@contextmanager
def structured() -> Iterator[io.StringIO]:
    """Log as JSON through structlog, as its own documentation sets it up for the standard library's loggers."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logger = logging.getLogger("pgratchet")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield out
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


async def test_structlog_shows_the_parts_of_each_event(dsn: str, write: Write) -> None:
    with structured() as out:
        await Migrator(dsn, write({"001_a.sql": "SELECT 1;"})).up()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["migration_event"] for line in lines] == ["Locked", "Started", "Finished", "Done"]
    assert lines[1] == {
        "event": "up 1 a",
        "level": "info",
        "migration_event": "Started",
        "migration_version": "1",
        "migration_name": "a",
        "migration_direction": "up",
        "migration_statements": 1,
    }
