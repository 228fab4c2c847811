import anyio
import pytest

from pgratchet import Finished, HistoryError, MigrationFailedError, Migrator, UsageError
from tests.support import (
    HISTORY,
    PATIENCE,
    Write,
    a_role,
    ask,
    column,
    connected,
    deserted,
    exists,
    failure_of,
    history,
    states,
    tell,
    until,
)

pytestmark = pytest.mark.anyio

EVERYTHING = "SELECT count(*) FROM pg_class WHERE relnamespace::regnamespace::text NOT LIKE 'pg_%'"


async def test_a_rehearsal_does_everything_and_leaves_nothing(dsn: str, write: Write) -> None:
    code = "async def up(c):\n    async with c.transaction():\n        await c.execute('INSERT INTO a VALUES (1)')"
    files = {
        "001_a.sql": "CREATE TABLE a (n int); SET search_path = ''; CREATE TEMP TABLE x ();",
        "002_b.py": code,
        "003_c.sql": "BEGIN; ALTER TABLE a ADD m int; UPDATE a SET m = n; COMMIT;",
        "004_d.sql": "-- nothing",
    }
    before = await ask(dsn, EVERYTHING)
    migrator = Migrator(dsn, write(files), table="ours.history")
    finished = await migrator.rehearse()
    assert [(step.version, step.statements) for step in finished] == [("1", 3), ("2", 1), ("3", 2), ("4", 0)]
    assert await ask(dsn, EVERYTHING) == before
    assert not await ask(dsn, "SELECT count(*) FROM pg_namespace WHERE nspname = 'ours'")
    await deserted(dsn, 2)

    assert [step.version for step in await migrator.up()] == ["1", "2", "3", "4"]
    assert await migrator.rehearse() == ()


async def test_a_rehearsal_goes_as_far_as_it_is_told(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "SELECT 1;", "002_b.sql": "SELECT 1;", "003_c.sql": "SELECT 1/0;"}))
    assert [step.version for step in await migrator.rehearse(to=2)] == ["1", "2"]


async def test_a_rehearsal_changes_nothing_that_is_recorded_already(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "SELECT 1/0;"})
    await failure_of(Migrator(dsn, folder))
    before = await history(dsn)
    write({"002_b.sql": "DROP TABLE a;"})
    assert [step.version for step in await Migrator(dsn, folder).rehearse()] == ["2"]
    assert await history(dsn) == before
    assert await exists(dsn, "a")
    await Migrator(dsn, folder).up()


@pytest.mark.parametrize(
    ("sql", "line", "sqlstate"),
    [("SELECT 1;\nSELECT nope;", 2, "42703"), ("SELECT 1;\nSELEC;", 2, "42601"), ("SELECT 1/0;", 1, "22012")],
)
async def test_a_rehearsal_says_where_it_fails(dsn: str, write: Write, sql: str, line: int, sqlstate: str) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();", "002_b.sql": sql})
    with pytest.raises(MigrationFailedError) as caught:
        await Migrator(dsn, folder).rehearse()
    failure = caught.value.failure
    assert (failure.version, failure.line, failure.sqlstate) == ("2", line, sqlstate)
    assert not await exists(dsn, HISTORY)
    assert not await exists(dsn, "a")


async def test_a_rehearsal_says_where_a_python_migration_fails(dsn: str, write: Write) -> None:
    folder = write(
        {"001_a.py": "async def up(c):\n    await c.execute('CREATE TABLE a ()')\n    raise ValueError('x')\n"}
    )
    with pytest.raises(MigrationFailedError) as caught:
        await Migrator(dsn, folder).rehearse()
    assert caught.value.failure.line == 3
    assert not await exists(dsn, "a")


async def test_a_python_migration_that_exits_fails_the_rehearsal_and_not_the_process(dsn: str, write: Write) -> None:
    folder = write({"001_a.py": "import sys\nasync def up(c):\n    sys.exit(3)\n"})
    with pytest.raises(MigrationFailedError, match="SystemExit") as caught:
        await Migrator(dsn, folder).rehearse()
    assert caught.value.failure.line == 3
    write({"001_a.py": "async def up(c): pass\n"})
    assert [step.version for step in await Migrator(dsn, folder).rehearse()] == ["1"]


async def test_a_rehearsal_notices_constraints_that_would_fail_at_the_end(dsn: str, write: Write) -> None:
    sql = (
        "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (p int REFERENCES p DEFERRABLE INITIALLY DEFERRED);"
        "INSERT INTO c VALUES (1);"
    )
    with pytest.raises(MigrationFailedError) as caught:
        await Migrator(dsn, write({"001_a.sql": sql})).rehearse()
    assert caught.value.failure.sqlstate == "23503"


