from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import anyio
import asyncpg
import pytest

from pgratchet import BudgetExceededError, FilesError, HistoryError, Migrator, State, UsageError, Verdict
from pgratchet.core.events import Event, Retried
from pgratchet.core.model import Direction, Kind, Lock, RecordState, Step
from pgratchet.core.plan import planning
from pgratchet.core.sql.scripts import compile_script
from pgratchet.files import directory
from pgratchet.files.layouts.own import own
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.ledger.records import Claim, Records, Writer
from pgratchet.postgres.link.own import Guards
from pgratchet.postgres.link.sql import Table
from tests.support import (
    HEAD,
    HISTORY,
    PASS_GATE,
    Write,
    a_role,
    ask,
    column,
    connected,
    deserted,
    exists,
    failure_of,
    gate,
    history,
    states,
    tell,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

TABLE = "CREATE TABLE t AS SELECT n FROM generate_series(1, 100) n;"
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)"
COUNTED = "SELECT nextval('runs');"


class TestLineEndings:
    @pytest.mark.parametrize("head", ["", "-- pgratchet: no-transaction\n"])
    async def test_strings_and_functions_have_the_line_endings_of_the_file(
        self, dsn: str, write: Write, head: str
    ) -> None:
        text = head + (
            "CREATE TABLE t AS SELECT 'a\nb' AS text;\n"
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$\n SELECT 1\n$$;\n"
            "COMMENT ON TABLE t IS E'x\n';\n"
        )
        await Migrator(dsn, write({"001_a.sql": text.replace("\n", "\r\n").encode()})).up()

        assert await ask(dsn, "SELECT text FROM t") == "a\r\nb"
        assert await ask(dsn, "SELECT prosrc FROM pg_proc WHERE proname = 'f'") == "\r\n SELECT 1\r\n"
        assert await ask(dsn, "SELECT obj_description('t'::regclass)") == "x\r\n"

    @pytest.mark.parametrize("endings", [("\n", "\r\n"), ("\r\n", "\n")])
    async def test_a_half_done_file_is_finished_with_other_line_endings(
        self, dsn: str, write: Write, endings: tuple[str, str]
    ) -> None:
        text = "-- pgratchet: no-transaction\nCREATE TABLE t AS\n SELECT 'a\nb' AS text;\nSELECT\n nope FROM t;\n"
        before, after = endings
        folder = write({"001_a.sql": text.replace("\n", before).encode()})
        failure = (await failure_of(Migrator(dsn, folder))).failure
        assert (failure.statement, failure.line, failure.column) == (2, 6, 2)
        assert (6, " nope FROM t;") in failure.excerpt

        write({"001_a.sql": text.replace("nope", "text").replace("\n", after).encode()})
        assert len(await Migrator(dsn, folder).up()) == 1


