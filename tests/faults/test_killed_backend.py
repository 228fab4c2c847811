from functools import partial
from pathlib import Path
from typing import Literal

import anyio
import pytest

from pgratchet import HistoryError, Migrator, Verdict, embedded
from pgratchet.runs.turning import MOST_LOSSES
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
    failure_of,
    gate,
    runner_lock,
    sessions,
    states,
    tell,
    until,
    waiters,
)

pytestmark = pytest.mark.anyio

PYTHON = f'async def up(c):\n    await c.execute("CREATE TABLE a (); {PASS_GATE.strip()}")\n'


def around(name: str, text: str) -> dict[str, str]:
    return {"001_before.sql": "CREATE TABLE before ();", name: text, "003_after.sql": "CREATE TABLE after ();"}


@pytest.mark.parametrize(
    ("name", "text"),
    [("002_a.sql", "CREATE TABLE a ();" + PASS_GATE), ("002_a.py", PYTHON)],
    ids=["SQL", "Python"],
)
@pytest.mark.parametrize("times", [1, 3])
async def test_a_run_replaces_the_session_that_was_killed_in_mid_statement_and_goes_on(
    dsn: str, write: Write, name: str, text: str, *, times: int
) -> None:
    folder = write(around(name, text))
    finished: list[str] = []

    async def run() -> None:
        finished.extend(step.version for step in await Migrator(dsn, folder, lock_timeout=0).up())

    with anyio.fail_after(20):
        async with gate(dsn) as closed, anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            pid = await closed.reached()
            for _ in range(times):
                await tell(dsn, f"SELECT pg_terminate_backend({pid})")
                pid = await closed.reached_by_another(pid)
            await closed.open()
    assert finished == ["1", "2", "3"]
    assert set((await states(dsn)).values()) == {"applied"}
    assert [await exists(dsn, table) for table in ("before", "a", "after")] == [True] * 3
    await deserted(dsn, 2)


