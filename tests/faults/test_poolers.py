"""Through a pooler: every migration once, and nothing of ours left for its other clients."""

from collections import Counter

import anyio
import asyncpg
import pytest

from pgratchet import HistoryError, Migrator, ServerError
from tests.poolers import Mode, Pooler, pgbouncer
from tests.processes import replicas, results
from tests.support import (
    HISTORY,
    LOCK_KEY,
    PASS_GATE,
    Write,
    a_role,
    as_role,
    ask,
    column,
    connected,
    exists,
    failure_of,
    gate,
    states,
    tell,
    until,
)

pytestmark = pytest.mark.anyio

COUNT = 6
MODES: list[tuple[Mode, int]] = [("session", 20), ("transaction", 5), ("transaction", 1)]
every_mode = pytest.mark.parametrize(("mode", "size"), MODES, ids=str)

LEAKY = (
    "SET lock_timeout = '77ms'; CREATE TEMP TABLE leak (); LISTEN leak; PREPARE leak AS SELECT 1; "
    "SELECT pg_advisory_lock(4712); DECLARE leak CURSOR WITH HOLD FOR SELECT 1; SET search_path = pg_catalog; "
    "SET SESSION AUTHORIZATION pg_monitor; SET ROLE pg_monitor;"
)
LEAKY_PYTHON = f"""
async def up(connection):
    await connection.execute("INSERT INTO ledger VALUES (2)")
    await connection.execute("{LEAKY}")
"""
TRACES = """
SELECT pg_backend_pid() AS pid, current_setting('lock_timeout') AS lock_timeout,
       current_setting('client_connection_check_interval') AS checks,
       current_setting('search_path') AS search_path, current_setting('statement_timeout') AS statement_timeout,
       session_user = current_user AND current_user NOT LIKE 'pg_%' AS own_role,
       (SELECT count(*) FROM pg_class WHERE relpersistence = 't' AND relname = 'leak') AS temporary,
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks,
       (SELECT count(*) FROM pg_listening_channels()) AS channels,
       (SELECT count(*) FROM pg_prepared_statements WHERE name = 'leak') AS prepared,
       (SELECT count(*) FROM pg_cursors WHERE name = 'leak') AS cursors
"""
CLEAN = {
    "lock_timeout": "0",
    "checks": "0",
    "search_path": '"$user", public',
    "statement_timeout": "0",
    "own_role": True,
    "temporary": 0,
    "locks": 0,
    "channels": 0,
    "prepared": 0,
    "cursors": 0,
}

FILES = {
    "001_ledger.sql": "CREATE TABLE ledger (n int); INSERT INTO ledger VALUES (1);" + LEAKY,
    "002_b.py": LEAKY_PYTHON,
    "003_c.sql": "INSERT INTO ledger VALUES (3); SELECT pg_sleep(0.05);" + LEAKY,
    "004_d.sql": "INSERT INTO ledger VALUES (4);",
}
INDEX = {"005_e.sql": "CREATE INDEX CONCURRENTLY i ON ledger (n);"}


async def clean(between: Pooler, most: int) -> None:
    """Return if what strangers get from the pooler has no trace of ours, whichever server process they get."""
    strangers = [await asyncpg.connect(between.dsn, statement_cache_size=0) for _ in range(most)]
    try:
        for stranger in strangers:
            await stranger.execute("BEGIN")
        for stranger in strangers:
            found = dict(await stranger.fetchrow(TRACES) or {})
            assert found.pop("pid")
            assert found == CLEAN
    finally:
        for stranger in strangers:
            stranger.terminate()


@every_mode
async def test_a_herd_applies_each_migration_once_and_leaves_no_trace(
    dsn: str, write: Write, mode: Mode, size: int
) -> None:
    folder = write(FILES)
    async with pgbouncer(dsn, mode, size) as between:
        async with replicas(COUNT, between.dsn, folder) as racing:
            outcome = await results(racing)
        assert [code for code, _ in outcome] == [0] * COUNT
        done = Counter(version for _, said in outcome for version in said["finished"])
        assert done == dict.fromkeys("1234", 1)
        await clean(between, min(size, 5))
    assert await column(dsn, "SELECT n FROM ledger ORDER BY n") == [1, 2, 3, 4]
    assert set((await states(dsn)).values()) == {"applied"}
    assert await column(dsn, "SELECT objid FROM pg_locks WHERE locktype = 'advisory'") == []


async def test_runners_with_and_without_it_keep_each_other_out(dsn: str, write: Write) -> None:
    folder = write(FILES)
    async with (
        pgbouncer(dsn, "transaction", 5) as between,
        replicas(3, between.dsn, folder) as pooled,
        replicas(3, dsn, folder) as direct,
    ):
        outcome = await results([*pooled, *direct])
        await clean(between, 5)
    assert [code for code, _ in outcome] == [0] * 6
    assert await column(dsn, "SELECT n FROM ledger ORDER BY n") == [1, 2, 3, 4]


