import logging
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import pytest

from pgratchet import BudgetExceededError, MigrationFailedError, Migrator, ServerError
from pgratchet.core.model import Lock
from pgratchet.postgres.ledger.lock import RunnerLock
from pgratchet.postgres.link.sql import Table
from tests.support import (
    HISTORY,
    LOCK_KEY,
    PASS_GATE,
    Write,
    ask,
    column,
    connected,
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

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

COUNTED = "SELECT nextval('public.runs');"
HELD = """
SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) JOIN pg_database d ON d.oid = l.database
WHERE d.datname = current_database() AND locktype = 'advisory' AND granted
AND (classid::int8 << 32 | objid::int8) = $1
"""


async def test_only_one_session_gets_the_lock_and_its_end_frees_it(dsn: str) -> None:
    mine = RunnerLock(Table.parse(HISTORY), Lock.SESSION)
    async with connected(dsn) as one, connected(dsn) as two:
        assert await mine.try_acquire(one)
        with anyio.fail_after(5):
            assert not await mine.try_acquire(two)
        await one.close()
        assert await until(partial(mine.try_acquire, two))


async def test_the_session_that_works_holds_the_lock_for_as_long_as_it_works(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": PASS_GATE, "002_b.py": "async def up(c): pass\n"}), lock_timeout=0)
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(migrator.up)
        worker = await closed.reached()
        (name,) = await column(dsn, HELD, LOCK_KEY)
        assert "up 1 a" in name
        assert await ask(dsn, "SELECT pid FROM pg_stat_activity WHERE application_name = $1", name) == worker
        assert len(await sessions(dsn)) == 1
        await closed.open()
    assert await column(dsn, HELD, LOCK_KEY) == []


async def test_a_run_with_nothing_pending_needs_no_lock(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "SELECT 1;"}))
    await migrator.up()
    async with runner_lock(dsn):
        with anyio.fail_after(5):
            assert await migrator.up() == ()
            await migrator.check()
            await migrator.wait()
            await migrator.status()
            await migrator.plan()


async def test_a_run_without_the_lock_makes_nothing_at_all(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "CREATE TABLE a ();"}), table="ours.history")
    async with runner_lock(dsn, "ours.history") as holder, anyio.create_task_group() as tasks:
        tasks.start_soon(migrator.up)
        await waiters(dsn)
        assert not await exists(dsn, "ours.history")
        assert not await ask(dsn, "SELECT count(*) FROM pg_namespace WHERE nspname = 'ours'")
        assert not await exists(dsn, "a")
        holder.terminate()
    assert await states(dsn, "ours.history") == {"1": "applied"}