class TestAFile:
    async def test_a_file_that_only_builds_an_index_concurrently_needs_no_directive(
        self, dsn: str, write: Write
    ) -> None:
        sql = "CREATE INDEX CONCURRENTLY i ON t (n);\nCREATE UNIQUE INDEX CONCURRENTLY j ON t (n);"
        finished = await Migrator(dsn, write({"001_t.sql": TABLE, "002_i.sql": sql, "003_u.sql": "SELECT 1;"})).up()
        assert [step.statements for step in finished] == [1, 2, 1]
        assert await ask(dsn, VALID, "i")
        assert await ask(dsn, VALID, "j")
        row = (await history(dsn))["2"]
        assert (row["state"], row["statements_done"], row["statements_total"]) == ("applied", 2, 2)
        assert row["finished_at"] > row["started_at"]
        assert row["error"] is None

    async def test_a_file_that_mixes_both_kinds_without_directive_keeps_the_whole_directory_from_running(
        self, dsn: str, write: Write
    ) -> None:
        folder = write({"001_t.sql": TABLE, "002_i.sql": "SELECT 1; CREATE INDEX CONCURRENTLY i ON t (n);"})
        with pytest.raises(FilesError) as caught:
            await Migrator(dsn, folder).up()
        assert [problem.path for problem in caught.value.problems] == [str(folder / "002_i.sql")]
        assert not await exists(dsn, "t")

    async def test_each_statement_commits_together_with_its_count(self, dsn: str, write: Write) -> None:
        look = "INSERT INTO seen SELECT pg_current_xact_id()::xid, statements_done FROM public.schema_migrations;"
        sql = HEAD + "CREATE TABLE seen (id xid, done int);" + look * 2 + "VACUUM seen;" + look
        async with connected(dsn) as connection:
            await Migrator(dsn, write({"001_a.sql": sql})).up()
            rows = await connection.fetch("SELECT id::text, done FROM seen")
        assert [row["done"] for row in rows] == [1, 2, 4]
        assert len({row["id"] for row in rows}) == 3

    async def test_a_statement_is_undone_when_its_count_is_refused(self, dsn: str, write: Write) -> None:
        folder = write({"001_a.sql": "SELECT 1;", "002_b.sql": HEAD + "CREATE TABLE b (); CREATE TABLE c ();"})
        await Migrator(dsn, folder).up(to=1)
        await tell(
            dsn,
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$;"
            "CREATE TRIGGER refuse BEFORE UPDATE ON schema_migrations FOR EACH ROW "
            "WHEN (NEW.statements_done = 2) EXECUTE FUNCTION refuse()",
        )

        error = await failure_of(Migrator(dsn, folder))

        assert error.failure.sqlstate == "P0001"
        assert [await exists(dsn, table) for table in "bc"] == [True, False]
        assert (await history(dsn))["2"]["statements_done"] == 1
        await tell(dsn, "DROP TRIGGER refuse ON schema_migrations")
        assert [step.version for step in await Migrator(dsn, folder).up()] == ["2"]

    async def test_a_file_shows_how_far_it_is(self, dsn: str, write: Write) -> None:
        sql = HEAD + "CREATE TABLE a (); CREATE TABLE b ();" + PASS_GATE + "CREATE TABLE c ();"
        migrator = Migrator(dsn, write({"001_a.sql": sql}), lock_timeout=0)
        async with gate(dsn) as closed, anyio.create_task_group() as tasks:
            tasks.start_soon(migrator.up)
            pid = await closed.reached()
            row = (await history(dsn))["1"]
            assert (row["state"], row["statements_done"], row["statements_total"]) == ("running", 2, 4)
            assert (row["backend_pid"], row["finished_at"]) == (pid, None)
            assert row["backend_start"] == await ask(dsn, f"SELECT backend_start FROM pg_stat_get_activity({pid})")
            assert await exists(dsn, "b")
            (entry,) = await migrator.status()
            assert entry.state is State.RUNNING
            await closed.open()
        assert (await history(dsn))["1"]["statements_done"] == 4

    async def test_a_file_keeps_its_own_settings_from_statement_to_statement(self, dsn: str, write: Write) -> None:
        look = "CREATE TABLE public.seen{} AS SELECT current_user::text || current_setting('{}') AS v;"
        async with a_role(dsn) as role:
            await tell(dsn, f"CREATE SCHEMA ours; GRANT CREATE, USAGE ON SCHEMA ours, public TO {role}")
            sql = (
                f"{HEAD}SET lock_timeout = '1234ms'; SET my.own = 'x';{look.format(1, 'lock_timeout')}"
                f"SET ROLE {role}; SET search_path = ours;{look.format(2, 'my.own')} CREATE TABLE here ();"
                "ANALYZE here; VACUUM here; CREATE TABLE there ();"
                f"CREATE INDEX CONCURRENTLY i ON here ((1)); RESET ROLE;{look.format(3, 'search_path')}"
            )
            await Migrator(dsn, write({"001_a.sql": sql, "002_b.sql": look.format(4, "lock_timeout")})).up()
            me = await ask(dsn, "SELECT current_user::text")
            found = [(await column(dsn, f"SELECT v FROM seen{n}"))[0] for n in (1, 2, 3, 4)]
            assert found == [f"{me}1234ms", f"{role}x", f"{me}ours", f"{me}5s"]
            owner = "SELECT relowner::regrole::text FROM pg_class WHERE oid = to_regclass($1)"
            assert [await ask(dsn, owner, f"ours.{name}") for name in ("here", "there", "i")] == [role] * 3

    async def test_a_file_keeps_a_session_authorization_from_statement_to_statement(
        self, dsn: str, write: Write
    ) -> None:
        async with a_role(dsn) as role:
            await tell(dsn, f"GRANT CREATE ON SCHEMA public TO {role}")
            sql = f"{HEAD}SET SESSION AUTHORIZATION {role}; CREATE TABLE a (); VACUUM a; CREATE TABLE b ();"
            await Migrator(dsn, write({"001_a.sql": sql})).up()
            owner = "SELECT relowner::regrole::text FROM pg_class WHERE oid = to_regclass($1)"
            assert [await ask(dsn, owner, name) for name in ("a", "b")] == [role, role]

    async def test_deferred_constraints_are_checked_under_the_files_own_names_and_role(
        self, dsn: str, write: Write
    ) -> None:
        await tell(
            dsn,
            "CREATE TABLE t (n int); CREATE TABLE audit (n int, path text);"
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
            "INSERT INTO audit VALUES (new.n, current_setting('search_path')); RETURN NULL; END$$;"
            "CREATE CONSTRAINT TRIGGER later AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION f()",
        )
        sql = f"{HEAD}SET search_path = public; INSERT INTO t VALUES (1); VACUUM t;"
        await Migrator(dsn, write({"001_a.sql": sql})).up()
        assert await column(dsn, "SELECT n || path FROM audit") == ["1public"]

    async def test_a_file_keeps_temporary_tables_and_prepared_statements_for_itself(
        self, dsn: str, write: Write
    ) -> None:
        sql = f"{HEAD}CREATE TEMP TABLE x AS SELECT 7 AS n; PREPARE p AS SELECT n FROM x; CREATE TABLE y AS EXECUTE p;"
        await Migrator(dsn, write({"001_a.sql": sql})).up()
        assert await column(dsn, "SELECT n FROM y") == [7]

    @pytest.mark.parametrize(
        ("sql", "statements"),
        [
            (
                "CREATE TABLE p (n int) PARTITION BY HASH (n); CREATE INDEX i ON p (n); REINDEX TABLE p; ANALYZE p",
                4,
            ),
            ("CREATE PROCEDURE f() LANGUAGE plpgsql AS $$BEGIN CREATE TABLE p (); COMMIT; END$$; CALL f();", 2),
            ("CREATE TABLE p (); DO $$BEGIN INSERT INTO p DEFAULT VALUES; COMMIT; END$$;", 2),
        ],
        ids=["REINDEX of a partitioned table", "CALL of a procedure that commits", "DO that commits"],
    )
    async def test_a_file_may_hold_a_statement_that_only_the_server_knows_to_refuse_a_transaction(
        self, dsn: str, write: Write, sql: str, statements: int
    ) -> None:
        (finished,) = await Migrator(dsn, write({"001_p.sql": HEAD + sql})).up()
        assert finished.statements == statements
        assert (await history(dsn))["1"]["statements_done"] == statements
        assert await exists(dsn, "p")

    async def test_a_file_waits_as_long_as_it_takes_for_older_transactions(self, dsn: str, write: Write) -> None:
        await tell(dsn, TABLE)
        migrator = Migrator(dsn, write({"001_i.sql": "CREATE INDEX CONCURRENTLY i ON t (n);"}), lock_timeout=0.05)
        waiting = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND wait_event_type = 'Lock'"
        async with connected(dsn) as old, anyio.create_task_group() as tasks:
            await old.execute("BEGIN; INSERT INTO t VALUES (0)")
            tasks.start_soon(migrator.up)

            async def waits() -> bool:
                return bool(await ask(dsn, waiting))

            await until(waits)
            await anyio.sleep(0.2)
            await old.execute("COMMIT")
        assert await ask(dsn, VALID, "i")

    async def test_a_file_whose_index_comes_out_invalid_fails(self, dsn: str, write: Write) -> None:
        await tell(dsn, "CREATE TABLE t AS SELECT 1 AS n FROM generate_series(1, 2)")
        folder = write({"001_i.sql": "CREATE UNIQUE INDEX CONCURRENTLY i ON t (n);", "002_b.sql": "SELECT 1;"})
        error = await failure_of(Migrator(dsn, folder))
        assert error.failure.sqlstate == "23505"
        assert "(n)=(1)" in str(error.failure.detail)
        assert "fix the data; the invalid index public.i that it left was dropped" in str(error.failure.hint)
        assert not await exists(dsn, "i")
        row = (await history(dsn))["1"]
        assert (row["state"], row["statements_done"]) == ("failed", 0)
        await tell(dsn, "DELETE FROM t")
        assert [step.version for step in await Migrator(dsn, folder).up()] == ["1", "2"]
        assert await ask(dsn, VALID, "i")


