"""Through a pooler: every migration once, and nothing of ours left for its other clients."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import asyncpg
import pytest

from pgratchet import HistoryError, MigrationFailedError, Migrator, ServerError, Verdict
from pgratchet.postgres.wire import sending
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
every_way = pytest.mark.parametrize(("suffix", "verb"), [("sql", "up"), ("py", "up"), ("py", "rehearse")])
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
SELECT 'session user' AS name, session_user::text AS setting
UNION ALL SELECT 'role', current_setting('role')
UNION ALL SELECT 'temporary', relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
UNION ALL SELECT 'lock', objid::text FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
UNION ALL SELECT 'channel', channel FROM pg_listening_channels() AS channel
UNION ALL SELECT 'prepared', name FROM pg_prepared_statements WHERE from_sql
UNION ALL SELECT 'cursor', name FROM pg_cursors WHERE name <> ''
UNION ALL SELECT name, setting FROM pg_settings
ORDER BY 1, 2
"""
KNOWN_PLPGSQL = "DO $$BEGIN END$$"
"""What has a session show the settings of plpgsql too, which one has only once it has used that."""

FILES = {
    "001_ledger.sql": "CREATE TABLE ledger (n int); INSERT INTO ledger VALUES (1);" + LEAKY,
    "002_b.py": LEAKY_PYTHON,
    "003_c.sql": "INSERT INTO ledger VALUES (3); SELECT pg_sleep(0.05);" + LEAKY,
    "004_d.sql": "INSERT INTO ledger VALUES (4);",
}
INDEX = {"005_e.sql": "CREATE INDEX CONCURRENTLY i ON ledger (n);"}


Trace = tuple[str, str]


@asynccontextmanager
async def unharmed(dsn: str, mode: Mode = "transaction", size: int = 5, **settings: object) -> AsyncIterator[Pooler]:
    """Yield a pooler; in the end its other clients get what they got before, whichever server process they get."""
    async with pgbouncer(dsn, mode, size, **settings) as between:
        (before,) = await traces(between, mode, 1)
        yield between
        for after in await traces(between, mode, min(size, 5)):
            assert sorted(after ^ before) == []


async def traces(between: Pooler, mode: Mode, count: int) -> list[set[Trace]]:
    """Return all that so many strangers see of their sessions, each in another server process where that can be."""
    strangers = [await asyncpg.connect(between.dsn, statement_cache_size=0) for _ in range(count)]
    try:
        for stranger in strangers if mode != "statement" else ():
            await stranger.execute("BEGIN")
        for stranger in strangers:
            await stranger.execute(KNOWN_PLPGSQL)
        return [{tuple(row) for row in await stranger.fetch(TRACES)} for stranger in strangers]
    finally:
        for stranger in strangers:
            stranger.terminate()


@every_mode
async def test_a_herd_applies_each_migration_once_and_leaves_no_trace(
    dsn: str, write: Write, mode: Mode, size: int
) -> None:
    folder = write(FILES)
    async with unharmed(dsn, mode, size) as between:
        async with replicas(COUNT, between.dsn, folder) as racing:
            outcome = await results(racing)
        assert [code for code, _ in outcome] == [0] * COUNT
        done = Counter(version for _, said in outcome for version in said["finished"])
        assert done == dict.fromkeys("1234", 1)
    assert await column(dsn, "SELECT n FROM ledger ORDER BY n") == [1, 2, 3, 4]
    assert set((await states(dsn)).values()) == {"applied"}
    assert await column(dsn, "SELECT objid FROM pg_locks WHERE locktype = 'advisory'") == []


async def test_runners_with_and_without_a_pooler_keep_each_other_out(dsn: str, write: Write) -> None:
    folder = write(FILES)
    async with (
        unharmed(dsn, "transaction", 5) as between,
        replicas(3, between.dsn, folder) as pooled,
        replicas(3, dsn, folder) as direct,
    ):
        outcome = await results([*pooled, *direct])
    assert [code for code, _ in outcome] == [0] * 6
    assert await column(dsn, "SELECT n FROM ledger ORDER BY n") == [1, 2, 3, 4]


def migration(suffix: str, sql: str) -> dict[str, str]:
    """Return the one file of that kind that runs the SQL."""
    python = f"async def up(connection):\n    await connection.execute({sql!r})\n"
    return {f"001_a.{suffix}": python if suffix == "py" else sql}