@every_mode
async def test_a_migration_that_fails_leaves_no_trace_either(dsn: str, write: Write, mode: Mode, size: int) -> None:
    folder = write({"001_a.sql": LEAKY + "SELECT 1/0;"})
    async with pgbouncer(dsn, mode, size) as between:
        failed = await failure_of(Migrator(between.dsn, folder))
        assert failed.failure.sqlstate == "22012"
        assert await states(dsn) == {"1": "failed"}
        await clean(between, min(size, 3))
        write({"001_a.sql": "CREATE TABLE a ();"})
        assert [step.version for step in await Migrator(between.dsn, folder).up()] == ["1"]


async def test_a_setting_that_the_pooler_lets_through_at_start_up_is_not_left_behind(dsn: str, write: Write) -> None:
    folder = write(FILES)
    ignored = "extra_float_digits,lock_timeout,statement_timeout,idle_in_transaction_session_timeout"
    async with pgbouncer(dsn, "transaction", 2, ignore_startup_parameters=ignored) as between:
        assert len(await Migrator(between.dsn, folder).up()) == 4
        await clean(between, 2)


async def test_what_runs_outside_a_transaction_is_refused_before_anything_ran(dsn: str, write: Write) -> None:
    folder = write(FILES | INDEX)
    async with pgbouncer(dsn, "transaction", 2) as between:
        with pytest.raises(ServerError, match=r"005_e\.sql.*direct_dsn"):
            await Migrator(between.dsn, folder).up()
        assert not await exists(dsn, "ledger")

        assert len(await Migrator(between.dsn, folder, direct_dsn=dsn).up()) == 5
        assert await ask(dsn, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass")
        await clean(between, 2)


async def test_a_pool_of_sessions_that_is_said_to_be_one_runs_everything(dsn: str, write: Write) -> None:
    folder = write(FILES | INDEX)
    async with pgbouncer(dsn, "session", 20) as between:
        async with replicas(COUNT, between.dsn, folder, lock="session") as racing:
            outcome = await results(racing)
        assert [code for code, _ in outcome] == [0] * COUNT
        assert await column(dsn, "SELECT n FROM ledger ORDER BY n") == [1, 2, 3, 4]
        assert await ask(dsn, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass")
        await until(lambda: unlocked(dsn))
        await clean(between, 5)


POLLS = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%try_advisory_xact_lock%' AND pid <> pg_backend_pid()"


async def unlocked(dsn: str) -> bool:
    return not await column(dsn, "SELECT objid FROM pg_locks WHERE locktype = 'advisory'")


async def test_a_pool_of_statements_is_refused_with_the_way_out_and_serves_those_who_only_look(
    dsn: str, write: Write
) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();"})
    async with pgbouncer(dsn, "statement", 2) as between:
        with pytest.raises(ServerError, match="direct_dsn"):
            await Migrator(between.dsn, folder).up()
        assert not await exists(dsn, HISTORY)
        migrator = Migrator(between.dsn, folder, direct_dsn=dsn)
        assert [step.version for step in await migrator.up()] == ["1"]
        await migrator.check()
        await migrator.wait()
        assert [entry.state for entry in await migrator.status()] == ["applied"]


@every_mode
async def test_that_is_restarted_in_mid_run_is_survived(dsn: str, write: Write, mode: Mode, size: int) -> None:
    folder = write(FILES | {"002_b.py": "async def up(c):\n    pass\n", "003_c.sql": FILES["003_c.sql"] + PASS_GATE})
    finished: list[str] = []
    async with pgbouncer(dsn, mode, size) as between, gate(dsn) as closed, anyio.create_task_group() as tasks:

        async def run() -> None:
            finished.extend(step.version for step in await Migrator(between.dsn, folder, lock_timeout=0).up())

        tasks.start_soon(run)
        first = await closed.reached()
        between.restart()
        await closed.reached_by_another(first)
        await closed.open()
    assert finished == ["1", "2", "3", "4"]
    assert await column(dsn, "SELECT n FROM ledger ORDER BY n") == [1, 3, 4]


@every_mode
async def test_a_runner_killed_in_mid_statement_frees_the_lock_within_two_seconds(
    dsn: str, write: Write, mode: Mode, size: int
) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a (); SELECT pg_sleep(600);"})
    async with pgbouncer(dsn, mode, size) as between, replicas(1, between.dsn, folder) as (replica,):
        await replica.go()
        await until(lambda: ask(dsn, "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
        replica.process.kill()
        await until(lambda: unlocked(dsn), 2.5)
        write({"001_a.sql": "CREATE TABLE a ();"})
        with anyio.fail_after(10):
            assert [step.version for step in await Migrator(between.dsn, folder).up()] == ["1"]


async def test_who_blocks_is_told_through_it_too(dsn: str, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    await tell(dsn, "CREATE TABLE t (n int)")
    folder = write({"001_a.sql": "ALTER TABLE t ADD m int;"})
    async with (
        pgbouncer(dsn, "transaction", 5) as between,
        connected(dsn, application_name="the blocker") as blocker,
    ):
        await blocker.execute("BEGIN; LOCK TABLE t")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Migrator(between.dsn, folder, lock_timeout=1).up)

            async def told() -> bool:
                return "the blocker" in caplog.text

            await until(told)
            await blocker.execute("ROLLBACK")
    assert await states(dsn) == {"1": "applied"}


@pytest.mark.parametrize("verb", ["down", "redo", "rehearse"])
async def test_every_way_leads_through_it(dsn: str, write: Write, verb: str) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();", "001_a.down.sql": "DROP TABLE a;", "002_b.sql": "SELECT 1;"})
    async with pgbouncer(dsn, "transaction", 1) as between:
        migrator = Migrator(between.dsn, folder)
        await migrator.up(to=1)
        done = await getattr(migrator, verb)()
        assert [step.version for step in done] == {"down": ["1"], "redo": ["1", "1"], "rehearse": ["2"]}[verb]
        assert await exists(dsn, "a") is (verb != "down")
        await clean(between, 1)
        await migrator.up()
    assert await states(dsn) == {"1": "applied", "2": "applied"}


class TestALockForEachTransaction:
    """What a pooler leads to, without one in between."""

    async def test_is_enough_for_a_herd(self, dsn: str, write: Write) -> None:
        async with replicas(COUNT, dsn, write(FILES), lock="transaction") as racing:
            outcome = await results(racing)
        assert [code for code, _ in outcome] == [0] * COUNT
        assert await column(dsn, "SELECT n FROM ledger ORDER BY n") == [1, 2, 3, 4]

    @pytest.mark.parametrize("late", [False, True], ids=["refused", "allowed"])
    async def test_has_each_step_look_whether_the_history_is_still_what_it_was_planned_for(
        self, dsn: str, write: Write, *, late: bool
    ) -> None:
        folder = write({"001_a.sql": PASS_GATE, "002_b.sql": "CREATE TABLE b ();"})
        migrator = Migrator(dsn, folder, lock="transaction", lock_timeout=0, allow_late=late)
        outcome: list[object] = []

        async def run() -> None:
            try:
                outcome.extend(step.version for step in await migrator.up())
            except HistoryError as error:
                outcome.append(error.versions)

        async with gate(dsn) as closed, anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await closed.reached()
            await tell(
                dsn,
                "INSERT INTO schema_migrations (version, name, kind, checksum, state) "
                "VALUES (7, 'g', 'sql', '', 'applied')",
            )
            await closed.open()
        assert outcome == (["1", "2"] if late else [("2",)])
        assert await exists(dsn, "b") is late

    async def test_waits_for_whoever_holds_it_for_a_session(self, dsn: str, write: Write) -> None:
        folder = write({"001_a.sql": "CREATE TABLE a ();"})
        async with connected(dsn) as holder, anyio.create_task_group() as tasks:
            await holder.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")
            tasks.start_soon(Migrator(dsn, folder, lock="transaction").up)
            await until(
                lambda: column(
                    dsn, "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%xact_lock%' AND pid <> pg_backend_pid()"
                )
            )
            assert not await exists(dsn, "a")
            holder.terminate()
        assert await states(dsn) == {"1": "applied"}


class TestNoLockAtAll:
    """For engines without advisory locks."""

    async def test_leaves_it_to_the_claims_to_apply_each_migration_once(self, dsn: str, write: Write) -> None:
        files = {name: text.replace(LEAKY, "SELECT 1") for name, text in FILES.items()}
        async with a_role(dsn) as role:
            await tell(
                dsn,
                f"GRANT ALL ON SCHEMA public TO {role}; REVOKE EXECUTE ON FUNCTION pg_try_advisory_lock(bigint), "
                "pg_try_advisory_xact_lock(bigint), pg_advisory_unlock(bigint), pg_advisory_unlock_all() FROM public",
            )
            mine = as_role(dsn, role)
            with pytest.raises(ServerError, match="advisory"):
                await Migrator(mine, write(files)).up()
            async with replicas(COUNT, mine, write(files), lock="none") as racing:
                outcome = await results(racing)
            assert [code for code, _ in outcome] == [0] * COUNT
            assert await column(dsn, "SELECT n FROM ledger ORDER BY n") == [1, 2, 3, 4]

    async def test_refuses_what_runs_outside_a_transaction(self, dsn: str, write: Write) -> None:
        with pytest.raises(ServerError, match="005_e"):
            await Migrator(dsn, write(FILES | INDEX), lock="none").up()
        assert not await exists(dsn, "ledger")