class TestAFailureAtStatementThree:
    SQL = HEAD + COUNTED + "CREATE TABLE a ();\nINSERT INTO a VALUES (1);\nCREATE TABLE b ();"

    async def fail(self, dsn: str, write: Write) -> Migrator:
        await tell(dsn, "CREATE SEQUENCE runs")
        migrator = Migrator(dsn, write({"001_a.sql": self.SQL, "002_b.sql": "CREATE TABLE c ();"}))
        error = await failure_of(migrator)
        assert error.finished == ()
        failure = error.failure
        assert (failure.line, failure.column, failure.statement, failure.statements) == (3, 23, 3, 4)
        return migrator

    async def test_a_failure_at_statement_three_is_recorded_with_the_finished_statements(
        self, dsn: str, write: Write
    ) -> None:
        await self.fail(dsn, write)
        row = (await history(dsn))["1"]
        assert (row["state"], row["statements_done"], row["statements_total"]) == ("failed", 2, 4)
        assert "42601" in row["error"]
        assert row["cursor"]
        assert await exists(dsn, "a")
        assert not await exists(dsn, "b")
        assert not await exists(dsn, "c")
        await deserted(dsn)

    async def test_the_next_run_goes_on_from_statement_three_when_only_the_rest_was_fixed(
        self, dsn: str, write: Write
    ) -> None:
        migrator = await self.fail(dsn, write)
        write({"001_a.sql": self.SQL.replace("VALUES (1)", "DEFAULT VALUES").replace("TABLE b", "TABLE bb")})
        assert [step.version for step in await migrator.up()] == ["1", "2"]
        assert await ask(dsn, "SELECT last_value FROM runs") == 1
        assert await exists(dsn, "bb")
        row = (await history(dsn))["1"]
        assert (row["state"], row["statements_done"], row["error"]) == ("applied", 4, None)
        assert await migrator.up() == ()
        await migrator.check()

    async def test_the_next_run_goes_on_from_statement_three_when_the_database_was_fixed(
        self, dsn: str, write: Write
    ) -> None:
        migrator = await self.fail(dsn, write)
        await tell(dsn, "ALTER TABLE a ADD n int")
        await migrator.up()
        assert await ask(dsn, "SELECT last_value FROM runs") == 1

    async def test_the_next_run_goes_on_from_statement_three_with_the_settings_that_were_made(
        self, dsn: str, write: Write
    ) -> None:
        async with a_role(dsn) as role:
            await tell(dsn, f"GRANT CREATE ON SCHEMA public TO {role}")
            settings = (
                f"SET ROLE {role}; SET my.own = 'x'; SET LOCAL my.own = 'y'; SELECT set_config('a.b', 'z', false);"
            )
            look = (
                "CREATE TABLE seen AS SELECT current_user || current_setting('my.own') || current_setting('a.b') AS v;"
            )
            folder = write({"001_a.sql": HEAD + settings + "SELECT nope;" + look})
            await failure_of(Migrator(dsn, folder))
            write({"001_a.sql": HEAD + settings + "SELECT 1;" + look})
            await Migrator(dsn, folder).up()
            assert await column(dsn, "SELECT v FROM seen") == [f"{role}xz"]

    async def test_the_next_run_goes_on_from_statement_three_when_the_sessions_state_ended_with_a_transaction(
        self, dsn: str, write: Write
    ) -> None:
        works = (
            "CREATE FUNCTION work() RETURNS void LANGUAGE plpgsql AS $$BEGIN "
            "CREATE TEMP TABLE x ON COMMIT DROP AS SELECT 1; PERFORM set_config('search_path', 'nowhere', true); END$$;"
        )
        for last in ("SELECT work();", "SELECT work(); VACUUM;", "SET LOCAL search_path = nowhere;"):
            folder = write({"001_a.sql": f"{HEAD}{works}{last}SELECT nope;"})
            await failure_of(Migrator(dsn, folder))
            write({"001_a.sql": f"{HEAD}{works}{last}SELECT 1; DROP FUNCTION work();"})
            assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]
            await tell(dsn, "DROP TABLE schema_migrations")

    async def test_the_next_run_stops_at_the_failed_statement_when_a_temporary_table_is_gone(
        self, dsn: str, write: Write
    ) -> None:
        """It may hide another of that name, which the fixed rest would be let loose on."""
        await tell(dsn, "CREATE TABLE orders AS SELECT 1 AS n")
        made = HEAD + "CREATE TEMP TABLE orders AS SELECT n FROM orders;"
        folder = write({"001_a.sql": made + "DELETE FROM order;"})
        await failure_of(Migrator(dsn, folder))
        write({"001_a.sql": made + "DELETE FROM orders;"})
        for _ in range(2):
            with pytest.raises(HistoryError, match=r"table pg_temp\.orders") as caught:
                await Migrator(dsn, folder).up()
            assert caught.value.versions == ("1",)
        assert await column(dsn, "SELECT n FROM orders") == [1]
        await Migrator(dsn, folder).repair(1, Verdict.NOT_APPLIED, "nothing is left of it")
        assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]
        assert await column(dsn, "SELECT n FROM orders") == [1]

    async def test_the_next_run_goes_on_from_statement_three_when_later_statements_were_added_or_removed(
        self, dsn: str, write: Write
    ) -> None:
        migrator = await self.fail(dsn, write)
        write({"001_a.sql": HEAD + "\n-- fixed\n" + COUNTED + "  CREATE TABLE a ();"})
        await migrator.up()
        row = (await history(dsn))["1"]
        assert (row["statements_done"], row["statements_total"]) == (2, 2)

    @pytest.mark.parametrize("change", [("TABLE a", "TABLE aa"), (COUNTED, ""), (COUNTED, "SELECT 1;" + COUNTED)])
    async def test_the_next_run_refuses_a_file_whose_finished_part_was_edited(
        self, dsn: str, write: Write, change: tuple[str, str]
    ) -> None:
        migrator = await self.fail(dsn, write)
        write({"001_a.sql": self.SQL.replace(*change).replace("VALUES (1)", "DEFAULT VALUES")})
        with pytest.raises(HistoryError) as caught:
            await migrator.up()
        assert caught.value.versions == ("1",)
        assert await states(dsn) == {"1": "failed"}
        write({"001_a.sql": self.SQL.replace("VALUES (1)", "DEFAULT VALUES")})
        await migrator.up()

    async def test_the_next_run_refuses_a_half_done_file_that_now_wants_a_transaction(
        self, dsn: str, write: Write
    ) -> None:
        migrator = await self.fail(dsn, write)
        write({"001_a.sql": "CREATE TABLE a (); CREATE TABLE b ();"})
        with pytest.raises(HistoryError):
            await migrator.up()