@every_mode
@every_way
async def test_a_migration_that_fails_leaves_no_trace_either(  # noqa: PLR0913, PLR0917 - two are the mode
    dsn: str, write: Write, mode: Mode, size: int, suffix: str, verb: str
) -> None:
    folder = write(migration(suffix, LEAKY + "SELECT 1/0;"))
    async with unharmed(dsn, mode, size) as between:
        with pytest.raises(MigrationFailedError) as caught:
            await getattr(Migrator(between.dsn, folder), verb)()
        assert caught.value.failure.sqlstate == "22012"
    write(migration(suffix, "CREATE TABLE a ();"))
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]


async def test_a_setting_that_the_pooler_lets_through_at_start_up_is_not_left_behind(dsn: str, write: Write) -> None:
    folder = write(FILES)
    ignored = "extra_float_digits,lock_timeout,statement_timeout,idle_in_transaction_session_timeout"
    async with unharmed(dsn, "transaction", 2, ignore_startup_parameters=ignored) as between:
        assert len(await Migrator(between.dsn, folder).up()) == 4


async def test_a_file_that_runs_outside_a_transaction_is_refused_before_anything_ran(dsn: str, write: Write) -> None:
    folder = write(FILES | INDEX)
    async with unharmed(dsn, "transaction", 2) as between:
        with pytest.raises(ServerError, match=r"005_e\.sql.*direct_dsn"):
            await Migrator(between.dsn, folder).up()
        assert not await exists(dsn, "ledger")

        assert len(await Migrator(between.dsn, folder, direct_dsn=dsn).up()) == 5
        assert await ask(dsn, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass")


async def test_a_pool_of_sessions_that_is_declared_as_one_runs_everything(dsn: str, write: Write) -> None:
    folder = write(FILES | INDEX)
    async with unharmed(dsn, "session", 20) as between:
        async with replicas(COUNT, between.dsn, folder, lock="session") as racing:
            outcome = await results(racing)
        assert [code for code, _ in outcome] == [0] * COUNT
        assert await column(dsn, "SELECT n FROM ledger ORDER BY n") == [1, 2, 3, 4]
        assert await ask(dsn, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass")
        await until(lambda: unlocked(dsn))


POLLS = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%try_advisory_xact_lock%' AND pid <> pg_backend_pid()"


async def unlocked(dsn: str) -> bool:
    return not await column(dsn, "SELECT objid FROM pg_locks WHERE locktype = 'advisory'")


async def test_a_pool_of_statements_is_refused_with_the_way_out_and_answers_check_and_status(
    dsn: str, write: Write
) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();"})
    async with unharmed(dsn, "statement", 2) as between:
        with pytest.raises(ServerError, match="direct_dsn"):
            await Migrator(between.dsn, folder).up()
        assert not await exists(dsn, HISTORY)
        migrator = Migrator(between.dsn, folder, direct_dsn=dsn)
        assert [step.version for step in await migrator.up()] == ["1"]
        await migrator.check()
        await migrator.wait()
        assert [entry.state for entry in await migrator.status()] == ["applied"]


async def test_a_run_waits_for_a_pooler_that_is_full(dsn: str, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    async def refused() -> bool:
        return "max_client_conn" in caplog.text

    async with pgbouncer(dsn, max_client_conn=1) as pooler, anyio.create_task_group() as tasks, connected(pooler.dsn):
        tasks.start_soon(Migrator(pooler.dsn, write({"001_a.sql": "CREATE TABLE a ();"})).up)
        await until(refused)
    assert await states(dsn) == {"1": "applied"}


@every_mode
async def test_a_run_survives_a_pooler_that_is_restarted_in_the_middle(
    dsn: str, write: Write, mode: Mode, size: int
) -> None:
    folder = write(FILES | {"002_b.py": "async def up(c):\n    pass\n", "003_c.sql": FILES["003_c.sql"] + PASS_GATE})
    finished: list[str] = []
    async with unharmed(dsn, mode, size) as between, gate(dsn) as closed, anyio.create_task_group() as tasks:

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
    folder = write({"001_a.sql": LEAKY + "SET lock_timeout = 0; SELECT pg_sleep(600);"})
    async with unharmed(dsn, mode, size) as between, replicas(1, between.dsn, folder) as (replica,):
        await replica.go()
        await until(lambda: ask(dsn, "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
        replica.process.kill()
        await until(lambda: unlocked(dsn), 2.0)
    write({"001_a.sql": "CREATE TABLE a ();"})
    with anyio.fail_after(10):
        assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]


@every_mode
async def test_a_run_that_is_blocked_for_long_is_told_by_whom(  # noqa: PLR0913, PLR0917 - two are the mode
    dsn: str,
    write: Write,
    mode: Mode,
    size: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sending, "LOOK_AFTER", 0.2)
    await tell(dsn, "CREATE TABLE t (n int)")
    folder = write({"001_a.sql": LEAKY + "SET lock_timeout = 0; ALTER TABLE public.t ADD m int;"})
    async with (
        unharmed(dsn, mode, size) as between,
        connected(dsn, application_name="the blocker") as blocker,
    ):
        await tell(dsn, "GRANT pg_monitor TO current_user; ALTER TABLE t OWNER TO pg_monitor")
        await blocker.execute("BEGIN; LOCK TABLE t")
        clients = between.clients
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Migrator(between.dsn, folder, lock_timeout=0).up)

            async def looked() -> bool:
                # In a pool of one the session that would look has to wait until there is nothing left to see.
                return between.clients >= clients + 2 if size == 1 else "the blocker" in caplog.text

            await until(looked)
            await blocker.execute("ROLLBACK")
    assert await states(dsn) == {"1": "applied"}


AT_WORK = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgratchet since%' AND datname = "
    "current_database() AND (wait_event_type = 'Lock' OR state = 'idle in transaction' AND query LIKE '%leak%')"
)
IDLE = "    import asyncio\n    await asyncio.sleep(600)\n"
STUCK = LEAKY + "SET lock_timeout = 0; " + PASS_GATE.strip()


@every_mode
@pytest.mark.parametrize("verb", ["up", "rehearse"])
@pytest.mark.parametrize(
    "files",
    [migration("sql", STUCK), migration("py", STUCK), {"001_a.py": migration("py", LEAKY)["001_a.py"] + IDLE}],
    ids=["SQL", "Python", "idle Python"],
)
async def test_a_run_that_is_cancelled_leaves_no_trace(  # noqa: PLR0913, PLR0917 - two are the mode
    dsn: str, write: Write, mode: Mode, size: int, verb: str, files: dict[str, str]
) -> None:
    folder = write(files)
    async with unharmed(dsn, mode, size) as between, gate(dsn):
        run = asyncio.create_task(getattr(Migrator(between.dsn, folder, lock_timeout=0), verb)())
        await until(lambda: ask(dsn, AT_WORK))
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    (name,) = files
    write({name: "async def up(connection): pass\n" if name.endswith("py") else "SELECT 1;"})
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]


@every_mode
async def test_a_repair_leaves_no_trace(dsn: str, write: Write, mode: Mode, size: int) -> None:
    async with unharmed(dsn, mode, size) as between:
        migrator = Migrator(between.dsn, write({"001_a.sql": LEAKY + "SELECT 1/0;"}))
        await failure_of(migrator)
        assert (await migrator.repair(1, Verdict.APPLIED, "did it by hand")).state == "applied"
        assert await migrator.up() == ()


@pytest.mark.parametrize("verb", ["down", "redo", "rehearse"])
async def test_every_verb_works_through_a_pooler(dsn: str, write: Write, verb: str) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();", "001_a.down.sql": "DROP TABLE a;", "002_b.sql": "SELECT 1;"})
    async with unharmed(dsn, "transaction", 1) as between:
        migrator = Migrator(between.dsn, folder)
        await migrator.up(to=1)
        done = await getattr(migrator, verb)()
        assert [step.version for step in done] == {"down": ["1"], "redo": ["1", "1"], "rehearse": ["2"]}[verb]
        assert await exists(dsn, "a") is (verb != "down")
        await migrator.up()
    assert await states(dsn) == {"1": "applied", "2": "applied"}


class TestALockForEachTransaction:
    """What a pooler leads to, without one in between."""

    async def test_a_lock_for_each_transaction_is_enough_for_a_herd(self, dsn: str, write: Write) -> None:
        async with replicas(COUNT, dsn, write(FILES), lock="transaction") as racing:
            outcome = await results(racing)
        assert [code for code, _ in outcome] == [0] * COUNT
        assert await column(dsn, "SELECT n FROM ledger ORDER BY n") == [1, 2, 3, 4]

    @pytest.mark.parametrize("late", [False, True], ids=["refused", "allowed"])
    async def test_each_step_checks_whether_the_history_is_still_the_planned_one(
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

    async def test_a_lock_for_each_transaction_waits_for_a_session_that_holds_the_lock(
        self, dsn: str, write: Write
    ) -> None:
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

    async def test_claims_alone_apply_each_migration_once_without_a_lock(self, dsn: str, write: Write) -> None:
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

    async def test_a_run_without_a_lock_refuses_a_file_that_runs_outside_a_transaction(
        self, dsn: str, write: Write
    ) -> None:
        with pytest.raises(ServerError, match="005_e"):
            await Migrator(dsn, write(FILES | INDEX), lock="none").up()
        assert not await exists(dsn, "ledger")
