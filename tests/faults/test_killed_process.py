import time

import anyio
import pytest

from pgratchet import HistoryError, Migrator, Verdict
from pgratchet.postgres.ledger.lock import HOLDERS
from tests.processes import replicas
from tests.support import (
    GATE,
    LOCK_KEY,
    PASS_GATE,
    Write,
    ask,
    column,
    connected,
    deserted,
    exists,
    gate,
    history,
    states,
    tell,
    until,
)

pytestmark = pytest.mark.anyio

SLEEP = "SELECT pg_sleep(600);"
ASLEEP = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"


async def asleep(dsn: str) -> int:
    async def sleeps() -> int:
        return int(await ask(dsn, ASLEEP) or 0)

    return await until(sleeps)


SLOW = "CREATE OR REPLACE FUNCTION slow(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT n FROM pg_sleep({})'"
HELD = f"SELECT count(*) FROM {HOLDERS}"


@pytest.mark.parametrize("signal", ["kill", "terminate"])
@pytest.mark.parametrize(
    "files",
    [
        {"001_a.sql": "CREATE TABLE a (); " + SLEEP},
        {"001_a.sql": "SELECT 1;", "002_b.sql": "CREATE TABLE a (); " + SLEEP},
        {"001_a.py": f"async def up(c):\n    await c.execute('CREATE TABLE a (); {SLEEP}')\n"},
        {"001_a.sql": "-- pgratchet: no-transaction\nCREATE TABLE a (); " + SLEEP},
        {"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "CREATE INDEX CONCURRENTLY i ON t (slow(n));"},
    ],
    ids=["alone", "in company", "Python", "statement by statement", "CREATE INDEX CONCURRENTLY"],
)
async def test_a_process_killed_in_mid_statement_frees_the_lock_within_two_seconds(
    dsn: str, write: Write, files: dict[str, str], signal: str
) -> None:
    await tell(dsn, "CREATE TABLE t AS SELECT 1 AS n;" + SLOW.format(600))
    folder = write(files)
    async with replicas(1, dsn, folder) as (replica,), connected(dsn) as observer:
        await replica.go()
        await asleep(dsn)
        assert await observer.fetchval(HELD, LOCK_KEY)
        getattr(replica.process, signal)()
        killed = time.monotonic()
        while await observer.fetchval(HELD, LOCK_KEY):
            assert time.monotonic() - killed < 2.0
            await anyio.sleep(0.02)
    await tell(dsn, SLOW.format(0))
    write({name: text.replace("600", "0") for name, text in files.items()})
    with anyio.fail_after(10):
        finished = await Migrator(dsn, folder).up()
    assert [step.version for step in finished] == [str(int(name[:3])) for name in files][-len(finished) :]
    assert await exists(dsn, "a")
    assert await column(dsn, "SELECT indisvalid FROM pg_index WHERE NOT indisvalid") == []
    assert set((await states(dsn)).values()) == {"applied"}


async def test_a_process_killed_between_two_steps_loses_nothing_that_was_reported(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();", "002_b.py": "async def up(c): pass\n", "003_c.sql": PASS_GATE})
    async with gate(dsn) as closed, replicas(1, dsn, folder) as (replica,):
        await replica.go()
        await closed.reached()
        replica.process.kill()
        await deserted(dsn, 2)
    assert await states(dsn) == {"1": "applied", "2": "applied"}
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["3"]


async def test_the_next_run_stops_with_the_facts_where_a_killed_process_has_left_a_statement_in_doubt(
    dsn: str, write: Write
) -> None:
    """Where the statement that it was killed in is one that nobody can judge; all others are settled by the run."""
    await tell(dsn, "CREATE TABLE t (n int)")
    procedure = f"BEGIN INSERT INTO t VALUES (2); COMMIT; PERFORM pg_advisory_xact_lock_shared({GATE}); END"
    await tell(dsn, f"CREATE PROCEDURE work() LANGUAGE plpgsql AS $$ {procedure} $$")
    sql = "-- pgratchet: no-transaction\nINSERT INTO t VALUES (1);\nCALL work();\nINSERT INTO t VALUES (3);"
    folder = write({"001_a.sql": sql, "002_b.sql": "CREATE TABLE b ();"})
    async with gate(dsn) as closed, replicas(1, dsn, folder) as (replica,):
        await replica.go()
        pid = await closed.reached()
        replica.process.kill()
        await deserted(dsn, 2)
    row = (await history(dsn))["1"]
    assert (row["state"], row["backend_pid"], row["statements_done"]) == ("running", pid, 1)
    for verb in (Migrator.up, Migrator.up):
        with pytest.raises(HistoryError) as caught:
            await verb(Migrator(dsn, folder))
        assert caught.value.versions == ("1",)
        facts = ("001_a.sql:3", "statement 2 of 3", "CALL work()", str(pid), row["applied_by"], "pgratchet repair 1")
        assert [fact for fact in facts if fact not in str(caught.value)] == []
    assert row["token"] == (await history(dsn))["1"]["token"]
    assert await column(dsn, "SELECT n FROM t") == [1, 2]
    assert not await exists(dsn, "b")

    await tell(
        dsn, "DELETE FROM t WHERE n = 2; CREATE OR REPLACE PROCEDURE work() LANGUAGE sql AS 'INSERT INTO t VALUES (2)'"
    )
    await Migrator(dsn, folder).repair(1, Verdict.AGAIN, "deleted what it had done")
    await Migrator(dsn, folder).up()
    assert await column(dsn, "SELECT n FROM t") == [1, 2, 3]


async def test_a_waiter_does_not_wait_for_a_killed_process_whose_session_a_pooler_has_handed_to_it(
    dsn: str, write: Write
) -> None:
    await tell(dsn, "CREATE TABLE t (n int)")
    folder = write({"001_a.sql": f"-- pgratchet: no-transaction\nINSERT INTO t VALUES (1);{PASS_GATE}"})
    async with gate(dsn) as closed, replicas(1, dsn, folder) as (replica,):
        await replica.go()
        await closed.reached()
        replica.process.kill()
        await deserted(dsn, 2)
    async with connected(dsn, application_name="pgratchet") as waiter, anyio.create_task_group() as tasks:
        await waiter.execute(
            "UPDATE schema_migrations r SET backend_pid = a.pid, backend_start = a.backend_start "
            "FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()"
        )

        async def look_again_and_again() -> None:
            while True:
                await waiter.execute("SELECT 'is the lock free?'")
                await anyio.sleep(0.1)

        tasks.start_soon(look_again_and_again)
        await Migrator(dsn, folder, budget=4).up()
        tasks.cancel_scope.cancel()
    assert await column(dsn, "SELECT n FROM t") == [1]


async def test_one_of_the_waiters_goes_on_when_the_process_at_work_is_killed(dsn: str, write: Write) -> None:
    await tell(dsn, "CREATE TABLE ledger (n int)")
    sql = "INSERT INTO ledger VALUES (1);" + PASS_GATE
    folder = write({"001_a.sql": sql})
    async with gate(dsn) as closed, replicas(1, dsn, folder) as (replica,), anyio.create_task_group() as tasks:
        await replica.go()
        first = await closed.reached()
        for _ in range(2):
            tasks.start_soon(Migrator(dsn, folder, lock_timeout=0).up)
        replica.process.kill()
        assert await closed.reached_by_another(first)
        await closed.open()
    assert await column(dsn, "SELECT n FROM ledger") == [1]
    assert await states(dsn) == {"1": "applied"}