class TestTheWayDown:
    FILES: Mapping[str, str] = {
        "001_t.sql": TABLE,
        "001_t.down.sql": "DROP TABLE t;",
        "002_i.sql": "CREATE INDEX CONCURRENTLY i ON t (n);",
        "002_i.down.sql": "DROP INDEX CONCURRENTLY i;",
    }

    async def test_the_way_down_drops_what_was_built(self, dsn: str, write: Write) -> None:
        migrator = Migrator(dsn, write(self.FILES))
        await migrator.up()
        (finished,) = await migrator.down()
        assert (finished.version, finished.direction) == ("2", "down")
        assert not await exists(dsn, "i")
        assert await states(dsn) == {"1": "applied"}
        await migrator.up()
        await migrator.redo(steps=2)
        assert await ask(dsn, VALID, "i")
        await migrator.down(to=0)
        assert await states(dsn) == {}

    async def test_a_way_down_that_failed_halfway_goes_on_down(self, dsn: str, write: Write) -> None:
        down = HEAD + "SELECT nextval('runs');\nDROP INDEX CONCURRENTLY nope;"
        folder = write({**self.FILES, "002_i.down.sql": down})
        await tell(dsn, "CREATE SEQUENCE runs")
        migrator = Migrator(dsn, folder)
        await migrator.up()
        with pytest.raises(Exception, match="nope"):
            await migrator.down()
        row = (await history(dsn))["2"]
        assert (row["state"], row["statements_done"], row["statements_total"]) == ("reverting", 1, 2)
        with pytest.raises(HistoryError) as caught:
            await migrator.up()
        assert caught.value.versions == ("2",)
        write({"002_i.down.sql": down.replace("nope", "i")})
        assert [step.version for step in await migrator.down()] == ["2"]
        assert await ask(dsn, "SELECT last_value FROM runs") == 1
        assert await states(dsn) == {"1": "applied"}
        await migrator.up()