@pytest.mark.parametrize("sql", ["CREATE INDEX CONCURRENTLY i ON a (n);", "-- pgratchet: no-transaction\nSELECT 1;"])
async def test_a_rehearsal_with_a_step_that_cannot_be_undone_is_refused_before_anything_is_done(
    dsn: str, write: Write, sql: str
) -> None:
    await tell(dsn, "CREATE SEQUENCE runs")
    folder = write({"001_a.sql": "CREATE TABLE a (n int); SELECT nextval('runs');", "002_b.sql": sql})
    with pytest.raises(UsageError) as caught:
        await Migrator(dsn, folder).rehearse()
    assert str(folder / "002_b.sql") in str(caught.value)
    assert not await ask(dsn, "SELECT is_called FROM runs")
    assert len(await Migrator(dsn, folder).rehearse(to=1)) == 1
    await Migrator(dsn, folder).up()


@pytest.mark.parametrize("create", ["001_e.sql", "000_e.sql"])
async def test_a_rehearsal_names_an_enum_value_as_the_one_thing_it_cannot_do(
    dsn: str, write: Write, create: str
) -> None:
    files = {
        create: "CREATE TYPE mood AS ENUM ('ok');",
        "002_e.sql": "ALTER TYPE mood ADD VALUE 'new';",
        "003_e.sql": "CREATE TABLE t AS SELECT 'new'::mood AS m;",
    }
    migrator = Migrator(dsn, write(files))
    # From PostgreSQL 17 on, a type that is made in the same transaction is no trouble.
    await migrator.up(to=int(create[:3]))
    with pytest.raises(MigrationFailedError) as caught:
        await migrator.rehearse()
    assert (caught.value.failure.version, caught.value.failure.sqlstate) == ("3", "55P04")
    assert caught.value.failure.hint is not None
    assert "cannot be rehearsed" in caught.value.failure.hint
    await migrator.up()
    assert await column(dsn, "SELECT m::text FROM t") == ["new"]


async def test_a_rehearsal_goes_on_after_it_has_waited_for_the_lock_on_the_history(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "CREATE TABLE a ();"}), budget=PATIENCE)
    await migrator.up()
    write({"002_b.sql": "DROP TABLE a;"})
    blocked = "SELECT query_start FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with connected(dsn) as other, anyio.create_task_group() as group:
        await other.execute(f"BEGIN; LOCK TABLE {HISTORY} IN SHARE MODE")
        finished: list[Finished] = []

        async def rehearse() -> None:
            finished.extend(await migrator.rehearse())

        group.start_soon(rehearse)
        first = await until(lambda: ask(dsn, blocked))
        await until(lambda: ask(dsn, f"{blocked} AND query_start > $1", first))
        await other.execute("COMMIT")

    assert [step.version for step in finished] == ["2"]


async def test_a_rehearsal_is_refused_where_files_and_history_disagree(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})
    await Migrator(dsn, folder).up()
    write({"001_a.sql": "SELECT 2;", "002_b.sql": "SELECT 1;"})
    with pytest.raises(HistoryError):
        await Migrator(dsn, folder).rehearse()


@pytest.mark.parametrize("end", ["COMMIT;", "COMMIT; BEGIN;", "ROLLBACK;"])
async def test_a_script_that_ends_the_transaction_commits_nothing_of_a_rehearsal(
    dsn: str, write: Write, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgratchet.core.sql.scripts._forbidden_controls", lambda *_: [])
    folder = write({"001_a.sql": f"CREATE TABLE a (); {end} SELECT 1;", "002_b.sql": "CREATE TABLE b ();"})
    with pytest.raises(MigrationFailedError) as caught:
        await Migrator(dsn, folder).rehearse()
    assert caught.value.failure.version == "1"
    assert not await exists(dsn, "b")


async def test_a_rehearsal_leaks_nothing_from_step_to_step(dsn: str, write: Write) -> None:
    leaked = "current_setting('search_path') = 'x' OR current_user <> session_user"
    look = f"DO $$BEGIN IF {leaked} THEN RAISE 'x'; END IF; END$$;"
    async with a_role(dsn) as role:
        files = {
            "001_a.sql": f"SET search_path = x; SET ROLE {role}; PREPARE p AS SELECT 1; LISTEN x;",
            "002_b.sql": look,
        }
        assert len(await Migrator(dsn, write(files)).rehearse()) == 2


async def test_a_rehearsal_shows_what_would_fail_again(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "SELECT 1/0;"})
    await failure_of(Migrator(dsn, folder))
    with pytest.raises(MigrationFailedError):
        await Migrator(dsn, folder).rehearse()
    assert await states(dsn) == {"1": "failed"}


async def test_a_failure_without_a_position_is_told_with_its_statement(dsn: str, write: Write) -> None:
    sql = "CREATE TABLE a (n int PRIMARY KEY);\nSELECT 1;\nINSERT INTO a VALUES (1), (1);\nSELECT 2;"

    with pytest.raises(MigrationFailedError) as caught:
        await Migrator(dsn, write({"001_a.sql": sql})).rehearse()

    assert (caught.value.failure.line, caught.value.failure.statement) == (3, 3)
