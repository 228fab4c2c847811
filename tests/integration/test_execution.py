import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import anyio
import pytest

from pgratchet import BudgetExceededError, Failure, Lock, MigrationFailedError, Migrator, State, embedded
from tests.poolers import pgbouncer
from tests.support import (
    PASS_GATE,
    PATIENCE,
    Write,
    a_role,
    as_role,
    ask,
    column,
    connected,
    exists,
    failure_of,
    gate,
    history,
    needs_plain_escapes,
    states,
    tell,
    without_tls,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

SEQUENCE = "CREATE SEQUENCE tries"


def five(broken: int, sql: str) -> Mapping[str, str]:
    """Return five files of which one holds `sql`, behind two statements of its own."""
    files = {f"{n:03}_t{n}.sql": f"CREATE TABLE t{n} ();\nSELECT {n};\n" for n in range(1, 6)}
    files[f"{broken:03}_t{broken}.sql"] += sql
    return files


class TestOneTransaction:
    async def test_one_transaction_holds_claim_script_and_record(self, dsn: str, write: Write) -> None:
        look = "CREATE TABLE seen AS SELECT version, state, token, pg_current_xact_id()::xid AS id FROM {};"
        folder = write({"001_look.sql": look.format("public.schema_migrations")})

        (finished,) = await Migrator(dsn, folder).up()

        assert (finished.version, finished.name, finished.direction) == ("1", "look", "up")
        assert await column(dsn, "SELECT state FROM seen") == ["running"]
        same = "SELECT s.token = h.token AND s.id = h.xmin FROM seen s JOIN schema_migrations h USING (version)"
        assert await ask(dsn, same)

    @pytest.mark.parametrize("suffix", ["sql", "py"])
    async def test_the_transaction_is_undone_when_the_record_is_refused(
        self, dsn: str, write: Write, suffix: str
    ) -> None:
        write({"001_first.sql": "CREATE TABLE first ();"})
        second = {
            "sql": "CREATE TABLE second ();",
            "py": "async def up(connection):\n    await connection.execute('CREATE TABLE second ()')\n",
        }
        folder = write({f"002_second.{suffix}": second[suffix]})
        await Migrator(dsn, folder).up(to=1)
        await tell(
            dsn,
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$;"
            "CREATE TRIGGER refuse BEFORE UPDATE ON schema_migrations FOR EACH ROW "
            "WHEN (NEW.state = 'applied') EXECUTE FUNCTION refuse()",
        )

        error = await failure_of(Migrator(dsn, folder))

        assert error.failure.sqlstate == "P0001"
        assert not await exists(dsn, "second")
        assert await states(dsn) == {"1": "applied"}
        await tell(dsn, "DROP TRIGGER refuse ON schema_migrations")
        assert [step.version for step in await Migrator(dsn, folder).up()] == ["2"]

    async def test_a_script_may_use_savepoints(self, dsn: str, write: Write) -> None:
        sql = "CREATE TABLE a (); SAVEPOINT s; CREATE TABLE b (); ROLLBACK TO SAVEPOINT s; RELEASE SAVEPOINT s;"
        await Migrator(dsn, write({"001_s.sql": sql, "002_t.sql": "SELECT 1;"})).up()
        assert (await exists(dsn, "a"), await exists(dsn, "b")) == (True, False)

    async def test_the_transaction_that_a_file_opens_is_the_one_of_its_record(self, dsn: str, write: Write) -> None:
        look = "CREATE TABLE seen AS SELECT pg_current_xact_id()::xid AS id;"
        await Migrator(dsn, write({"001_own.sql": f"-- head\nBEGIN;\n{look}\nCOMMIT; -- done"})).up()
        assert await ask(dsn, "SELECT id = (SELECT xmin FROM schema_migrations) FROM seen")

    @pytest.mark.parametrize(
        ("text", "level"),
        [
            ("BEGIN ISOLATION LEVEL SERIALIZABLE; {} COMMIT;", "serializable"),
            ("START TRANSACTION ISOLATION LEVEL REPEATABLE READ; {} END;", "repeatable read"),
            ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; {}", "serializable"),
            ("BEGIN; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; {} COMMIT;", "serializable"),
            ("{}", "read committed"),
        ],
    )
    async def test_the_transaction_has_the_isolation_that_the_file_asks_for(
        self, dsn: str, write: Write, text: str, level: str
    ) -> None:
        look = "CREATE TABLE seen{} AS SELECT current_setting('transaction_isolation');"
        files = {"001_a.sql": "SELECT 1;", "002_b.sql": text.format(look.format(1)), "003_c.sql": look.format(2)}
        await Migrator(dsn, write(files)).up()
        assert await column(dsn, "TABLE seen1") == [level]
        assert await column(dsn, "TABLE seen2") == ["read committed"]

    @pytest.mark.parametrize(
        "setting",
        [
            "default_transaction_isolation = 'serializable'",
            "default_transaction_isolation = 'repeatable read'",
            "default_transaction_deferrable = on",
            "search_path = ''",
            "client_min_messages = error",
            "standard_conforming_strings = off",
            "synchronous_commit = off",
            "lock_timeout = '1ms'",
            "statement_timeout = '10s'",
            "DateStyle = 'German'",
        ],
    )
    async def test_a_step_runs_in_a_transaction_whatever_defaults_the_role_has(
        self, dsn: str, write: Write, setting: str
    ) -> None:
        files = {
            "001_a.sql": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; CREATE TABLE public.a (t text);",
            "002_b.sql": "INSERT INTO public.a VALUES ('\\'); INSERT INTO public.nope VALUES (1);",
            "003_c.sql": "-- pgratchet: no-transaction\nCREATE INDEX CONCURRENTLY i ON public.a (t); ANALYZE public.a;",
            "004_d.py": "async def up(connection):\n    await connection.execute('CREATE TABLE public.d ()')\n",
        }
        if "conforming" in setting:
            await needs_plain_escapes(dsn)
            files["002_b.sql"] = files["002_b.sql"].replace("'\\'", "'\\\\'")
        async with a_role(dsn, "SUPERUSER") as role:
            await tell(dsn, f"ALTER ROLE {role} SET {setting}")
            migrator = Migrator(as_role(dsn, role), write(files))
            error = await failure_of(migrator)
            assert (error.failure.version, error.failure.sqlstate) == ("2", "42P01")
            assert await states(dsn) == {"1": "applied", "2": "failed"}

            write({"002_b.sql": files["002_b.sql"].replace("nope", "a")})
            await migrator.up()
            await migrator.check()

            assert set((await states(dsn)).values()) == {"applied"}


class TestAFailure:
    @pytest.mark.parametrize("broken", [1, 2, 3, 5])
    @pytest.mark.parametrize(
        "at", [("SELECT 1/0;", "22012", 1), ("SELECT nope;", "42703", 8), ("  SELEC 1;", "42601", 3)]
    )
    async def test_a_failure_stops_the_run_where_it_happened(
        self, dsn: str, write: Write, broken: int, at: tuple[str, str, int]
    ) -> None:
        sql, sqlstate, column_ = at
        folder = write(five(broken, sql))

        error = await failure_of(Migrator(dsn, folder))

        before = [str(n) for n in range(1, broken)]
        assert [step.version for step in error.finished] == before
        assert await states(dsn) == dict.fromkeys(before, "applied") | {str(broken): "failed"}
        assert [n for n in range(1, 6) if await exists(dsn, f"t{n}")] == list(range(1, broken))
        failure = error.failure
        assert (failure.version, failure.name, failure.sqlstate) == (str(broken), f"t{broken}", sqlstate)
        assert (failure.line, failure.column) == (3, column_)
        assert (failure.statement, failure.statements) == (3, 3)
        assert failure.path == str(folder / f"{broken:03}_t{broken}.sql")

        write(five(broken, "SELECT 1;"))
        assert [step.version for step in await Migrator(dsn, folder).up()] == [str(n) for n in range(broken, 6)]
        assert (await history(dsn))[str(broken)]["error"] is None

    async def test_a_failure_is_recorded_with_all_that_is_known(self, dsn: str, write: Write) -> None:
        folder = write({"001_broken.sql": "SELECT 1;\nSELECT 1/0;"})
        await failure_of(Migrator(dsn, folder))
        (entry,) = await Migrator(dsn, folder).status()
        row = (await history(dsn))["1"]
        assert entry.state is State.FAILED
        assert entry.migration is not None
        assert row["checksum"] == entry.migration.checksum
        assert "division by zero" in row["error"]
        assert "22012" in row["error"]
        assert row["finished_at"] is not None
        assert row["token"] is not None

    async def test_the_next_run_tries_a_failed_migration_again_as_it_is(self, dsn: str, write: Write) -> None:
        migrator = Migrator(dsn, write({"001_late.sql": "INSERT INTO missing VALUES (1);"}))
        await failure_of(migrator)
        await failure_of(migrator)
        await tell(dsn, "CREATE TABLE missing (n int)")
        await migrator.up()
        assert await states(dsn) == {"1": "applied"}

    async def test_a_failure_of_the_fifth_of_ten_keeps_the_four_before_it(self, dsn: str, write: Write) -> None:
        files = {f"{n:02}_t.sql": f"CREATE TABLE t{n} ();" for n in range(1, 11)} | {"05_t.sql": "CREATE TABEL t5 ();"}
        error = await failure_of(Migrator(dsn, write(files)))
        assert [step.version for step in error.finished] == ["1", "2", "3", "4"]
        assert (error.failure.line, error.failure.column, error.failure.statement) == (1, 8, 1)


@pytest.fixture(scope="module")
def lazy(memory: Path | None) -> Iterator[str]:
    """To a server that makes asynchronous commits durable only when it is asked to."""
    with embedded.server(tcp=True, folder=memory, settings={"wal_writer_delay": "10s"}) as server:
        yield server.dsn


class TestWhatWasFinished:
    """Commits that share a message are asynchronous but for the last: what is reported has to be durable."""

    NOTE = "INSERT INTO lsn SELECT pg_current_wal_insert_lsn(), current_setting('synchronous_commit');"
    FLUSHED = "SELECT pg_current_wal_flush_lsn() >= max(at) AND count(*) = $1 FROM lsn"

    @pytest.fixture
    async def files(self, lazy: str) -> dict[str, str]:
        await tell(lazy, "DROP TABLE IF EXISTS lsn, busy, schema_migrations; CREATE TABLE busy ()")
        files = {f"{n:03}_t.sql": f"CREATE TABLE IF NOT EXISTS t{n} ();" for n in range(3, 12, 2)}
        files |= {f"{n:03}_n.sql": self.NOTE for n in range(2, 13, 2)}
        return files | {"001_t.sql": "CREATE TABLE lsn (at pg_lsn, mode text);"}

    async def test_finished_steps_are_durable_at_the_end(self, lazy: str, write: Write, files: dict[str, str]) -> None:
        async with connected(lazy) as connection:
            await Migrator(lazy, write(files)).up()
            assert await connection.fetchval(self.FLUSHED, 6)
        assert await column(lazy, "SELECT mode FROM lsn ORDER BY at") == ["off"] * 5 + ["on"]

    @pytest.mark.parametrize("end", ["SELECT 1/0;", "SELEC", "COMMIT;", "CREATE TABLE lsn ();"])
    async def test_finished_steps_are_durable_when_the_next_one_fails(
        self, lazy: str, write: Write, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, *, end: str
    ) -> None:
        monkeypatch.setattr("pgratchet.core.sql.scripts._forbidden_controls", lambda *_: [])
        async with connected(lazy) as connection:
            await failure_of(Migrator(lazy, write(files | {"007_t.sql": end})))
            assert await connection.fetchval(self.FLUSHED, 3)

    async def test_finished_steps_are_durable_when_the_next_one_waits_in_vain(
        self, lazy: str, write: Write, files: dict[str, str]
    ) -> None:
        folder = write(files | {"007_t.sql": "ALTER TABLE busy RENAME TO idle;"})
        async with connected(lazy) as connection, connected(lazy) as other:
            await other.execute("BEGIN; LOCK TABLE busy")
            with anyio.fail_after(10), pytest.raises(BudgetExceededError):
                await Migrator(without_tls(lazy), folder, lock_timeout=0.05, budget=0.2).up()
            assert await connection.fetchval(self.FLUSHED, 3)


class Broken(NamedTuple):
    text: str
    sqlstate: str
    line: int
    column: int | None
    statement: int


PLACES = {
    "a syntax error": Broken("CREATE TABLE a ();\n\n  SELEC 1;\nSELECT 2;", "42601", 3, 3, 2),
    "a statement that ends too early": Broken("CREATE TABLE a ();\nSELECT (1", "42601", 2, None, 2),
    "one in the middle": Broken("CREATE TABLE a ();\nSELECT 1 +;\nSELECT 2;", "42601", 2, None, 2),
    "an unknown column": Broken("SELECT 1;\nSELECT 2,\n  nope FROM pg_class;\n", "42703", 3, 3, 2),
    "an unknown table": Broken("SELECT 1; SELECT 2; SELECT * FROM nope", "42P01", 1, 35, 3),
    "no position": Broken("SELECT 1;\n\n-- note\nSELECT 1/0;\nSELECT 2;", "22012", 4, 1, 2),
    "no position, one statement": Broken("\n\nALTER TABLE nope ADD a int;", "42P01", 3, 1, 1),
    "a constraint": Broken("CREATE TABLE a (n int CHECK (n > 0));INSERT INTO a VALUES (0);", "23514", 1, 38, 2),
    "an SQL function's body": Broken(
        "SELECT 1;\nCREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$\n  SELECT nope FROM pg_class\n$$;",
        "42703", 3, 10, 2,
    ),
    "a plpgsql function's body": Broken(
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$\nBEGIN\n  RETRUN 1;\nEND $$;", "42601", 3, 3, 1
    ),
    "inside a DO block": Broken("SELECT 1;\nDO $$BEGIN\n PERFORM 1/0;\nEND$$;", "22012", 2, 1, 2),
    "characters of several bytes before": Broken("-- äöü\nSELECT '€😀', '日本', nope;", "42703", 2, 20, 1),
    "CRLF line endings": Broken("SELECT 1;\r\nSELECT 2;\r\nSELECT nope;\r\n", "42703", 3, 8, 3),
    "a byte order mark": Broken("\ufeffSELECT nope;", "42703", 1, 8, 1),
    "an absorbed BEGIN": Broken("BEGIN;\nSELECT 1;\nSELECT nope;\nCOMMIT;", "42703", 3, 8, 2),
    "an absorbed BEGIN, no position": Broken("BEGIN;\nSELECT 1;\nSELECT 1/0;\nCOMMIT;", "22012", 3, 1, 2),
    "a comment without its newline": Broken("SELECT 1;\nSELECT 1/0 -- the end", "22012", 2, 1, 2),
}  # fmt: skip


class TestThePlaceOfAnError:
    @pytest.mark.parametrize("neighbours", ["alone", "in company"])
    @pytest.mark.parametrize("broken", PLACES.values(), ids=PLACES.keys())
    async def test_the_place_of_an_error_is_found(
        self, dsn: str, write: Write, broken: Broken, neighbours: str
    ) -> None:
        files = {"002_broken.sql": broken.text}
        if neighbours == "in company":
            files |= {"001_before.sql": "SELECT 1; SELECT '😀';", "003_after.sql": "SELECT 1;"}
        failure = (await failure_of(Migrator(dsn, write(files)))).failure
        assert (failure.version, failure.sqlstate) == ("2", broken.sqlstate)
        assert failure.statement == broken.statement
        assert failure.line == broken.line
        assert broken.column in {None, failure.column}
        assert broken.line in dict(failure.excerpt)

    async def test_an_error_of_a_deferred_constraint_is_at_the_end_of_the_script(self, dsn: str, write: Write) -> None:
        sql = (
            "CREATE TABLE p (id int PRIMARY KEY);\n"
            "CREATE TABLE c (p int REFERENCES p DEFERRABLE INITIALLY DEFERRED);\n"
            "INSERT INTO c VALUES (7);\nSELECT 1;"
        )
        failure = (await failure_of(Migrator(dsn, write({"001_deferred.sql": sql})))).failure
        assert failure.sqlstate == "23503"
        assert failure.detail is not None
        assert "(p)=(7)" in failure.detail
        assert failure.statement is None
        assert not await exists(dsn, "c")

    @pytest.mark.parametrize("broken", [1, 2, 200, 201])
    async def test_the_place_of_an_error_is_exact_in_files_of_up_to_201_statements(
        self, dsn: str, write: Write, broken: int
    ) -> None:
        lines = ["SELECT 1;"] * 201
        lines[broken - 1] = "SELECT 1/0;"
        failure = (await failure_of(Migrator(dsn, write({"001_many.sql": "\n".join(lines)})))).failure
        assert (failure.line, failure.statement, failure.statements) == (broken, broken, 201)

    @pytest.mark.parametrize("broken", [1, 333, 450])
    async def test_the_place_of_an_error_is_close_by_in_longer_files(self, dsn: str, write: Write, broken: int) -> None:
        lines = ["SELECT 1;"] * 450
        lines[broken - 1] = "SELECT 1/0;"
        failure = (await failure_of(Migrator(dsn, write({"001_many.sql": "\n".join(lines)})))).failure
        assert failure.line is not None
        assert failure.line <= broken < failure.line + 3
        assert failure.statement in {None, broken}
        assert failure.statements == 450

    async def test_the_place_of_an_error_is_exact_in_longer_files_where_the_server_names_it(
        self, dsn: str, write: Write
    ) -> None:
        lines = ["SELECT 1;"] * 450
        lines[332] = "SELECT nope;"
        failure = (await failure_of(Migrator(dsn, write({"001_many.sql": "\n".join(lines)})))).failure
        assert (failure.line, failure.column, failure.statement) == (333, 8, 333)

    async def test_the_place_of_an_error_is_known_without_plpgsql_as_far_as_the_server_names_it(
        self, dsn: str, write: Write
    ) -> None:
        await tell(dsn, "DROP EXTENSION plpgsql")
        folder = write({"001_a.sql": "SELECT 1; SELECT 2;", "002_b.sql": "SELECT 1;\nSELECT 1/0;"})
        failure = (await failure_of(Migrator(dsn, folder))).failure
        assert (failure.version, failure.line) == ("2", None)
        write({"002_b.sql": "SELECT 1;\nSELECT nope;"})
        assert (await failure_of(Migrator(dsn, folder))).failure.line == 2

    async def test_an_error_comes_with_context_and_hint(self, dsn: str, write: Write) -> None:
        sql = (
            "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$\n"
            "BEGIN RAISE 'no' USING DETAIL = 'the detail', HINT = 'the hint', ERRCODE = 'ZZ001'; END $$;\n"
            "SELECT f();"
        )
        failure: Failure = (await failure_of(Migrator(dsn, write({"001_f.sql": sql})))).failure
        assert (failure.message, failure.detail, failure.hint, failure.sqlstate) == (
            "no", "the detail", "the hint", "ZZ001",
        )  # fmt: skip
        assert failure.context is not None
        assert "function f()" in failure.context
        assert (failure.line, failure.statement) == (3, 2)

    @pytest.mark.parametrize(
        ("sql", "refused", "code"),
        [
            ("CREATE TABLE p (n int) PARTITION BY RANGE (n);", "REINDEX TABLE p;", "25001"),
            ("CREATE PROCEDURE p() LANGUAGE plpgsql AS $$BEGIN COMMIT; END$$;", "CALL p();", "2D000"),
            ("CREATE TABLE p ();", "DO $$BEGIN DROP TABLE p; COMMIT; END$$;", "2D000"),
        ],
    )
    async def test_an_error_of_a_statement_that_refuses_transactions_comes_with_the_cure(
        self, dsn: str, write: Write, sql: str, refused: str, code: str
    ) -> None:
        folder = write({"001_p.sql": f"{sql}\n{refused}"})
        failure = (await failure_of(Migrator(dsn, folder))).failure
        assert failure.sqlstate == code
        assert failure.hint is not None
        assert "no-transaction" in failure.hint
        write({"001_p.sql": sql, "002_q.sql": f"-- pgratchet: no-transaction\n{refused}"})
        await Migrator(dsn, folder).up()


SETTINGS_OF_NEW_SESSIONS = {
    "of the database": "ALTER DATABASE {database} SET search_path TO hello;",
    "of the role there": "ALTER ROLE CURRENT_USER IN DATABASE {database} SET search_path = hello, public;",
    "by a DO": "DO $$BEGIN EXECUTE format('alter database %I set search_path to hello', current_database()); END$$;",
    "by a text that is put together": (
        "DO $$BEGIN EXECUTE 'ALTER DATA' || 'BASE ' || current_database() || ' SET search_path = hello'; END$$;"
    ),
    "of all roles": "ALTER ROLE ALL IN DATABASE {database} SET search_path TO hello;",
    "with comments": "ALTER /* it */ DATABASE -- this\n {database} SET search_path TO hello;",
    "without a transaction": "-- pgratchet: no-transaction\nALTER DATABASE {database} SET search_path TO hello;",
}


@pytest.mark.parametrize("lock", [None, "session", "transaction", "none"])
@pytest.mark.parametrize("sql", SETTINGS_OF_NEW_SESSIONS.values(), ids=SETTINGS_OF_NEW_SESSIONS.keys())
@pytest.mark.parametrize("by_release", [False, True], ids=["at once", "release by release"])
async def test_settings_of_new_sessions_hold_for_the_next_file(
    dsn: str, write: Write, sql: str, lock: Lock | None, *, by_release: bool
) -> None:
    if sql.startswith("--") and lock in {"transaction", "none"}:
        pytest.skip("such a file needs the lock of a session")
    first = sql.format(database=await ask(dsn, "SELECT current_database()"))
    files = {"001_a.sql": first, "002_b.sql": "CREATE SCHEMA hello;", "003_c.sql": "CREATE TABLE c ();"}
    migrator = Migrator(dsn, write(files), lock=lock)
    before = await migrator.up("1") if by_release else ()
    report = (*before, *await migrator.up())
    assert [step.version for step in report] == ["1", "2", "3"]
    assert await ask(dsn, "SELECT schemaname FROM pg_tables WHERE tablename = 'c'") == "hello"
    assert await ask(dsn, "SELECT schemaname FROM pg_tables WHERE tablename = 'schema_migrations'") == "public"


PREFER = """
CREATE FUNCTION public.prefer(path text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN EXECUTE format('alter database %I set search_path to %I', current_database(), path); END$$;
"""


@pytest.mark.parametrize("lock", [None, "transaction"])
@pytest.mark.parametrize("by_release", [False, True], ids=["at once", "release by release"])
async def test_settings_that_a_function_changes_hold_for_the_next_file_and_no_longer_than_until_the_next_change(
    dsn: str, write: Write, lock: Lock | None, *, by_release: bool
) -> None:
    files = {
        "001_a.sql": f"CREATE SCHEMA hello; CREATE SCHEMA later; {PREFER}",
        "002_b.sql": "SELECT public.prefer('hello');",
        "003_c.sql": "CREATE TABLE c ();",
        "004_d.sql": "CREATE TABLE d ();",
        "005_e.py": "async def up(connection):\n    await connection.execute(\"SELECT public.prefer('later')\")\n",
        "006_f.sql": "-- pgratchet: no-transaction\nCREATE TABLE f ();" if lock is None else "CREATE TABLE f ();",
        "007_g.sql": "DO $$BEGIN EXECUTE format('alter database %I reset all', current_database()); END$$;",
        "008_h.sql": "CREATE TABLE h ();",
    }
    migrator = Migrator(dsn, write(files), lock=lock)
    report = [step for to in range(1, 9) if by_release or to == 8 for step in await migrator.up(to)]
    assert [step.version for step in report] == list("12345678")
    made = await ask(
        dsn, "SELECT array_agg(schemaname::text ORDER BY tablename) FROM pg_tables WHERE tablename ~ '^.$'"
    )
    assert made == ["hello", "hello", "later", "public"]


async def test_settings_that_a_way_down_changes_hold_for_the_way_up_behind_it(dsn: str, write: Write) -> None:
    files = {
        "001_a.sql": f"CREATE SCHEMA hello; {PREFER}",
        "002_b.sql": "CREATE TABLE b ();",
        "002_b.down.sql": "DROP TABLE b; SELECT public.prefer('hello');",
    }
    migrator = Migrator(dsn, write(files))
    await migrator.up()
    assert [str(step.direction) for step in await migrator.redo()] == ["down", "up"]
    assert await ask(dsn, "SELECT schemaname FROM pg_tables WHERE tablename = 'b'") == "hello"


async def test_settings_of_other_roles_and_databases_end_no_session(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_role(dsn) as role:
        files = {"001_a.sql": f"ALTER ROLE {role} SET work_mem = '1MB';", "002_b.sql": "CREATE TABLE b ();"}
        with caplog.at_level("INFO", "pgratchet"):
            assert len(await Migrator(dsn, write(files)).up()) == 2
    assert [record for record in caplog.records if "goes on in one" in record.getMessage()] == []


async def test_a_run_ends_where_a_pooler_keeps_its_sessions_when_settings_change(dsn: str, write: Write) -> None:
    files = {f"00{at}_x.sql": f"SELECT public.prefer('s{at}'); CREATE TABLE t{at} ();" for at in range(2, 6)}
    async with pgbouncer(dsn, size=1) as pooler:
        with anyio.fail_after(PATIENCE):
            finished = await Migrator(pooler.dsn, write({"001_a.sql": PREFER} | files)).up()
    assert [step.version for step in finished] == list("12345")


async def test_a_python_migration_may_change_the_settings_of_new_sessions(dsn: str, write: Write) -> None:
    body = """
    name = await connection.fetchval("SELECT quote_ident(current_database())")
    await connection.execute(f"ALTER DATABASE {name} SET search_path TO hello")
"""
    files = {"001_a.py": f"async def up(connection):\n{body}", "002_b.sql": "CREATE SCHEMA hello; CREATE TABLE c ();"}
    await Migrator(dsn, write(files)).up()
    assert await ask(dsn, "SELECT to_regclass('public.c')") is None


class TestALargeFile:
    ROWS = 48
    ROW = f"INSERT INTO big VALUES ('{'ü' * 100_000}');\n"

    def text(self, end: str = "") -> str:
        return "CREATE TABLE big (t text);\n" + self.ROW * self.ROWS + end

    async def test_a_large_file_is_applied_whole(self, dsn: str, write: Write) -> None:
        files = {"001_big.sql": self.text("-- the end"), "002_small.sql": "CREATE TABLE small ();"}
        finished = await Migrator(dsn, write(files)).up()
        assert [step.statements for step in finished] == [self.ROWS + 1, 1]
        assert await ask(dsn, "SELECT count(*) FROM big WHERE length(t) = 100000") == self.ROWS
        assert await ask(dsn, "SELECT count(DISTINCT xmin::text) FROM big") == 1

    @pytest.mark.parametrize(("end", "sqlstate"), [("SELECT 1/0;", "22012"), ("SELECT nope", "42703")])
    async def test_a_large_file_is_undone_whole(self, dsn: str, write: Write, end: str, sqlstate: str) -> None:
        folder = write({"001_big.sql": self.text(end), "002_small.sql": "CREATE TABLE small ();"})
        failure = (await failure_of(Migrator(dsn, folder))).failure
        assert (failure.sqlstate, failure.statements) == (sqlstate, self.ROWS + 2)
        if sqlstate == "42703":
            assert (failure.line, failure.column, failure.statement) == (self.ROWS + 2, 8, self.ROWS + 2)
        else:
            assert failure.statement in {None, self.ROWS + 2}
        assert not await exists(dsn, "big")
        assert await states(dsn) == {"1": "failed"}
        write({"001_big.sql": self.text()})
        assert len(await Migrator(dsn, folder).up()) == 2

    async def test_a_large_file_leaves_no_transaction_open_between_its_parts(self, dsn: str, write: Write) -> None:
        folder = write({"001_big.sql": self.text("ALTER TABLE big ADD n int; SELECT nope"), "002_s.sql": "SELECT 1;"})
        await failure_of(Migrator(dsn, folder))
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start < now()"
        assert await ask(dsn, query) == 0


class TestAFileWithoutAStatement:
    @pytest.mark.parametrize("text", ["", "\n", ";", ";;\n;", "-- a comment", "/* a\ncomment */ -- and one", "\ufeff"])
    async def test_a_file_without_a_statement_is_a_migration_too(self, dsn: str, write: Write, text: str) -> None:
        folder = write({"001_a.sql": "CREATE TABLE a ();", "002_empty.sql": text, "003_c.sql": "CREATE TABLE c ();"})
        finished = await Migrator(dsn, folder).up()
        assert [step.statements for step in finished] == [1, 0, 1]
        assert await exists(dsn, "c")
        assert (await history(dsn))["2"]["state"] == "applied"

    @pytest.mark.parametrize("text", ["", "-- pgratchet: no-transaction", "BEGIN; COMMIT;"])
    async def test_a_file_without_a_statement_may_be_alone(self, dsn: str, write: Write, text: str) -> None:
        await Migrator(dsn, write({"001_empty.sql": text})).up()
        assert await states(dsn) == {"1": "applied"}


@pytest.mark.parametrize("end", ["-- the end", "/* the end */", "; -- the end", "", ";;", "\\restrict x"])
async def test_the_end_of_a_file_swallows_nothing(dsn: str, write: Write, end: str) -> None:
    files = {"001_a.sql": f"CREATE TABLE a () {end}", "002_b.sql": f"CREATE TABLE b ();\nSELECT 1 {end}"}
    if "\\" in end:
        files = {name: f"{text.removesuffix(end)};\n{end}" for name, text in files.items()}
    await Migrator(dsn, write(files)).up()
    assert await states(dsn) == {"1": "applied", "2": "applied"}
    assert await exists(dsn, "b")


LEAKS = {
    "a setting": "SET search_path TO pg_catalog; SET my.setting = 'x'; SET statement_timeout = '7s';",
    "a role": "SET ROLE {role};",
    "an authorization": "SET SESSION AUTHORIZATION {role};",
    "both": "SET SESSION AUTHORIZATION {role}; SET ROLE {role};",
    "a temporary table": "CREATE TEMP TABLE leak (n int);",
    "a prepared statement": "PREPARE leak AS SELECT 1;",
    "a subscription to notices": "LISTEN leak;",
    "a cursor": "DECLARE leak CURSOR WITH HOLD FOR SELECT generate_series(1, 10);",
    "a sequence's last value": "CREATE SEQUENCE leaking; SELECT nextval('leaking');",
    "a session without replication": "SET session_replication_role = replica; SET default_tablespace = 'pg_default';",
}
LOOK = """
CREATE TABLE public.seen AS SELECT current_user AS a, session_user AS b, current_setting('search_path') AS c,
    current_setting('my.setting', true) IS DISTINCT FROM 'x' AS d, to_regclass('pg_temp.leak') IS NULL AS e,
    (SELECT count(*) FROM pg_prepared_statements WHERE name = 'leak') AS f,
    (SELECT count(*) FROM pg_listening_channels()) AS g, (SELECT count(*) FROM pg_cursors WHERE name = 'leak') AS h,
    current_setting('statement_timeout') AS i, current_setting('lock_timeout') AS j,
    current_setting('session_replication_role') AS k, current_setting('default_tablespace') AS l;
DO $$BEGIN PERFORM lastval(); RAISE 'leaked'; EXCEPTION WHEN object_not_in_prerequisite_state THEN END$$;
"""
UNLEAKED = ("postgres", "postgres", '"$user", public', True, True, 0, 0, 0, "0", "5s", "origin", "")


def leaking(kind: str, sql: str) -> dict[str, str]:
    match kind:
        case "file":
            return {"001_leak.sql": sql}
        case "statements":
            return {"001_leak.sql": f"-- pgratchet: no-transaction\n{sql}"}
        case "Python":
            return {"001_leak.py": f"async def up(connection):\n    await connection.execute({sql!r})\n"}
        case _:
            raise AssertionError(kind)


class TestNothingLeaks:
    @pytest.mark.parametrize("kind", ["file", "statements", "Python"])
    @pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS.keys())
    async def test_nothing_leaks_into_the_next_migration(self, dsn: str, write: Write, leak: str, kind: str) -> None:
        async with a_role(dsn) as role:
            files = leaking(kind, leak.format(role=role))
            await Migrator(dsn, write(files | {"002_look.sql": LOOK, "003_c.sql": "CREATE TABLE c ();"})).up()
            async with connected(dsn) as connection:
                row = await connection.fetchrow("SELECT * FROM seen")
            assert row is not None
            user = await ask(dsn, "SELECT current_user")
            assert tuple(row) == (user, user, *UNLEAKED[2:])
            assert await exists(dsn, "public.c")

    @pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS.keys())
    async def test_nothing_leaks_into_another_try_of_the_same_migration(
        self, dsn: str, write: Write, leak: str
    ) -> None:
        await tell(dsn, SEQUENCE + "; GRANT ALL ON SEQUENCE tries TO public")
        again = "DO $$BEGIN IF nextval('public.tries') < 3 THEN RAISE 'no' USING ERRCODE = '55P03'; END IF; END$$;"
        async with a_role(dsn) as role:
            await Migrator(dsn, write({"001_leak.sql": LOOK + leak.format(role=role) + again})).up()
            async with connected(dsn) as connection:
                row = await connection.fetchrow("SELECT * FROM seen")
            assert row is not None
            assert tuple(row)[2:] == UNLEAKED[2:]
        assert await ask(dsn, "SELECT last_value FROM tries") == 3