async def test_a_half_done_file_is_finished_by_the_next_run_in_its_own_direction(dsn: str, write: Write) -> None:
    sql = HEAD + COUNTED + PASS_GATE + "CREATE TABLE b ();"
    folder = write({"001_a.sql": sql, "001_a.down.sql": HEAD + COUNTED + PASS_GATE + "DROP TABLE b;"})
    migrator = Migrator(dsn, folder, lock_timeout=0)
    await tell(dsn, "CREATE SEQUENCE runs")

    async def cut_off(verb: Callable[[], Coroutine[Any, Any, object]]) -> int:
        async with gate(dsn) as closed, anyio.create_task_group() as tasks:
            tasks.start_soon(verb)
            pid = await closed.reached()
            tasks.cancel_scope.cancel()
        await deserted(dsn)
        return pid

    for verb, others in ((migrator.up, (migrator.down, migrator.redo)), (migrator.down, (migrator.up,))):
        pid = await cut_off(verb)
        (entry,) = await migrator.status()
        assert entry.state is State.INTERRUPTED
        for other in others:
            with pytest.raises(HistoryError) as caught:
                await other()
            assert caught.value.versions == ("1",)
            facts = (str(pid), "1 of 3", f"`pgratchet {verb.__name__}`", "`pgratchet repair 1`")
            assert all(fact in str(caught.value) for fact in facts)
        with pytest.raises(UsageError if verb == migrator.up else HistoryError):
            await migrator.rehearse()
        (finished,) = await verb()
        assert (finished.version, finished.direction) == ("1", verb.__name__)
    assert await ask(dsn, "SELECT last_value FROM runs") == 2
    assert not await exists(dsn, "b")
    assert await states(dsn) == {}


