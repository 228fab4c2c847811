from functools import partial

import anyio
import asyncpg
import pytest

from pgratchet import HistoryError, MigrationFailedError, Migrator, Verdict
from pgratchet.runs.turning import MOST_LOSSES
from tests.faults import refusing
from tests.support import (
    HEAD,
    PATIENCE,
    Write,
    ask,
    column,
    connect,
    connected,
    exists,
    failure_of,
    history,
    states,
    tell,
    without_tls,
)

pytestmark = pytest.mark.anyio


async def test_a_step_that_ends_its_session_each_time_fails(dsn: str, write: Write) -> None:
    deadly = {"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "SELECT pg_terminate_backend(pg_backend_pid());"}
    migrator = Migrator(dsn, write(deadly))

    error = await failure_of(migrator)

    assert error.failure.version == "2"
    assert [step.version for step in error.finished] == ["1"]
    write({"002_b.sql": "SELECT 2;"})
    await migrator.up()
    assert await states(dsn) == {"1": "applied", "2": "applied"}


@pytest.mark.parametrize(
    ("kind", "code"), [("sql", "57P05"), ("sql", "25P03"), ("sql", "57014"), ("statements", "57P01"), ("py", "XX000")]
)
async def test_the_words_of_a_server_that_ends_the_session_are_told_the_first_time(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, code: str, kind: str
) -> None:
    file = {
        "sql": {"001_a.sql": "CREATE TABLE a ();\nSELECT 'deadly';"},
        "statements": {"001_a.sql": f"{HEAD}SELECT 'deadly';"},
        "py": {"001_a.py": "async def up(connection):\n    await connection.execute(\"SELECT 'deadly'\")\n"},
    }[kind]
    folder = write(file)
    fatal = refusing.error("FATAL", code, M="not on this plan", D="five seconds are all", H="buy more")
    times = 0

    def answer(message: bytes) -> bytes | None:
        nonlocal times
        times += b"'deadly'" in message
        return fatal if b"'deadly'" in message else None

    async with refusing.between(without_tls(dsn), answer) as there:
        error = await failure_of(Migrator(there, folder))

    first = next(record.getMessage() for record in caplog.records if "lost" in record.getMessage())
    assert f"not on this plan DETAIL: five seconds are all HINT: buy more ({code})" in first
    failure = error.failure
    assert (failure.sqlstate, failure.detail, failure.hint) == (code, "five seconds are all", "buy more")
    assert times == MOST_LOSSES
    assert len(await Migrator(dsn, folder).up()) == 1


async def test_a_step_that_ends_its_session_each_time_loses_no_more_than_the_most(dsn: str, write: Write) -> None:
    await tell(dsn, "CREATE SEQUENCE tries")
    ends = "SELECT pg_terminate_backend(pg_backend_pid()) WHERE nextval('tries') > 0"

    error = await failure_of(Migrator(dsn, write({"001_a.sql": ends})))

    assert f"{MOST_LOSSES} times in a row" in error.failure.message
    assert await ask(dsn, "SELECT last_value FROM tries") == MOST_LOSSES
    await Migrator(dsn, write({"001_a.sql": "SELECT 1;"})).up()
    assert await states(dsn) == {"1": "applied"}


async def test_losses_of_one_step_do_not_count_against_the_next(dsn: str, write: Write) -> None:
    await tell(dsn, "CREATE SEQUENCE tries")
    ends = f"SELECT pg_terminate_backend(pg_backend_pid()) WHERE nextval('tries') % {MOST_LOSSES} <> 0"
    python = f'async def up(connection):\n    await connection.execute("{ends}")\n'
    migrator = Migrator(dsn, write({"001_a.sql": ends, "002_b.py": python}))

    with anyio.fail_after(60):
        steps = await migrator.up()

    assert [step.version for step in steps] == ["1", "2"]
    assert await ask(dsn, "SELECT last_value FROM tries") == 2 * MOST_LOSSES


async def test_a_step_that_was_committed_in_its_last_session_is_not_charged_with_the_loss(
    dsn: str, write: Write
) -> None:
    await Migrator(dsn, write({"001_a.sql": "CREATE SEQUENCE tries; CREATE SEQUENCE ends;"})).up()
    # The claim of 3, in the message of 2, ends the session once: the one after those that 2 has ended.
    await tell(
        dsn,
        "CREATE FUNCTION once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF nextval('ends') = 1 THEN "
        "PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER t BEFORE INSERT ON schema_migrations FOR EACH ROW WHEN (NEW.version = '3') "
        "EXECUTE FUNCTION once()",
    )
    ends = f"SELECT pg_terminate_backend(pg_backend_pid()) WHERE nextval('tries') < {MOST_LOSSES}"

    with anyio.fail_after(60):
        steps = await Migrator(dsn, write({"002_b.sql": ends, "003_c.sql": "CREATE TABLE c ();"})).up()

    assert [step.version for step in steps] == ["2", "3"]
    assert await ask(dsn, "SELECT last_value FROM tries") == MOST_LOSSES
    assert await ask(dsn, "SELECT last_value FROM ends") > 1


async def test_a_rehearsal_tries_a_step_that_ends_its_own_session_no_more_often(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a (); SELECT pg_terminate_backend(pg_backend_pid());"})
    with anyio.fail_after(30), pytest.raises(MigrationFailedError, match="in a row") as caught:
        await Migrator(dsn, folder).rehearse()
    assert caught.value.failure.version == "1"
    write({"001_a.sql": "CREATE TABLE a ();"})
    assert [step.version for step in await Migrator(dsn, folder).rehearse()] == ["1"]


async def test_a_step_that_loses_its_race_each_time_fails(dsn: str, write: Write) -> None:
    await tell(dsn, "SELECT lo_create(4242)")
    migrator = Migrator(dsn, write({"001_a.sql": "SELECT lo_create(4242);"}))

    error = await failure_of(migrator)

    assert error.failure.sqlstate == "23505"
    await tell(dsn, "SELECT lo_unlink(4242)")
    await migrator.up()
    assert await states(dsn) == {"1": "applied"}


async def test_a_way_down_that_failed_before_its_first_count_can_be_tried_again(dsn: str, write: Write) -> None:
    down = HEAD + "DROP TABLE missing;"
    migrator = Migrator(dsn, write({"001_a.sql": "CREATE TABLE a ();", "001_a.down.sql": down}))
    await migrator.up()
    with pytest.raises(MigrationFailedError):
        await migrator.down()

    write({"001_a.down.sql": HEAD + "DROP TABLE a;"})
    finished = await migrator.down()

    assert [step.version for step in finished] == ["1"]
    assert await history(dsn) == {}


async def test_a_bare_statement_that_is_done_and_not_counted_is_not_run_again(dsn: str, write: Write) -> None:
    await tell(
        dsn,
        "CREATE TABLE ledger (n int); CREATE PROCEDURE p() LANGUAGE plpgsql AS "
        "$$BEGIN INSERT INTO ledger VALUES (1); COMMIT; PERFORM pg_advisory_unlock_all(); END$$",
    )
    migrator = Migrator(dsn, write({"001_a.sql": HEAD + "CALL p();"}))

    await failure_of(migrator)
    with pytest.raises(HistoryError, match="nobody knows whether it took effect"):
        await migrator.up()

    await migrator.repair(1, Verdict.SKIP, "the ledger has it")
    await migrator.up()
    assert await column(dsn, "SELECT n FROM ledger") == [1]
    assert await states(dsn) == {"1": "applied"}


async def test_a_factory_that_fails_for_the_session_that_only_watches_disturbs_nobody(dsn: str, write: Write) -> None:
    calls = 0

    async def connect() -> "asyncpg.Connection[asyncpg.Record]":
        nonlocal calls
        calls += 1
        if calls > 1:
            raise RuntimeError("no more tokens")
        return await asyncpg.connect(dsn, statement_cache_size=0)

    files = {"001_a.sql": "SELECT pg_sleep(0.4);", "002_b.sql": "CREATE TABLE b ();"}
    with anyio.fail_after(PATIENCE):
        await Migrator(connect=connect, migrations=write(files), lock_timeout=0.1).up()

    assert calls > 1
    assert await exists(dsn, "b")


async def test_a_factory_s_sessions_open_each_transaction_as_the_file_says(dsn: str, write: Write) -> None:
    serial = "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE;\nCREATE TABLE level AS SELECT current_setting("
    files = {"001_a.sql": "SELECT 1;", "002_b.sql": serial + "'transaction_isolation') AS name;"}
    await Migrator(connect=partial(connect, dsn), migrations=write(files)).up()

    assert await ask(dsn, "SELECT name FROM level") == "serializable"


async def test_work_takes_nothing_of_the_budget_for_waiting(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    await tell(dsn, "CREATE TABLE busy (n int)")
    folder = write({"001_a.sql": "SELECT pg_sleep(0.8);", "002_b.sql": "ALTER TABLE busy ADD m int;"})
    migrator = Migrator(dsn, folder, budget=0.7, lock_timeout=0.05)
    async with connected(dsn) as busy:
        await busy.execute("BEGIN; LOCK TABLE busy IN ACCESS SHARE MODE")
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(migrator.up)
                while not any("55P03" in message for message in caplog.messages):  # noqa: ASYNC110 - no event
                    await anyio.sleep(0.01)
                await busy.execute("ROLLBACK")

    assert await states(dsn) == {"1": "applied", "2": "applied"}


async def test_nothing_is_waited_for_with_an_empty_budget_but_the_connection(dsn: str, write: Write) -> None:
    await Migrator(dsn, write({"001_a.sql": "CREATE TABLE a ();"}), budget=0).up()

    assert await states(dsn) == {"1": "applied"}