async def test_a_lock_that_the_server_does_not_know_of_is_refused(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a pooler in transaction mode, or where advisory locks are a stub."""

    async def yes(*_: object) -> bool:
        return True

    monkeypatch.setattr(RunnerLock, "try_acquire", yes)
    with pytest.raises(ServerError, match="does not hold the lock"):
        await Migrator(dsn, write({"001_a.sql": "CREATE TABLE a ();"})).up()
    assert not await exists(dsn, "a")
    assert not await exists(dsn, HISTORY)


@pytest.mark.parametrize("other", ["public.other_migrations", "tenant.schema_migrations"])
async def test_two_histories_do_not_queue_behind_each_other(dsn: str, write: Write, other: str) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})
    async with runner_lock(dsn):
        with anyio.fail_after(10):
            await Migrator(dsn, folder, table=other).up()
    assert await states(dsn, other) == {"1": "applied"}


class TestAWaiter:
    async def test_a_waiter_goes_on_without_the_lock_when_all_is_applied_meanwhile(
        self, dsn: str, write: Write
    ) -> None:
        folder = write({"001_a.sql": "SELECT 1;", "002_b.sql": "CREATE TABLE b ();", "003_c.sql": "CREATE TABLE c ();"})
        migrator = Migrator(dsn, folder)
        await migrator.up(to=1)
        checksums = {entry.version: entry.migration.checksum for entry in await migrator.status() if entry.migration}
        row = (
            "INSERT INTO schema_migrations (version, name, kind, checksum, state, finished_at) "
            "VALUES ('{0}', 'x', 'sql', '{1}', 'applied', now())"
        )
        with anyio.fail_after(15):
            async with runner_lock(dsn), anyio.create_task_group() as tasks:
                finished: list[object] = []

                async def wait() -> None:
                    finished.append(await migrator.up())

                tasks.start_soon(wait)
                await waiters(dsn)
                await tell(dsn, row.format("2", checksums["2"]))
                await waiters(dsn)
                await tell(dsn, row.format("3", checksums["3"]))
                await until(finished_one(finished))
        assert finished == [()]
        assert not await exists(dsn, "c")

    async def test_a_waiter_compares_again_and_applies_only_the_rest(self, dsn: str, write: Write) -> None:
        await tell(dsn, "CREATE SEQUENCE runs")
        folder = write({"001_a.sql": COUNTED + PASS_GATE})
        async with gate(dsn) as closed, anyio.create_task_group() as tasks:
            tasks.start_soon(Migrator(dsn, folder, lock_timeout=0).up)
            await closed.reached()
            write({"002_b.sql": "CREATE TABLE b ();"})
            finished: list[object] = []

            async def follow() -> None:
                finished.append([step.version for step in await Migrator(dsn, folder).up()])

            tasks.start_soon(follow)
            await waiters(dsn)
            await closed.open()
        assert finished == [["2"]]
        assert await ask(dsn, "SELECT last_value FROM runs") == 1

    async def test_a_waiter_returns_the_failure_of_the_runner_that_it_waited_for(self, dsn: str, write: Write) -> None:
        await tell(dsn, "CREATE SEQUENCE runs")
        folder = write({"001_a.sql": COUNTED + PASS_GATE + "SELECT 1/0;", "002_b.sql": "CREATE TABLE b ();"})
        migrators = [Migrator(dsn, folder, lock_timeout=0) for _ in range(3)]
        errors: list[MigrationFailedError] = []

        async def fail(migrator: Migrator) -> None:
            errors.append(await failure_of(migrator))

        async with gate(dsn) as closed, anyio.create_task_group() as tasks:
            for migrator in migrators:
                tasks.start_soon(fail, migrator)
            await closed.reached()
            await waiters(dsn, 2)
            await closed.open()
        assert [error.failure.version for error in errors] == ["1", "1", "1"]
        assert all("division by zero" in error.failure.message for error in errors)
        assert await ask(dsn, "SELECT last_value FROM runs") == 1

        write({"001_a.sql": COUNTED})
        assert [step.version for step in await migrators[1].up()] == ["1", "2"]
        assert await ask(dsn, "SELECT last_value FROM runs") == 2

    async def test_a_waiter_does_not_take_an_old_failure_for_a_new_one(self, dsn: str, write: Write) -> None:
        folder = write({"001_a.sql": "INSERT INTO missing VALUES (1);"})
        await failure_of(Migrator(dsn, folder))
        await tell(dsn, "CREATE TABLE missing (n int)")
        async with runner_lock(dsn) as holder, anyio.create_task_group() as tasks:
            tasks.start_soon(Migrator(dsn, folder).up)
            await waiters(dsn)
            holder.terminate()
        assert await states(dsn) == {"1": "applied"}

    async def test_a_wait_runs_nothing_itself(self, dsn: str, write: Write) -> None:
        folder = write({"001_a.sql": "SELECT 1;", "002_b.sql": PASS_GATE})
        async with gate(dsn) as closed, anyio.create_task_group() as tasks:
            tasks.start_soon(Migrator(dsn, folder).wait)
            await waiters(dsn)
            assert not await exists(dsn, HISTORY)
            tasks.start_soon(Migrator(dsn, folder, lock_timeout=0).up)
            await closed.reached()
            assert len(await sessions(dsn)) == 2
            await closed.open()

    @pytest.mark.parametrize("verb", [Migrator.up, Migrator.down, Migrator.redo, Migrator.rehearse])
    async def test_a_waiter_gives_up_when_its_budget_is_used_up(
        self, dsn: str, write: Write, verb: Callable[[Migrator], Awaitable[object]]
    ) -> None:
        migrator = Migrator(dsn, write({"001_a.sql": "SELECT 1;", "001_a.down.sql": ""}), budget=0.5)
        async with runner_lock(dsn):
            with anyio.fail_after(5), pytest.raises(BudgetExceededError, match="somebody else"):
                await verb(migrator)
        await migrator.up()

    async def test_a_wait_gives_up_when_its_budget_is_used_up(self, dsn: str, write: Write) -> None:
        with anyio.fail_after(5), pytest.raises(BudgetExceededError):
            await Migrator(dsn, write({"001_a.sql": "SELECT 1;"}), budget=0.3).wait()

    async def test_a_waiter_tells_whom_it_waits_for(
        self, dsn: str, write: Write, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = write({"007_long.sql": PASS_GATE})

        async def told() -> str:
            messages = (record.getMessage() for record in caplog.records)
            return next((message for message in messages if "waiting since" in message), "")

        with caplog.at_level(logging.INFO, "pgratchet"):
            async with gate(dsn) as closed, anyio.create_task_group() as tasks:
                tasks.start_soon(Migrator(dsn, folder, lock_timeout=0).up)
                pid = await closed.reached()
                tasks.start_soon(Migrator(dsn, folder).up)
                message = await until(told)
                await closed.open()
        assert all(part in message for part in ("up 7 long", str(pid), "since"))

    async def test_a_waiter_blocks_nobody_and_keeps_no_snapshot(self, dsn: str, write: Write) -> None:
        folder = write({"001_a.sql": "SELECT 1;"})
        async with runner_lock(dsn) as holder, anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(Migrator(dsn, folder).up)
            await waiters(dsn, 3)
            for _ in range(30):
                for row in await sessions(dsn):
                    assert row["wait_event_type"] != "Lock"
                    assert "transaction" not in row["state"]
                    assert row["state"] == "active" or (row["backend_xmin"], row["backend_xid"]) == (None, None)
                await anyio.sleep(0.02)
            holder.terminate()

    async def test_a_waiter_does_not_block_an_index_built_concurrently(self, dsn: str, write: Write) -> None:
        files = {
            "001_t.sql": "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n;",
            "002_i.sql": "CREATE INDEX CONCURRENTLY i ON t (n);",
            "003_gate.sql": PASS_GATE,
            "004_j.sql": "CREATE INDEX CONCURRENTLY j ON t (n);\nDROP INDEX CONCURRENTLY i;",
            "005_locks.sql": "LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(1.5);",
            "006_k.sql": "REINDEX INDEX CONCURRENTLY j;",
        }
        folder = write(files)
        with anyio.fail_after(30):
            async with gate(dsn) as closed, anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(Migrator(dsn, folder, lock_timeout=0).up)
                await closed.reached()
                await waiters(dsn, 3)
                await closed.open()
        assert set((await states(dsn)).values()) == {"applied"}
        valid = "SELECT bool_and(indisvalid) FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE c.relname = 't'"
        assert await ask(dsn, valid)


def finished_one(finished: list[object]) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return bool(finished)

    return condition