async def test_a_half_done_version_of_a_newer_image_does_not_hold_up_an_older_one(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "SELECT 1;", "001_a.down.sql": "", "002_b.sql": HEAD + PASS_GATE})
    newer = Migrator(dsn, folder, lock_timeout=0)
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(newer.up)
        await closed.reached()
        (folder / "002_b.sql").unlink()
        older = Migrator(dsn, folder)
        await older.up()
        await older.wait()
        await older.check()
        tasks.cancel_scope.cancel()
    await deserted(dsn)
    for refused in (older.down, Migrator(dsn, folder, strict=True).check, Migrator(dsn, folder, strict=True).up):
        with pytest.raises(HistoryError) as caught:
            await refused()
        assert caught.value.versions == ("2",)
    write({"003_c.sql": "SELECT 1;"})
    assert [step.version for step in await older.up()] == ["3"]
    await older.wait()
    await older.check()
    write({"002_b.sql": HEAD + PASS_GATE})
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["2"]


@pytest.mark.parametrize("older", [{"cursor": "older"}, {"token": "older"}, {"state": RecordState.FAILED}], ids=str)
async def test_a_runner_that_got_on_after_it_was_read_is_not_taken_over(
    dsn: str, write: Write, older: dict[str, Any]
) -> None:
    folder = write({"001_a.sql": HEAD + "CREATE TABLE a (); SELECT 1; SELECT 1/0;"})
    await failure_of(Migrator(dsn, folder))
    await tell(dsn, "UPDATE schema_migrations SET state = 'running', statements_done = 1")
    table = Table.parse(HISTORY)
    async with connected(dsn) as connection:
        rows = await History(table).read(connection)
        entries = planning.compare(own.parse(directory.read(folder)).migrations, rows, own.rank)
        stale = entries[0].row
        assert stale is not None
        migration = entries[0].migration
        assert migration is not None
        script = compile_script(migration.up, Kind.SQL, Direction.UP)
        step = Step(migration, Direction.UP, script, 1, stale._replace(**older))
        records = Records(table, Lock.NONE, Guards())
        claim = records.claim(Claim(step, "mine"), Writer("me", str(stale.backend_start), "0"))
        with pytest.raises(asyncpg.PostgresError, match="not as this run has written it"):
            await connection.execute(claim)
    assert (await history(dsn))["1"]["token"] == stale.token
    write({"001_a.sql": HEAD + "CREATE TABLE a (); SELECT 1; SELECT 1;"})
    await tell(dsn, "UPDATE schema_migrations SET statements_done = 2")
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]


