"""Indexes that are built concurrently and do not come out as they should: never taken for done, never left behind."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import anyio
import pytest

from pgratchet import HistoryError, Migrator, Verdict
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.sql import Table
from pgratchet.postgres.steps.indexes import leftovers
from pgratchet.postgres.steps.supervision import MOST_BUILDS
from tests.processes import replicas
from tests.support import (
    HEAD,
    PASSWORD,
    Connection,
    Write,
    a_role,
    as_role,
    ask,
    column,
    connected,
    deserted,
    exists,
    failure_of,
    gate,
    history,
    leave,
    states,
    tell,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

TABLE = "CREATE TABLE t AS SELECT n FROM generate_series(1, 100) n"
NAMED = "CREATE INDEX CONCURRENTLY i ON t (n);"
IF_NOT_EXISTS = "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON t (n);"
UNNAMED = "CREATE INDEX CONCURRENTLY ON t (n);"
BUILDS = pytest.mark.parametrize("sql", [NAMED, IF_NOT_EXISTS, UNNAMED], ids=["named", "if not exists", "unnamed"])
INDEXES = (
    "SELECT indexrelid::regclass::text || CASE WHEN indisvalid THEN '' ELSE ' invalid' END FROM pg_index "
    "WHERE indrelid = 't'::regclass ORDER BY 1"
)
WAITING = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
    "AND query LIKE $1 || '%' AND pid <> $2"
)


HoldUp = Callable[[str], AbstractAsyncContextManager[Connection]]


class Elsewhere(Table):
    """The same table, behind another lock."""

    @property
    def lock_key(self) -> int:
        return 42


def without_lock(migrator: Migrator) -> Migrator:
    """Have the migrator take another lock than all others: as if theirs had been taken away."""
    history = migrator._settings.history._replace(table=Elsewhere("public", "schema_migrations"))
    migrator._settings = migrator._settings._replace(history=history)
    return migrator


async def building(dsn: str, query: str = "CREATE ", but: int = 0) -> int:
    """Return the process id of a session whose statement begins like that and waits for a lock."""

    async def waits() -> int:
        return int(await ask(dsn, WAITING, query, but) or 0)

    return await until(waits)


@asynccontextmanager
async def an_old_transaction(dsn: str) -> AsyncIterator[Connection]:
    """Hold up every build of an index on t."""
    async with connected(dsn) as old:
        await old.execute("BEGIN; INSERT INTO t VALUES (0)")
        yield old


@asynccontextmanager
async def an_old_snapshot(dsn: str) -> AsyncIterator[Connection]:
    """Hold up the last wait of every build of an index, in which it is complete, and invalid still."""
    async with connected(dsn) as old:
        await old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        yield old


@asynccontextmanager
async def an_old_reader(dsn: str) -> AsyncIterator[Connection]:
    """Hold up whoever is to drop an index of t, which a REINDEX is when it has swapped the new one with the old."""
    async with connected(dsn) as old:
        await old.execute("BEGIN; SELECT FROM t")
        yield old


async def leave_an_invalid_index(dsn: str, sql: str = NAMED) -> None:
    async with an_old_transaction(dsn), anyio.create_task_group() as tasks:

        async def build() -> None:
            async with connected(dsn) as victim:
                with pytest.raises(Exception, match="terminat"):
                    await victim.execute(sql)

        tasks.start_soon(build)
        pid = await building(dsn)
        await tell(dsn, f"SELECT pg_terminate_backend({pid})")
    assert [name for name in await column(dsn, INDEXES) if "invalid" in name]


@BUILDS
@pytest.mark.parametrize(
    ("hold_up", "phase"),
    [(an_old_transaction, "waiting for writers before build"), (an_old_snapshot, "waiting for old snapshots")],
    ids=["first wait", "last wait"],
)
async def test_the_next_run_builds_the_index_whose_builder_was_killed(
    dsn: str, write: Write, sql: str, hold_up: HoldUp, phase: str
) -> None:
    await tell(dsn, TABLE)
    folder = write({"001_i.sql": sql})
    async with hold_up(dsn), replicas(1, dsn, folder) as (replica,):
        await replica.go()
        pid = await building(dsn)
        assert await ask(dsn, "SELECT phase FROM pg_stat_progress_create_index WHERE pid = $1", pid) == phase
        replica.process.kill()
        await deserted(dsn)
    assert [name for name in await column(dsn, INDEXES) if "invalid" in name]
    migrator = Migrator(dsn, folder)
    await migrator.up()
    assert await column(dsn, INDEXES) == ["t_n_idx" if sql == UNNAMED else "i"]
    assert await states(dsn) == {"1": "applied"}


@pytest.mark.parametrize("sql", [NAMED, IF_NOT_EXISTS], ids=["named", "if not exists"])
async def test_a_run_builds_anew_the_invalid_index_that_others_have_left(
    dsn: str, write: Write, sql: str, caplog: pytest.LogCaptureFixture
) -> None:
    await tell(dsn, TABLE)
    await leave_an_invalid_index(dsn)
    await Migrator(dsn, write({"001_i.sql": sql})).up()
    assert await column(dsn, INDEXES) == ["i"]
    assert "dropping the invalid index public.i" in caplog.text


async def test_a_person_has_to_judge_an_index_without_a_name_that_is_finished_but_not_counted(
    dsn: str, write: Write
) -> None:
    await tell(dsn, TABLE + "; CREATE INDEX other ON t ((n + 1))")
    migrator = Migrator(dsn, write({"001_i.sql": HEAD + UNNAMED + "CREATE INDEX CONCURRENTLY j ON t (n);"}))
    async with counts_refused(dsn, 1):
        await failure_of(migrator)
    for _ in range(2):
        with pytest.raises(HistoryError, match=r"new on t since then: public\.t_n_idx\. ") as caught:
            await migrator.up()
        assert caught.value.versions == ("1",)
    await migrator.repair(1, Verdict.SKIP, "it is that one")
    await migrator.up()
    assert await column(dsn, INDEXES) == ["j", "other", "t_n_idx"]


async def test_an_index_of_that_name_from_before_is_not_taken_for_the_one_to_be_built(dsn: str, write: Write) -> None:
    await tell(dsn, TABLE + "; ALTER TABLE t ADD m int; CREATE INDEX i ON t (m)")
    folder = write({"001_i.sql": NAMED})
    async with connected(dsn) as stranger, anyio.create_task_group() as tasks:
        await stranger.execute("BEGIN; LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")

        async def run() -> None:
            assert (await failure_of(Migrator(dsn, folder))).failure.sqlstate == "42P07"

        tasks.start_soon(run)
        pid = await building(dsn)
        await tell(dsn, f"SELECT pg_terminate_backend({pid})")
        await building(dsn, but=pid)
        await stranger.execute("ROLLBACK")
    assert await column(dsn, INDEXES) == ["i"]
    await tell(dsn, "DROP INDEX i")
    await Migrator(dsn, folder).up()
    assert await ask(dsn, "SELECT pg_get_indexdef('i'::regclass)") == "CREATE INDEX i ON public.t USING btree (n)"


@pytest.mark.parametrize("sql", ["DROP INDEX CONCURRENTLY i;", "DROP INDEX CONCURRENTLY IF EXISTS i;"])
async def test_a_drop_that_is_done_but_not_counted_spares_other_indexes_of_that_name(
    dsn: str, write: Write, sql: str
) -> None:
    await tell(dsn, f"{TABLE}; CREATE INDEX i ON t (n); CREATE SCHEMA app; CREATE TABLE app.t (n int)")
    await tell(dsn, "CREATE INDEX i ON app.t (n)")
    migrator = Migrator(dsn, write({"001_i.sql": f"{HEAD}SET search_path = app, public; {sql}"}))
    async with counts_refused(dsn, 2):
        # Once for the drop, and once for what the second run finds.
        for _ in range(2):
            await failure_of(migrator)
    await migrator.up()
    assert not await exists(dsn, "app.i")
    assert await column(dsn, INDEXES) == ["i"]


async def test_a_person_has_to_judge_a_drop_of_an_index_that_its_name_does_not_mean_any_more(
    dsn: str, write: Write
) -> None:
    await tell(dsn, f"{TABLE}; CREATE INDEX i ON t (n)")
    migrator = Migrator(dsn, write({"001_i.sql": "DROP INDEX CONCURRENTLY i;"}))
    async with connected(dsn) as reader, anyio.create_task_group() as tasks:
        await reader.execute("BEGIN; LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")
        tasks.start_soon(migrator.up)
        await building(dsn, "DROP")
        tasks.cancel_scope.cancel()
    await deserted(dsn)
    await tell(dsn, "ALTER INDEX i RENAME TO was_i; CREATE INDEX i ON t ((n + 1))")
    with pytest.raises(HistoryError, match="i is another index now than when the statement was begun") as caught:
        await migrator.up()
    assert caught.value.versions == ("1",)
    await tell(dsn, "DROP INDEX i; ALTER INDEX was_i RENAME TO i")
    await migrator.up()
    assert await column(dsn, INDEXES) == []


@asynccontextmanager
async def counts_refused(dsn: str, number: int) -> AsyncIterator[None]:
    """Let nobody count the statement of that number."""
    table = Table("public", "schema_migrations")
    async with connected(dsn) as connection:
        await History(table).ensure(connection, (), Budget(None))
        await connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not now'; END$$;"
            "CREATE TRIGGER refuse BEFORE UPDATE ON schema_migrations FOR EACH ROW "
            f"WHEN (NEW.statements_done = {number} AND OLD.statements_done < {number}) EXECUTE FUNCTION refuse()"
        )
        yield
        await connection.execute("DROP TRIGGER refuse ON schema_migrations")


async def test_an_index_that_is_finished_but_not_counted_is_not_built_again(dsn: str, write: Write) -> None:
    await tell(dsn, TABLE)
    folder = write({"001_i.sql": HEAD + "SELECT 1;" + NAMED})
    async with counts_refused(dsn, 2):
        for _ in range(2):
            error = await failure_of(Migrator(dsn, folder))
            assert "not now" in error.failure.message
            row = (await history(dsn))["1"]
            assert (row["state"], row["statements_done"]) == ("running", 1)
    oid = await ask(dsn, "SELECT 'i'::regclass::oid")
    await Migrator(dsn, folder).up()
    assert await ask(dsn, "SELECT 'i'::regclass::oid") == oid


@pytest.mark.parametrize("held_up", ["DROP INDEX", "CREATE INDEX"])
@pytest.mark.parametrize(
    "limit",
    ["SET lock_timeout = '50ms';", "RESET lock_timeout;", "SET lock_timeout = '50ms'; SET statement_timeout = 0;"],
)
async def test_a_lock_timeout_does_not_end_the_build_of_an_index(
    dsn: str, write: Write, limit: str, held_up: str, caplog: pytest.LogCaptureFixture
) -> None:
    await tell(dsn, TABLE)
    if held_up == "DROP INDEX":
        await leave_an_invalid_index(dsn)
    await tell(dsn, f"ALTER DATABASE {dsn.rpartition('/')[2].partition('?')[0]} SET lock_timeout = '50ms'")
    look = "CREATE TABLE seen AS SELECT current_setting('lock_timeout') AS v;"
    folder = write({"001_i.sql": HEAD + limit + NAMED + look})
    async with anyio.create_task_group() as tasks, an_old_transaction(dsn):
        tasks.start_soon(Migrator(dsn, folder, lock_timeout=0.05).up)
        await building(dsn, held_up)
        await anyio.sleep(0.3)
    assert await column(dsn, INDEXES) == ["i"]
    assert "trying again" not in caplog.text
    assert await column(dsn, "SELECT v FROM seen") == ["1s" if limit.startswith("RESET") else "50ms"]


async def test_a_build_that_exceeds_its_statement_timeout_leaves_no_invalid_index(dsn: str, write: Write) -> None:
    await tell(dsn, TABLE)
    folder = write({"001_i.sql": NAMED})
    async with an_old_transaction(dsn) as old, anyio.create_task_group() as tasks:

        async def run() -> None:
            error = await failure_of(Migrator(dsn, folder, statement_timeout=0.3))
            assert error.failure.sqlstate == "57014"
            assert "the invalid index public.i that it left was dropped" in str(error.failure.hint)

        tasks.start_soon(run)
        # The drop waits for the same transaction, for longer than a statement of the file may take.
        await building(dsn, "DROP INDEX")
        await anyio.sleep(0.5)
        await old.execute("ROLLBACK")
    assert await column(dsn, INDEXES) == []
    await Migrator(dsn, folder).up()
    assert await column(dsn, INDEXES) == ["i"]


@pytest.mark.parametrize(
    ("name", "sql"),
    [
        ("i", "CREATE UNIQUE INDEX CONCURRENTLY i ON t (n);"),
        ("i", "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON t (n);"),
        ("t_n_idx", "CREATE UNIQUE INDEX CONCURRENTLY ON t (n);"),
    ],
)
async def test_a_build_that_finds_a_duplicate_leaves_no_invalid_index_and_says_what_to_do(
    dsn: str, write: Write, name: str, sql: str
) -> None:
    await tell(dsn, TABLE + "; INSERT INTO t VALUES (7)")
    folder = write({"001_i.sql": HEAD + "SELECT 1;\n" + sql})
    error = await failure_of(Migrator(dsn, folder))
    failure = error.failure
    assert (failure.sqlstate, failure.statement, failure.line) == ("23505", 2, 3)
    assert "(n)=(7)" in str(failure.detail)
    assert failure.hint == f"fix the data; the invalid index public.{name} that it left was dropped"
    assert await column(dsn, INDEXES) == []
    row = (await history(dsn))["1"]
    assert (row["state"], row["statements_done"]) == ("failed", 1)
    assert ">" not in row["cursor"]
    await tell(dsn, "DELETE FROM t WHERE n = 7")
    await Migrator(dsn, folder).up()
    assert await column(dsn, INDEXES) == [name]


@BUILDS
async def test_a_build_that_an_administrator_cancels_leaves_no_invalid_index(dsn: str, write: Write, sql: str) -> None:
    await tell(dsn, TABLE)
    folder = write({"001_i.sql": sql})
    async with an_old_transaction(dsn) as old, anyio.create_task_group() as tasks:

        async def run() -> None:
            assert (await failure_of(Migrator(dsn, folder))).failure.sqlstate == "57014"

        tasks.start_soon(run)
        pid = await building(dsn)
        await tell(dsn, f"SELECT pg_cancel_backend({pid})")
        await building(dsn, "DROP INDEX")
        await old.execute("COMMIT")
    assert await column(dsn, INDEXES) == []
    await Migrator(dsn, folder).up()
    assert len(await column(dsn, INDEXES)) == 1


@BUILDS
async def test_an_index_whose_build_ends_in_a_deadlock_is_built_again(
    dsn: str, write: Write, sql: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pgratchet")
    await tell(dsn, TABLE)
    folder = write({"001_i.sql": sql})
    async with an_old_transaction(dsn) as old:
        # The build has to be the one that notices: the other never looks for a deadlock.
        await old.execute("SET LOCAL deadlock_timeout = '1h'")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Migrator(dsn, folder).up)
            await building(dsn)
            await old.execute("LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")
            await old.execute("ROLLBACK")
    assert len(await column(dsn, INDEXES)) == 1
    assert "invalid" not in (await column(dsn, INDEXES))[0]
    assert "40P01" in caplog.text
    assert "trying again" in caplog.text


@pytest.mark.parametrize("sql", [NAMED, IF_NOT_EXISTS], ids=["named", "if not exists"])
async def test_a_run_leaves_alone_the_index_that_a_stranger_is_building(dsn: str, write: Write, sql: str) -> None:
    await tell(dsn, TABLE)
    folder = write({"001_i.sql": sql})
    oid = "SELECT to_regclass('i')::oid"
    async with an_old_transaction(dsn) as old, connected(dsn) as stranger, anyio.create_task_group() as tasks:
        tasks.start_soon(stranger.execute, NAMED)
        await building(dsn)
        found = await ask(dsn, oid)

        async def run() -> None:
            if sql == NAMED:
                assert "already exists" in (await failure_of(Migrator(dsn, folder))).failure.message
            else:
                await Migrator(dsn, folder).up()

        tasks.start_soon(run)
        polling = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%ShareUpdateExclusiveLock%' AND pid <> $1"

        async def polls() -> bool:
            return bool(await ask(dsn, polling, await ask(dsn, "SELECT pg_backend_pid()")))

        await until(polls)
        await anyio.sleep(0.3)
        assert await column(dsn, INDEXES) == ["i invalid"]
        await old.execute("COMMIT")
    assert await ask(dsn, oid) == found
    assert await column(dsn, INDEXES) == ["i"]


async def test_a_run_leaves_alone_an_index_of_that_name_on_another_table(dsn: str, write: Write) -> None:
    await tell(dsn, TABLE)
    await leave_an_invalid_index(dsn)
    await tell(dsn, "CREATE TABLE u (n int)")
    for number, sql in enumerate((NAMED, IF_NOT_EXISTS), 1):
        folder = write({"001_i.sql": sql.replace("ON t", "ON u")})
        message = (await failure_of(Migrator(dsn, folder))).failure.message
        assert ("already exists" if number == 1 else "i is there, but not an index of this table") in message
        assert await column(dsn, INDEXES) == ["i invalid"]
    write({"001_i.sql": IF_NOT_EXISTS.replace("ON t", "ON u").replace(" i ", " j ")})
    await Migrator(dsn, folder).up()


async def test_an_invalid_index_is_found_by_the_name_that_the_script_means(dsn: str, write: Write) -> None:
    longest = "Ä" * 40
    await tell(dsn, f'CREATE SCHEMA "S"; CREATE TABLE "S"."T t" AS SELECT 1 AS n; {TABLE}')
    sql = f'{HEAD}SET search_path = "S"; CREATE INDEX CONCURRENTLY {{}} {longest} ON "T t" (n); SELECT 1;'
    folder = write({"001_i.sql": sql.format("IF NOT EXISTS")})
    await Migrator(dsn, folder).up()
    name = await ask(dsn, "SELECT relname FROM pg_class WHERE relname LIKE 'Ä%'")
    assert name == "Ä" * 31
    await tell(dsn, f'UPDATE pg_index SET indisvalid = false WHERE indexrelid = \'"S"."{name}"\'::regclass')
    write({"002_again.sql": sql.format("")})
    await Migrator(dsn, folder).up()
    assert await column(
        dsn, "SELECT indisvalid FROM pg_index i JOIN pg_class c ON c.oid = indexrelid WHERE relname LIKE 'Ä%'"
    ) == [True]


async def test_the_role_that_builds_an_index_drops_its_invalid_remains(dsn: str, write: Write) -> None:
    async with a_role(dsn) as owner:
        login = f"{owner}_login"
        await tell(
            dsn,
            f"CREATE ROLE {login} LOGIN NOINHERIT PASSWORD '{PASSWORD}' IN ROLE {owner}; "
            f"GRANT CREATE, USAGE ON SCHEMA public TO {owner}, {login}",
        )
        try:
            await tell(dsn, f"{TABLE}; INSERT INTO t VALUES (7); ALTER TABLE t OWNER TO {owner}")
            sql = f"{HEAD}SET ROLE {owner}; SET statement_timeout = '1h'; CREATE UNIQUE INDEX CONCURRENTLY i ON t (n);"
            folder = write({"001_i.sql": sql})
            error = await failure_of(Migrator(as_role(dsn, login), folder))
            assert "the invalid index public.i that it left was dropped" in str(error.failure.hint)
            await tell(dsn, "DELETE FROM t WHERE n = 7")
            await Migrator(as_role(dsn, login), folder).up()
            assert await column(dsn, INDEXES) == ["i"]
        finally:
            await tell(dsn, f"DROP OWNED BY {login} CASCADE; DROP ROLE {login}")


@pytest.mark.parametrize("ending", ["fails", "is cut off"])
@pytest.mark.parametrize(
    ("hold_up", "left"), [(an_old_transaction, "i_ccnew"), (an_old_reader, "i_ccold")], ids=["new", "old"]
)
async def test_a_failed_reindex_tells_which_invalid_indexes_it_has_left(  # noqa: PLR0913, PLR0917 - three are the case
    dsn: str, write: Write, ending: str, hold_up: HoldUp, left: str, caplog: pytest.LogCaptureFixture
) -> None:
    await tell(dsn, TABLE + "; CREATE INDEX i ON t (n)")
    folder = write({"001_r.sql": "REINDEX INDEX CONCURRENTLY i;"})
    told = f"public.{left} on t is an invalid leftover of REINDEX CONCURRENTLY; remove it with DROP INDEX CONCURRENTLY "
    async with hold_up(dsn) as old, anyio.create_task_group() as tasks:

        async def run() -> None:
            if ending == "fails":
                error = await failure_of(Migrator(dsn, folder))
                assert (error.failure.sqlstate, error.failure.hint) == ("57014", f"{told}public.{left}")
            else:
                await Migrator(dsn, folder).up()

        tasks.start_soon(run)
        pid = await building(dsn, "REINDEX")
        await tell(dsn, f"SELECT pg_{'cancel' if ending == 'fails' else 'terminate'}_backend({pid})")
        if ending != "fails":
            await building(dsn, "REINDEX", but=pid)
        await old.execute("COMMIT")
    assert f"{told}public.{left}" in caplog.text
    assert f"{left} invalid" in await column(dsn, INDEXES)
    await tell(dsn, f"DROP INDEX CONCURRENTLY {left}")
    await Migrator(dsn, folder).up()
    assert await column(dsn, INDEXES) == ["i"]
    assert await states(dsn) == {"1": "applied"}


async def test_a_leftover_of_a_reindex_is_told_although_another_database_has_a_lock_of_the_same_number(
    dsn: str, maintenance_dsn: str
) -> None:
    await tell(dsn, TABLE + "; CREATE INDEX i_ccold ON t (n)")
    await tell(dsn, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'i_ccold'::regclass")
    name = urlsplit(dsn).path[1:]
    await leave(dsn)
    await tell(maintenance_dsn, f"CREATE DATABASE {name}_copy TEMPLATE {name}")
    try:
        copy = dsn.replace(name, f"{name}_copy")
        table = "SELECT 't'::regclass::oid"
        assert await ask(copy, table) == await ask(dsn, table)
        async with connected(copy) as stranger, connected(dsn) as connection:
            await stranger.execute("BEGIN; LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")
            (told,) = await leftovers(connection)
            assert "public.i_ccold on t" in told
    finally:
        await tell(maintenance_dsn, f"DROP DATABASE {name}_copy WITH (FORCE)")


SPOILS = """
CREATE SEQUENCE builds;
CREATE FUNCTION spoil() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN
    UPDATE pg_index SET indisvalid = nextval('builds') > {} WHERE indexrelid IN (
        SELECT objid FROM pg_event_trigger_ddl_commands());