CATALOG = ", SCHEMA = 'pg_catalog', TABLE = 'pg_type', CONSTRAINT = 'pg_type_typname_nsp_index'"


class TestATemporaryError:
    @pytest.mark.parametrize(
        ("position", "error"),
        [
            (1, "'timeout' USING ERRCODE = '55P03'"),
            (3, "'timeout' USING ERRCODE = '55P03'"),
            (5, "'deadlock' USING ERRCODE = '40P01'"),
            (2, "'serialization' USING ERRCODE = '40001'"),
            (4, "'tuple concurrently updated' USING ERRCODE = 'XX000'"),
            (3, f"'duplicate key' USING ERRCODE = '23505'{CATALOG}"),
        ],
    )
    async def test_a_temporary_error_is_tried_again(self, dsn: str, write: Write, position: int, error: str) -> None:
        await tell(dsn, SEQUENCE)
        sql = f"DO $$BEGIN IF nextval('tries') < 3 THEN RAISE {error}; END IF; END$$;"
        finished = await Migrator(dsn, write(five(position, sql))).up()
        assert [step.version for step in finished] == ["1", "2", "3", "4", "5"]
        assert await ask(dsn, "SELECT last_value FROM tries") == 3
        assert set((await states(dsn)).values()) == {"applied"}

    @pytest.mark.parametrize("code", ["P0001", "23505", "57014", "XX000", "53100", "25P02"])
    async def test_any_other_error_is_not_tried_again(self, dsn: str, write: Write, code: str) -> None:
        await tell(dsn, SEQUENCE)
        sql = f"SELECT nextval('tries'); DO $$BEGIN RAISE 'no' USING ERRCODE = '{code}'; END$$;"
        assert (await failure_of(Migrator(dsn, write({"001_a.sql": sql})))).failure.sqlstate == code
        assert await ask(dsn, "SELECT last_value FROM tries") == 1

    @pytest.mark.parametrize("code", ["08001", "57P01"])
    async def test_a_lost_connection_that_the_script_itself_reports_is_not_tried_again(
        self, dsn: str, write: Write, code: str
    ) -> None:
        """As dblink and postgres_fdw do when they cannot reach another server."""
        await tell(dsn, SEQUENCE)
        sql = f"SELECT nextval('tries'); DO $$BEGIN RAISE 'no' USING ERRCODE = '{code}'; END$$;"
        migrator = Migrator(dsn, write({"001_a.sql": sql}), budget=1)
        assert (await failure_of(migrator)).failure.sqlstate == code
        assert await ask(dsn, "SELECT last_value FROM tries") == 1

    async def test_a_lock_that_another_session_holds_for_a_while_is_tried_again(
        self, dsn: str, write: Write, caplog: pytest.LogCaptureFixture
    ) -> None:
        await tell(dsn, "CREATE TABLE busy (n int)")
        folder = write({"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "ALTER TABLE busy ADD m int;"})
        with caplog.at_level(logging.WARNING, "pgratchet"), anyio.fail_after(20):
            async with connected(dsn, application_name="night batch") as batch, anyio.create_task_group() as tasks:
                await batch.execute("BEGIN; LOCK TABLE busy IN ACCESS SHARE MODE")
                tasks.start_soon(Migrator(dsn, folder, lock_timeout=0.1).up)
                while not told(caplog, "55P03"):  # noqa: ASYNC110 - the log has no event
                    await anyio.sleep(0.02)
                await batch.execute("COMMIT")
        assert await states(dsn) == {"1": "applied", "2": "applied"}

    async def test_a_retry_of_a_temporary_error_is_told_with_its_blocker(
        self, dsn: str, write: Write, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pgratchet.postgres.wire.sending.LOOK_AFTER", 0.1)
        await tell(dsn, "CREATE TABLE busy (n int)")
        folder = write({"001_a.sql": "ALTER TABLE busy ADD m int;"})
        with caplog.at_level(logging.WARNING, "pgratchet"):
            async with connected(dsn, application_name="night batch") as batch:
                await batch.execute("BEGIN; LOCK TABLE busy IN ACCESS SHARE MODE")
                with pytest.raises(BudgetExceededError, match="night batch"):
                    await Migrator(dsn, folder, lock_timeout=0.5, budget=0.6).up()
        assert [message for message in messages(caplog) if "55P03" in message and "night batch" in message]

    async def test_a_temporary_error_fails_when_the_budget_is_used_up(self, dsn: str, write: Write) -> None:
        await tell(dsn, "CREATE TABLE busy (n int)")
        folder = write({"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "ALTER TABLE busy ADD m int;"})
        async with connected(dsn) as batch:
            await batch.execute("BEGIN; LOCK TABLE busy IN ACCESS SHARE MODE")
            with anyio.fail_after(10), pytest.raises(BudgetExceededError):
                await Migrator(dsn, folder, lock_timeout=0.1, budget=0.5).up()
            assert await exists(dsn, "a")
        assert [step.version for step in await Migrator(dsn, folder).up()] == ["2"]

    async def test_a_deadlock_is_tried_again(self, dsn: str, write: Write) -> None:
        await tell(dsn, "CREATE TABLE one (); CREATE TABLE two (); CREATE SEQUENCE tries")
        sql = (
            f"SET deadlock_timeout = '20ms'; SELECT nextval('tries'); LOCK TABLE one; {PASS_GATE} LOCK TABLE two;"
            "CREATE TABLE done ();"
        )
        migrator = Migrator(dsn, write({"001_a.sql": sql}), lock_timeout=0)
        with anyio.fail_after(20):
            async with gate(dsn) as closed, connected(dsn) as other, anyio.create_task_group() as tasks:
                tasks.start_soon(migrator.up)
                await closed.reached()
                await other.execute("SET deadlock_timeout = '60s'; BEGIN; LOCK TABLE two")
                tasks.start_soon(other.execute, "LOCK TABLE one; COMMIT")
                await closed.open()
        assert await exists(dsn, "done")
        assert await ask(dsn, "SELECT last_value FROM tries") > 1

    async def test_a_conflict_of_serializable_transactions_is_tried_again(self, dsn: str, write: Write) -> None:
        await tell(dsn, "CREATE TABLE counter AS SELECT 0 AS n; CREATE SEQUENCE tries")
        sql = (
            "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT nextval('tries'), n FROM counter;"
            f"{PASS_GATE} UPDATE counter SET n = n + 1; COMMIT;"
        )
        migrator = Migrator(dsn, write({"001_a.sql": sql}), lock_timeout=0)
        with anyio.fail_after(20):
            async with gate(dsn) as closed, anyio.create_task_group() as tasks:
                tasks.start_soon(migrator.up)
                await closed.reached()
                await tell(dsn, "UPDATE counter SET n = n + 10")
                await closed.open()
        assert await ask(dsn, "SELECT n FROM counter") == 11
        assert await ask(dsn, "SELECT last_value FROM tries") == 2


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def told(caplog: pytest.LogCaptureFixture, what: str) -> bool:
    return any(what in message for message in messages(caplog))


REVOKE = "REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC"
TWO = "CREATE TABLE x ();\nCREATE TABLE y ();\n"


class TestMarkersWithoutPlpgsql:
    """A marker is one statement in PL/pgSQL; it must not fail the script that it stands in."""

    async def test_a_role_without_the_right_to_plpgsql_applies_files(self, dsn: str, write: Write) -> None:
        await tell(dsn, REVOKE)
        folder = write({"001_a.sql": TWO, "002_b.sql": "SELECT 1;\nSELECT nope;"})
        async with a_role(dsn, "") as role:
            await tell(dsn, f"GRANT ALL ON SCHEMA public TO {role}")
            failure = (await failure_of(Migrator(as_role(dsn, role), folder))).failure
            assert (failure.version, failure.line, failure.sqlstate) == ("2", 2, "42703")
            write({"002_b.sql": "SELECT 1; SELECT 2;"})
            assert len(await Migrator(as_role(dsn, role), folder).up()) == 1

    async def test_an_owner_without_the_right_to_plpgsql_applies_files(self, dsn: str, write: Write) -> None:
        await tell(dsn, REVOKE)
        async with a_role(dsn, "") as role:
            await tell(dsn, f"GRANT ALL ON SCHEMA public TO {role}")
            assert len(await Migrator(dsn, write({"001_a.sql": TWO}), owner=role).up()) == 1

    @pytest.mark.parametrize(
        "taking",
        [
            "DROP EXTENSION plpgsql;",
            f"{REVOKE}; SET ROLE pg_monitor; RESET ROLE;",
            f"{REVOKE}; SET SESSION AUTHORIZATION pg_monitor; RESET SESSION AUTHORIZATION;",
            "SET search_path = ''; SET client_min_messages = error; SET search_path = public;",
        ],
    )
    @pytest.mark.parametrize("apart", [False, True])
    async def test_a_script_may_take_plpgsql_away(self, dsn: str, write: Write, taking: str, *, apart: bool) -> None:
        files = {"001_a.sql": "CREATE TABLE a ();", "003_c.sql": TWO}
        files |= {"002_b.sql": taking} if apart else {"002_b.sql": f"{taking} CREATE TABLE b ();"}
        migrator = Migrator(dsn, write(files))

        assert len(await migrator.rehearse()) == 3
        assert [step.version for step in await migrator.up()] == ["1", "2", "3"]

    async def test_an_error_about_plpgsql_of_the_script_fails_it(self, dsn: str, write: Write) -> None:
        sql = "DROP EXTENSION plpgsql;\nDO LANGUAGE plpgsql $$BEGIN END$$;"
        folder = write({"001_a.sql": TWO, "002_b.sql": sql})
        failure = (await failure_of(Migrator(dsn, folder))).failure
        assert (failure.version, failure.sqlstate) == ("2", "42704")
        write({"002_b.sql": "DROP EXTENSION plpgsql;"})
        assert len(await Migrator(dsn, folder).up()) == 1


class TestAMessageThatTheServerRefusesAsAWhole:
    """It converts and reads all of a message before it runs any of it, and names no position."""

    @pytest.fixture
    async def latin(self, dsn: str) -> AsyncIterator[str]:
        name = f"latin_{uuid4().hex}"
        await tell(dsn, f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
        yield urlsplit(dsn)._replace(path=f"/{name}").geturl()
        await tell(dsn, f"DROP DATABASE {name} WITH (FORCE)")

    TABLES: ClassVar = {f"{n:03}_t.sql": f"CREATE TABLE t{n} (t text);" for n in (1, 2, 4)}

    @pytest.mark.parametrize(
        "sql",
        [
            "CREATE TABLE t3 (t text);\nCOMMENT ON TABLE t3 IS '\u2603';",
            'CREATE TABLE t3 (t text);\n-- \u2603\nCREATE TABLE t5 (); CREATE TABLE "\u2603" ();',
            "CREATE TABLE t3 (t text);\nCREATE TABLE t5 (\n  t text DEFAULT '\u00e9\u2603' -- \u2603\n);",
        ],
    )
    async def test_the_file_with_the_character_fails_and_those_before_it_are_applied(
        self, latin: str, write: Write, sql: str
    ) -> None:
        folder = write(self.TABLES | {"003_c.sql": sql})

        error = await failure_of(Migrator(latin, folder))

        line = next(n for n, text in enumerate(sql.split("\n"), 1) if "\u2603" in text and not text.startswith("--"))
        assert (error.failure.version, error.failure.sqlstate, error.failure.line) == ("3", "22P05", line)
        assert error.failure.path.endswith("003_c.sql")
        assert await states(latin) == {"1": "applied", "2": "applied", "3": "failed"}
        write({"003_c.sql": "CREATE TABLE t3 ();"})
        assert [step.version for step in await Migrator(latin, folder).up()] == ["3", "4"]

    async def test_a_title_that_cannot_be_converted_fails_its_own_file(self, latin: str, write: Write) -> None:
        files = {"001_gr\u00f6\u00dfe.sql": "CREATE TABLE t1 ();", "002_\u7528\u6237.sql": "CREATE TABLE t2 ();"}

        migrator = Migrator(latin, write(files))

        error = await failure_of(migrator)

        assert (error.failure.version, error.failure.line) == ("2", None)
        assert "rename the file" in (error.failure.hint or "")
        assert [entry.state for entry in await migrator.status()] == ["applied", "failed"]
        assert (await history(latin))["2"]["name"] == r"\u7528\u6237"
        renamed = write({"002_users.sql": "CREATE TABLE t2 ();"})
        await anyio.Path(error.failure.path).unlink()
        assert [step.version for step in await Migrator(latin, renamed).up()] == ["2"]

    async def test_the_statement_of_a_long_file_is_found_by_the_character(self, latin: str, write: Write) -> None:
        lines = [f"SELECT {n};\n" for n in range(1, 401)]
        lines[320] = "SELECT '\u2603';\n"

        error = await failure_of(Migrator(latin, write({"001_a.sql": "".join(lines)})))

        assert (error.failure.line, error.failure.statement) == (321, 321)

    @pytest.mark.parametrize("before", [0, 1, 6, 300])
    @pytest.mark.parametrize("after", [0, 5])
    async def test_a_string_that_is_no_text_fails_its_own_statement(
        self, dsn: str, write: Write, before: int, after: int
    ) -> None:
        sql = "INSERT INTO t1 DEFAULT VALUES;\n" * before + "COMMENT ON TABLE t1 IS E'\\xff';\n" + "SELECT 1;\n" * after

        error = await failure_of(Migrator(dsn, write(self.TABLES | {"003_c.sql": sql})))

        failure = error.failure
        assert (failure.version, failure.sqlstate) == ("3", "22021")
        assert (failure.line, failure.column, failure.statement) == (before + 1, 1, before + 1)
        assert await states(dsn) == {"1": "applied", "2": "applied", "3": "failed"}
        assert f"line {before + 1}" in (await history(dsn))["3"]["error"]
        assert await ask(dsn, "SELECT count(*) FROM t1") == 0
        write({"003_c.sql": sql.replace("\\xff", "x")})
        assert [step.version for step in await Migrator(dsn, write({})).up()] == ["3", "4"]

    async def test_a_string_that_is_no_text_is_found_in_a_rehearsal(self, dsn: str, write: Write) -> None:
        sql = "SELECT 1;\nSELECT 2;\nSELECT E'\\xff';\nSELECT 4;"
        migrator = Migrator(dsn, write({"001_c.sql": sql}))

        with pytest.raises(MigrationFailedError) as caught:
            await migrator.rehearse()

        assert (caught.value.failure.sqlstate, caught.value.failure.line) == ("22021", 3)
        write({"001_c.sql": "SELECT 1;"})
        assert len(await migrator.rehearse()) == 1

    async def test_an_error_of_a_value_is_at_its_statement(self, dsn: str, write: Write) -> None:
        sql = "SELECT 1;\nSELECT convert_to(chr(9731), 'LATIN1');\nSELECT 3;"
        error = await failure_of(Migrator(dsn, write({"001_a.sql": sql})))
        assert (error.failure.sqlstate, error.failure.line) == ("22P05", 2)


SEEN = "CREATE TABLE seen (step int, at timestamptz DEFAULT now(), clock timestamptz DEFAULT clock_timestamp());"


class TestTheClock:
    """PostgreSQL starts now() once for each message."""

    @pytest.mark.parametrize(
        ("between", "second"),
        [
            ("CREATE TABLE t ();", "INSERT INTO seen VALUES (2);"),
            ("SELECT 1;", "INSERT INTO seen VALUES (2);"),
            ("CREATE TABLE t ();", "CREATE TABLE u AS SELECT now();INSERT INTO seen VALUES (2);"),
            (
                "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'INSERT INTO seen VALUES (2) RETURNING 1';",
                "ALTER TABLE seen ADD COLUMN x int DEFAULT f();",
            ),
        ],
    )
    async def test_now_is_later_than_the_commit_of_the_steps_before(
        self, dsn: str, write: Write, between: str, second: str
    ) -> None:
        if "DEFAULT f()" in second:
            # The table that is rewritten cannot be the one that is written to.
            second = f"CREATE TABLE t (); {second}".replace("TABLE seen ADD", "TABLE old ADD")
            between += "CREATE TABLE old AS SELECT 1 AS id;"
        first = f"{SEEN} INSERT INTO seen VALUES (1); SELECT pg_sleep(0.05);"

        await Migrator(dsn, write({"001_a.sql": first, "002_b.sql": between, "003_c.sql": second})).up()

        later = "SELECT min(at) FILTER (WHERE step = 2) > max(clock) FILTER (WHERE step = 1) + '50 ms' FROM seen"
        assert await ask(dsn, later)

    async def test_a_versioning_trigger_accepts_a_fresh_install(self, dsn: str, write: Write) -> None:
        rows = (
            "CREATE TABLE t (id int, since timestamptz);"
            "CREATE FUNCTION versioned() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
            "IF OLD.since >= now() THEN RAISE 'of the same moment'; END IF; NEW.since = now(); RETURN NEW; END$$;"
            "CREATE TRIGGER versioned BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION versioned();"
        )
        files = {
            "001_a.sql": rows,
            "002_b.sql": "INSERT INTO t VALUES (1, now());",
            "003_c.sql": "UPDATE t SET id = 2;",
            "004_d.sql": "DO $$BEGIN UPDATE t SET id = 3; END$$;",
        }
        assert len(await Migrator(dsn, write(files)).up()) == 4

    @pytest.mark.parametrize("made", ["before", "by its name", "by a text that is put together", "by a function"])
    async def test_an_event_trigger_sees_each_step_at_a_time_of_its_own(
        self, dsn: str, write: Write, made: str
    ) -> None:
        prepared = (
            "CREATE TABLE log (at timestamptz);"
            "CREATE FUNCTION log() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO log VALUES (now()); "
            "END$$;"
            "CREATE FUNCTION make() RETURNS void LANGUAGE plpgsql AS $$BEGIN EXECUTE concat('CREATE EV', 'ENT TRIGGER "
            "log ON ddl_command_end WHEN TAG IN (''CREATE SEQUENCE'') EXECUTE FUNCTION log()'); END$$;"
        )
        by_name = "CREATE EVENT TRIGGER log ON ddl_command_end WHEN TAG IN ('CREATE SEQUENCE') EXECUTE FUNCTION log();"
        files = {f"{number:03}_s.sql": f"CREATE SEQUENCE s{number};" for number in range(2, 6)}
        await tell(dsn, prepared)
        if made == "before":
            await tell(dsn, by_name)
        elif made == "by a function":
            files["001_a.sql"] = "SELECT make();"
        else:
            text = by_name.replace("'", "''").replace("CREATE EVENT", "CREATE EV' || 'ENT")
            files["001_a.sql"] = by_name if made == "by its name" else f"DO $$BEGIN EXECUTE '{text}'; END$$;"

        await Migrator(dsn, write(files)).up()

        assert await ask(dsn, "SELECT count(DISTINCT at) = 4 AND count(*) = 4 FROM log")


class TestLimits:
    async def test_limits_of_the_directives_are_in_effect(self, dsn: str, write: Write) -> None:
        look = (
            "CREATE TABLE {} AS SELECT current_setting('lock_timeout') AS l, current_setting('statement_timeout') AS s;"
        )
        head = "-- pgratchet: lock-timeout=750ms\n-- pgratchet: statement-timeout=2min\n"
        folder = write(
            {"001_a.sql": look.format("a"), "002_b.sql": head + look.format("b"), "003_c.sql": look.format("c")}
        )
        await Migrator(dsn, folder, lock_timeout=3, statement_timeout=60).up()
        limits = await column(
            dsn, "SELECT a::text FROM a UNION ALL SELECT b::text FROM b UNION ALL SELECT c::text FROM c"
        )
        assert limits == ["(3s,1min)", "(750ms,2min)", "(3s,1min)"]

    @pytest.mark.parametrize("text", ["SELECT pg_sleep(60);", "BEGIN; SELECT 1; SELECT pg_sleep(60); COMMIT;"])
    async def test_a_limit_stops_a_statement_that_takes_too_long(self, dsn: str, write: Write, text: str) -> None:
        folder = write({"001_a.sql": f"-- pgratchet: statement-timeout=50ms\n{text}"})
        assert (await failure_of(Migrator(dsn, folder))).failure.sqlstate == "57014"
        write({"001_a.sql": "SELECT 1;"})
        await Migrator(dsn, folder).up()


async def test_notices_of_the_script_are_logged(dsn: str, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pgratchet"):
        await Migrator(dsn, write({"001_a.sql": "DO $$BEGIN RAISE NOTICE 'half way'; END$$; SELECT 1;"})).up()
    assert any("half way" in record.getMessage() for record in caplog.records)


async def test_rows_that_a_script_selects_disturb_nobody(dsn: str, write: Write) -> None:
    text = "SELECT * FROM generate_series(1, 1000); COPY (SELECT 1) TO STDOUT; SHOW search_path;"
    await Migrator(dsn, write({"001_a.sql": text, "002_b.sql": text})).up()
    assert await states(dsn) == {"1": "applied", "2": "applied"}