BLOCKED = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
    "AND application_name LIKE 'pgratchet since%'"
)
PROCEDURE = (
    "CREATE TABLE t AS SELECT 1 AS n; CREATE PROCEDURE work() LANGUAGE plpgsql AS "
    "$$ BEGIN COMMIT; ALTER TABLE t ADD m int; END $$"
)


@pytest.mark.parametrize("sql", ["VACUUM FULL t", "REINDEX SCHEMA public", "ALTER TABLE t ADD m int"])
async def test_a_statement_lets_others_pass_while_it_does_not_get_its_lock(dsn: str, write: Write, sql: str) -> None:
    events: list[Event] = []
    folder = write({"001_a.sql": f"-- pgratchet: no-transaction\n-- pgratchet: lock-timeout=100ms\n{sql}"})
    await tell(dsn, "CREATE TABLE t AS SELECT 1 AS n; CREATE INDEX i ON t (n)")
    async with connected(dsn) as reader, anyio.create_task_group() as tasks:
        await reader.execute("BEGIN; SELECT FROM t")
        tasks.start_soon(Migrator(dsn, folder, listener=events.append).up)

        async def tried_twice() -> bool:
            return sum(isinstance(event, Retried) for event in events) > 1

        await until(tried_twice)
        assert await column(dsn, "SELECT n FROM t") == [1]
        await reader.execute("COMMIT")
    assert await states(dsn) == {"1": "applied"}