END$$;
CREATE EVENT TRIGGER spoil ON ddl_command_end WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION spoil()
"""
"""Has so many builds of indexes come out invalid although they have succeeded."""


@BUILDS
async def test_an_index_that_comes_out_invalid_is_built_again(dsn: str, write: Write, sql: str) -> None:
    await tell(dsn, TABLE + ";" + SPOILS.format(MOST_BUILDS - 1))
    await Migrator(dsn, write({"001_i.sql": sql})).up()
    assert await ask(dsn, "SELECT last_value FROM builds") == MOST_BUILDS
    assert await column(dsn, INDEXES) == ["t_n_idx" if sql == UNNAMED else "i"]


@BUILDS
async def test_an_index_that_comes_out_invalid_again_and_again_leaves_nothing_behind(
    dsn: str, write: Write, sql: str
) -> None:
    await tell(dsn, TABLE + ";" + SPOILS.format(1000))
    folder = write({"001_i.sql": sql})
    failure = (await failure_of(Migrator(dsn, folder))).failure
    name = "t_n_idx" if sql == UNNAMED else "i"
    assert failure.message == f"public.{name} is invalid, also after {MOST_BUILDS} builds"
    assert failure.hint == f"the invalid index public.{name} that it left was dropped"
    assert await ask(dsn, "SELECT last_value FROM builds") == MOST_BUILDS
    assert await column(dsn, INDEXES) == []
    assert await states(dsn) == {"1": "failed"}
    await tell(dsn, "DROP EVENT TRIGGER spoil")
    await Migrator(dsn, folder).up()
    assert await column(dsn, INDEXES) == [name]


async def test_one_of_two_runners_builds_the_index_although_no_lock_keeps_them_apart(dsn: str, write: Write) -> None:
    await tell(dsn, TABLE + "; CREATE TABLE ledger (n int)")
    sql = f"{HEAD}INSERT INTO ledger VALUES (1); {NAMED} INSERT INTO ledger VALUES (2);"
    folder = write({"001_i.sql": sql})
    one, two = Migrator(dsn, folder), without_lock(Migrator(dsn, folder))
    finished: list[str] = []

    async def run(migrator: Migrator) -> None:
        finished.extend(step.version for step in await migrator.up())

    async with an_old_transaction(dsn) as old, anyio.create_task_group() as tasks:
        tasks.start_soon(run, one)
        tasks.start_soon(run, two)
        builder = await building(dsn, "CREATE INDEX")
        # The other one waits: it polls, and has nothing running.
        asked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%state_change%' AND pid <> pg_backend_pid()"

        async def polls() -> bool:
            return bool(await ask(dsn, asked))

        await until(polls)
        assert await ask(dsn, WAITING, "CREATE", builder) is None
        await old.execute("COMMIT")
    assert finished == ["1"]
    assert await column(dsn, "SELECT n FROM ledger") == [1, 2]
    assert await column(dsn, INDEXES) == ["i"]


@pytest.mark.parametrize("times", [2, 5])
async def test_one_runner_builds_the_index_when_many_find_its_builder_dead_at_once(
    dsn: str, write: Write, times: int
) -> None:
    await tell(dsn, TABLE + "; CREATE TABLE ledger (n int)")
    rest = "INSERT INTO ledger VALUES (3); VACUUM ledger; INSERT INTO ledger VALUES (4);"
    sql = f"{HEAD}INSERT INTO ledger VALUES (1); {NAMED} INSERT INTO ledger VALUES (2); VACUUM t; {rest}"
    folder = write({"001_i.sql": sql})
    async with an_old_transaction(dsn), replicas(1, dsn, folder) as (replica,):
        await replica.go()
        await building(dsn)
        replica.process.kill()
        await deserted(dsn)
    finished: list[str] = []

    async def run(key: int) -> None:
        migrator = Migrator(dsn, folder)
        keyed = type("Keyed", (Table,), {"lock_key": key})
        history = migrator._settings.history._replace(table=keyed("public", "schema_migrations"))
        migrator._settings = migrator._settings._replace(history=history)
        finished.extend(step.version for step in await migrator.up())

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for key in range(times):
                tasks.start_soon(run, key)
    assert finished == ["1"]
    assert await column(dsn, "SELECT n FROM ledger") == [1, 2, 3, 4]
    assert await column(dsn, INDEXES) == ["i"]


async def test_a_runner_that_was_taken_for_dead_stops_before_it_begins_a_build(dsn: str, write: Write) -> None:
    """A frozen runner comes back: another has its row, and it does nothing to the index of that one."""
    await tell(dsn, TABLE)
    folder = write({"001_i.sql": f"{HEAD}SELECT pg_advisory_xact_lock_shared(4711); {NAMED}"})
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(Migrator(dsn, folder, lock_timeout=0).up)
        await closed.reached()
        await tell(
            dsn,
            "UPDATE schema_migrations SET token = 'taken', backend_pid = pg_backend_pid(), "
            "backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())",
        )
        await closed.open()
    assert await column(dsn, INDEXES) == ["i"]
    assert await states(dsn) == {"1": "applied"}
    assert await ask(dsn, "SELECT count(*) FROM schema_migrations WHERE token = 'taken'") == 0


async def test_a_run_waits_for_the_index_whose_builder_it_cannot_see(dsn: str, write: Write) -> None:
    """Without the right to see what it does, a process of that number and login is taken for the runner at work."""
    await tell(dsn, TABLE)
    async with a_role(dsn) as role, connected(dsn) as stranger:
        await tell(dsn, f"GRANT CREATE ON SCHEMA public TO {role}; ALTER TABLE t OWNER TO {role}")
        folder = write({"001_i.sql": NAMED})
        migrator = Migrator(as_role(dsn, role), folder)
        async with an_old_transaction(dsn), anyio.create_task_group() as tasks:
            tasks.start_soon(migrator.up)
            await building(dsn)
            tasks.cancel_scope.cancel()
        await deserted(dsn)
        its = f"backend_pid = {stranger.get_server_pid()}, applied_by = session_user || '@elsewhere'"
        await tell(dsn, f"UPDATE schema_migrations SET {its}")
        impatient = Migrator(as_role(dsn, role), folder, budget=0.3)
        with pytest.raises(Exception, match="GRANT pg_read_all_stats"):
            await impatient.up()
        assert not await exists(dsn, "nothing")
        await tell(dsn, f"GRANT pg_read_all_stats TO {role}")
        await impatient.up()
        assert await column(dsn, INDEXES) == ["i"]