async def test_a_waiter_replaces_its_killed_session(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();"})
    with anyio.fail_after(20):
        async with runner_lock(dsn) as holder, anyio.create_task_group() as tasks:
            tasks.start_soon(Migrator(dsn, folder).up)
            (first,) = await waiters(dsn)
            await tell(dsn, f"SELECT pg_terminate_backend({first['pid']})")
            while {row["pid"] for row in await waiters(dsn)} == {first["pid"]}:  # noqa: ASYNC110 - of the server
                await anyio.sleep(0.02)
            holder.terminate()
    assert await states(dsn) == {"1": "applied"}


async def test_a_waiters_killed_session_does_not_count_against_the_step_that_an_earlier_one_has_left_unanswered(
    dsn: str, write: Write
) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();" + PASS_GATE})
    async with gate(dsn) as closed, connected(dsn) as rival, anyio.create_task_group() as tasks:
        tasks.start_soon(Migrator(dsn, folder, lock_timeout=0).up)
        pid = await closed.reached()
        tasks.start_soon(rival.execute, f"SELECT pg_advisory_lock({LOCK_KEY})")
        await until(partial(ask, dsn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
        for _ in range(MOST_LOSSES + 1):
            await tell(dsn, f"SELECT pg_terminate_backend({pid})")
            (waiter,) = await waiters(dsn)
            pid = waiter["pid"]
        rival.terminate()
        await closed.open()
    assert await states(dsn) == {"1": "applied"}


async def test_a_statement_that_an_administrator_cancels_fails_like_any_other(dsn: str, write: Write) -> None:
    folder = write(around("002_a.sql", "CREATE TABLE a ();" + PASS_GATE))
    failed: list[Exception] = []

    async def run() -> None:
        try:
            await Migrator(dsn, folder, lock_timeout=0).up()
        except Exception as error:  # noqa: BLE001 - looked at below
            failed.append(error)

    with anyio.fail_after(20):
        async with gate(dsn) as closed:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await tell(dsn, f"SELECT pg_cancel_backend({await closed.reached()})")
            await closed.open()
    assert "57014" in str(failed[0])
    assert await states(dsn) == {"1": "applied", "2": "failed"}
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["2", "3"]


async def test_a_procedure_that_is_cancelled_after_its_commit_is_left_to_a_person(dsn: str, write: Write) -> None:
    body = f"BEGIN INSERT INTO ledger VALUES (2); COMMIT; PERFORM pg_advisory_xact_lock_shared({GATE}); END"
    await tell(dsn, f"CREATE TABLE ledger (n int); CREATE PROCEDURE work() LANGUAGE plpgsql AS $${body}$$")
    sql = "-- pgratchet: no-transaction\nINSERT INTO ledger VALUES (1); CALL work(); INSERT INTO ledger VALUES (3);"
    migrator = Migrator(dsn, write({"001_a.sql": sql}))
    with anyio.fail_after(20):
        async with gate(dsn) as closed, anyio.create_task_group() as tasks:

            async def run() -> None:
                assert (await failure_of(migrator)).failure.sqlstate == "57014"

            tasks.start_soon(run)
            await tell(dsn, f"SELECT pg_cancel_backend({await closed.reached()})")
        with pytest.raises(HistoryError, match="statement 2 of 3"):
            await migrator.up()
        assert await column(dsn, "SELECT n FROM ledger") == [1, 2]
        await migrator.repair(1, Verdict.SKIP, "the ledger has it")
        await migrator.up()
    assert await column(dsn, "SELECT n FROM ledger ORDER BY n") == [1, 2, 3]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_run_survives_a_server_that_restarts_in_the_middle(
    memory: Path | None, write: Write, mode: Literal["fast", "immediate"]
) -> None:
    folder = write(around("002_a.sql", "CREATE TABLE a (); SELECT pg_sleep(0.5);"))
    with embedded.server(tcp=True, folder=memory) as own:
        finished: list[str] = []

        async def run() -> None:
            finished.extend(step.version for step in await Migrator(own.dsn, folder).up())

        with anyio.fail_after(40):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                while not [row for row in await sessions(own.dsn) if row["wait_event"] == "PgSleep"]:  # noqa: ASYNC110 - no event
                    await anyio.sleep(0.02)
                await anyio.to_thread.run_sync(own.restart, mode)
        assert finished == ["1", "2", "3"]
        assert set((await states(own.dsn)).values()) == {"applied"}
        assert [await exists(own.dsn, table) for table in ("before", "a", "after")] == [True] * 3


async def test_a_commit_whose_answer_is_lost_is_looked_up(dsn: str, write: Write) -> None:
    """The answer to a COMMIT is lost: only the history knows, and nothing is guessed or run twice."""
    await tell(dsn, "CREATE TABLE ledger (n int)")
    # The session ends itself once the transaction of the step is committed, before anything is answered.
    await tell(
        dsn,
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
        "PERFORM pg_terminate_backend(pg_backend_pid()) WHERE NEW.version = '2'; RETURN NULL; END$$",
    )
    folder = write({"001_a.sql": "SELECT 1;", "002_b.sql": "INSERT INTO ledger VALUES (2);"})
    await Migrator(dsn, folder).up(to=1)
    await tell(
        dsn,
        "CREATE CONSTRAINT TRIGGER die AFTER UPDATE ON schema_migrations DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW WHEN (NEW.state = 'applied') EXECUTE FUNCTION die()",
    )
    with anyio.fail_after(20):
        with anyio.move_on_after(1.0):
            await Migrator(dsn, folder).up()
        await tell(dsn, "DROP TRIGGER die ON schema_migrations")
        await Migrator(dsn, folder).up()
    assert await column(dsn, "SELECT n FROM ledger") == [2]
    assert await ask(dsn, "SELECT count(*) FROM schema_migrations WHERE state = 'applied'") == 2