@pytest.mark.parametrize("sql", ["VACUUM FULL t", "ALTER TABLE t ADD m int", "CALL work()"])
async def test_a_statement_waits_for_ever_where_its_file_says_so(dsn: str, write: Write, sql: str) -> None:
    events: list[Event] = []
    await tell(dsn, PROCEDURE)
    folder = write({"001_a.sql": f"{HEAD}SET lock_timeout = 0; {sql}"})
    async with connected(dsn) as reader, anyio.create_task_group() as tasks:
        await reader.execute("BEGIN; SELECT FROM t")
        tasks.start_soon(Migrator(dsn, folder, lock_timeout=0.05, listener=events.append).up)

        async def waits() -> bool:
            return bool(await ask(dsn, BLOCKED))

        await until(waits)
        await anyio.sleep(0.3)
        assert await waits()
        await reader.execute("COMMIT")
    assert not [event for event in events if isinstance(event, Retried)]
    assert await states(dsn) == {"1": "applied"}


async def test_a_procedure_that_commits_and_then_does_not_get_a_lock_is_in_doubt(dsn: str, write: Write) -> None:
    await tell(dsn, PROCEDURE)
    migrator = Migrator(dsn, write({"001_a.sql": f"{HEAD}CALL work()"}), lock_timeout=0.1)
    async with connected(dsn) as reader:
        await reader.execute("BEGIN; SELECT FROM t")
        assert (await failure_of(migrator)).failure.sqlstate == "55P03"
    with pytest.raises(HistoryError, match=r"statement 1 of 1 \(CALL work\(\)\)"):
        await migrator.up()
    await migrator.repair(1, Verdict.AGAIN, "the column is not there")
    await migrator.up()
    assert await states(dsn) == {"1": "applied"}


async def test_a_count_waits_for_whoever_has_locked_the_history_as_long_as_the_budget_lasts(
    dsn: str, write: Write
) -> None:
    await tell(dsn, TABLE)
    folder = write({"001_i.sql": "CREATE INDEX CONCURRENTLY i ON t (n);"})
    gave_up = anyio.Event()
    async with connected(dsn) as writer, connected(dsn) as stranger, anyio.create_task_group() as tasks:
        await writer.execute("BEGIN; INSERT INTO t VALUES (0)")

        async def run() -> None:
            with pytest.raises(BudgetExceededError, match="up 1 i"):
                await Migrator(dsn, folder, lock_timeout=0.1, budget=0.5).up()
            gave_up.set()

        tasks.start_soon(run)

        async def waits() -> bool:
            return bool(await ask(dsn, BLOCKED))

        await until(waits)
        await stranger.execute("BEGIN; LOCK TABLE schema_migrations IN SHARE MODE")
        await writer.execute("COMMIT")
        with anyio.fail_after(15):
            await gave_up.wait()
    oid = await ask(dsn, "SELECT 'i'::regclass::oid")
    await Migrator(dsn, folder).up()
    assert await ask(dsn, "SELECT 'i'::regclass::oid") == oid


async def test_a_claim_waits_for_whoever_has_locked_the_history(dsn: str, write: Write) -> None:
    """As each step does, again and again: a stranger's lock on our table makes no migration fail."""
    events: list[Event] = []
    migrator = Migrator(dsn, write({"001_a.sql": "SELECT 1;"}), lock_timeout=0.2, listener=events.append)
    await migrator.up()
    write({"002_b.sql": "-- pgratchet: no-transaction\nCREATE TABLE b ();"})
    async with connected(dsn) as stranger, anyio.create_task_group() as tasks:
        await stranger.execute("BEGIN; LOCK TABLE schema_migrations IN SHARE MODE")
        tasks.start_soon(migrator.up)

        async def tried_twice() -> bool:
            return sum(isinstance(event, Retried) for event in events) > 1

        await until(tried_twice)
        await stranger.execute("COMMIT")
    assert await states(dsn) == {"1": "applied", "2": "applied"}
    assert await exists(dsn, "b")
