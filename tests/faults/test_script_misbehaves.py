"""Scripts that reach for what is not theirs: the transaction, the lock, the history, the session."""

from functools import partial
from typing import Literal

import anyio
import pytest

from pgratchet import HistoryError, MigrationFailedError, Migrator
from pgratchet.core.sql import scripts
from tests.support import (
    HEAD,
    LOCK_KEY,
    PASS_GATE,
    Write,
    a_role,
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
    until,
)

pytestmark = pytest.mark.anyio

GOOD = "CREATE TABLE good ();"

AGAINST_THE_HISTORY = {
    "deletes its own row": "DELETE FROM public.schema_migrations WHERE version = '2';",
    "empties the table": "DELETE FROM public.schema_migrations;",
    "truncates the table": "TRUNCATE public.schema_migrations;",
    "drops the table": "DROP TABLE public.schema_migrations;",
    "renames the table": "ALTER TABLE public.schema_migrations RENAME TO other;",
    "puts another table in its place": (
        "ALTER TABLE public.schema_migrations RENAME TO other;"
        "CREATE TABLE public.schema_migrations (LIKE other INCLUDING ALL);"
    ),
    "changes its own token": "UPDATE public.schema_migrations SET token = 'mine' WHERE version = '2';",
    "changes its own version": "UPDATE public.schema_migrations SET version = '22' WHERE version = '2';",
    "writes its own row anew": (
        "DELETE FROM public.schema_migrations WHERE version = '2';"
        "INSERT INTO public.schema_migrations (version, name, kind, checksum, state) "
        "VALUES ('2', 'bad', 'sql', 'x', 'running');"
    ),
    "drops a column": "ALTER TABLE public.schema_migrations DROP COLUMN token;",
}

AGAINST_THE_LOCK = {
    "releases all locks": "SELECT pg_advisory_unlock_all();",
    "releases the lock": f"SELECT pg_advisory_unlock({LOCK_KEY}), pg_advisory_unlock({LOCK_KEY});",
}

NEUTRALISED = {
    "takes on another role": "SET ROLE {role};",
    "takes on another authorization": "SET SESSION AUTHORIZATION {role};",
    "does both": "SET SESSION AUTHORIZATION {role}; SET ROLE {role};",
    "does both for the transaction": "SET LOCAL SESSION AUTHORIZATION {role}; SET LOCAL ROLE {role};",
    "goes to another schema": "CREATE SCHEMA other; SET search_path = other;",
    "shadows what is in pg_catalog": (
        "CREATE SCHEMA shadow; CREATE FUNCTION shadow.count(bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 99::bigint';"
        "CREATE FUNCTION shadow.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz';"
        "CREATE FUNCTION shadow.eq(text, text) RETURNS bool LANGUAGE sql AS 'SELECT false';"
        "CREATE OPERATOR shadow.= (LEFTARG = text, RIGHTARG = text, FUNCTION = shadow.eq);"
        "SET search_path = shadow, pg_catalog;"
    ),
    "makes a temporary table of the history's name": "CREATE TEMP TABLE schema_migrations (n int);",
    "resets everything": "RESET ALL; RESET ROLE; DEALLOCATE ALL; DISCARD PLANS; DISCARD SEQUENCES; DISCARD TEMP;",
    "sets its own limits": "SET lock_timeout = '1ms'; SET statement_timeout = '30s'; SET work_mem = '64kB';",
    "disables triggers": "SET session_replication_role = replica;",
    "commits asynchronously": "SET synchronous_commit = off;",
    "writes quotes and backslashes otherwise": "SET standard_conforming_strings = off; SET bytea_output = 'escape';",
    "says less": "SET client_min_messages = error;",
    "writes dates otherwise": "SET DateStyle = 'German'; SET TimeZone = 'Asia/Kolkata';",
    "is one row short": "SELECT * FROM public.schema_migrations LIMIT 0;",
}


Lock = Literal["session", "transaction", "none"]
SESSION: Lock = "session"
TRANSACTION: Lock = "transaction"
NONE: Lock = "none"
every_lock = pytest.mark.parametrize("lock", [SESSION, TRANSACTION, NONE])
every_kind = pytest.mark.parametrize(
    ("kind", "lock"),
    [(kind, lock) for lock in (SESSION, TRANSACTION, NONE) for kind in ("sql", "py")] + [("statements", SESSION)],
)
WAITS = {
    TRANSACTION: "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%xact_lock(%' AND state = 'idle'",
    NONE: "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted",
}
"""Says whether the second of two runners is kept out."""


def bad(kind: str, sql: str) -> dict[str, str]:
    """Return the second migration, of that kind, which makes a table and does what the SQL says."""
    match kind:
        case "py":
            made = f"CREATE TABLE bad (); {sql}"
            return {"002_bad.py": f"async def up(connection):\n    await connection.execute({made!r})\n"}
        case "statements":
            # What comes before a statement that fails is kept.
            return {"002_bad.sql": f"{HEAD}SELECT 1; {sql} CREATE TABLE bad ();"}
        case _:
            return {"002_bad.sql": f"CREATE TABLE bad (); {sql}"}


async def refused(dsn: str, migrator: Migrator, *, fenced: bool) -> MigrationFailedError:
    error = await failure_of(migrator)
    assert [step.version for step in error.finished] == ["1"]
    assert error.failure.version == "2"
    assert not await exists(dsn, "public.bad")
    assert not await exists(dsn, "public.after")
    if fenced:
        assert error.failure.hint is not None
        assert "must not end its transaction" in error.failure.hint
    return error


class TestAScript:
    @every_kind
    @pytest.mark.parametrize("sql", AGAINST_THE_HISTORY.values(), ids=AGAINST_THE_HISTORY.keys())
    async def test_a_script_that_touches_the_history_fails(
        self, dsn: str, write: Write, sql: str, kind: str, lock: Lock
    ) -> None:
        folder = write({"001_good.sql": GOOD, **bad(kind, sql), "003_after.sql": "CREATE TABLE after ();"})
        migrator = Migrator(dsn, folder, lock=lock)
        fenced = not any(word in sql for word in ("DROP", "RENAME"))
        await refused(dsn, migrator, fenced=fenced)
        assert await states(dsn) == {"1": "applied", "2": "failed"}
        assert (await history(dsn))["2"]["error"]

        write(bad(kind, ""))
        assert [step.version for step in await migrator.up()] == ["2", "3"]
        assert await exists(dsn, "bad")

    @pytest.mark.parametrize("sql", AGAINST_THE_LOCK.values(), ids=AGAINST_THE_LOCK.keys())
    @pytest.mark.parametrize("suffix", ["sql", "py"])
    async def test_a_script_that_gives_the_lock_away_fails(self, dsn: str, write: Write, sql: str, suffix: str) -> None:
        body = f"CREATE TABLE bad (); {sql}"
        if suffix == "py":
            body = f"async def up(connection):\n    await connection.execute({body!r})\n"
        folder = write({"001_good.sql": GOOD, f"002_bad.{suffix}": body, "003_after.sql": "CREATE TABLE after ();"})
        await refused(dsn, Migrator(dsn, folder), fenced=True)
        assert await states(dsn) == {"1": "applied", "2": "failed"}

        write({f"002_bad.{suffix}": body.replace(sql, "")})
        assert [step.version for step in await Migrator(dsn, folder).up()] == ["2", "3"]

    @pytest.mark.parametrize("sql", AGAINST_THE_LOCK.values(), ids=AGAINST_THE_LOCK.keys())
    @pytest.mark.parametrize("kind", ["sql", "py"])
    @pytest.mark.parametrize("lock", [TRANSACTION, NONE])
    async def test_a_script_cannot_give_away_a_lock_of_its_transaction(
        self, dsn: str, write: Write, sql: str, kind: str, lock: Lock
    ) -> None:
        folder = write({"001_good.sql": GOOD, **bad(kind, sql + PASS_GATE), "003_after.sql": "SELECT 3;"})
        first, second = (Migrator(dsn, folder, lock=lock, lock_timeout=0) for _ in range(2))
        finished: list[str] = []

        async def run(migrator: Migrator) -> None:
            finished.extend(step.version for step in await migrator.up())

        async with gate(dsn) as closed, anyio.create_task_group() as tasks:
            tasks.start_soon(run, first)
            await closed.reached()
            tasks.start_soon(run, second)
            await until(partial(ask, dsn, WAITS[lock]))
            await closed.open()
        assert sorted(finished) == ["1", "2", "3"]
        assert set((await states(dsn)).values()) == {"applied"}

    async def test_a_script_that_gives_the_lock_away_statement_by_statement_fails(self, dsn: str, write: Write) -> None:
        folder = write({"001_bad.sql": HEAD + "CREATE TABLE bad (); SELECT pg_advisory_unlock_all(); SELECT 3;"})
        error = await failure_of(Migrator(dsn, folder))
        assert (error.failure.statement, error.failure.statements) == (2, 3)
        row = (await history(dsn))["1"]
        assert (row["state"], row["statements_done"]) == ("failed", 1)
        write({"001_bad.sql": HEAD + "CREATE TABLE bad (); SELECT 2; SELECT 3;"})
        await Migrator(dsn, folder).up()

    @every_kind
    @pytest.mark.parametrize("sql", NEUTRALISED.values(), ids=NEUTRALISED.keys())
    async def test_a_script_that_changes_the_session_is_recorded_all_the_same(
        self, dsn: str, write: Write, sql: str, kind: str, lock: Lock
    ) -> None:
        if "conforming" in sql:
            await needs_plain_escapes(dsn)
        async with a_role(dsn) as role:
            sql = sql.format(role=role)
            bent = bad(kind, sql) if kind != "statements" else {"002_bad.sql": f"{HEAD}CREATE TABLE bad (); {sql}"}
            files = {"001_good.sql": GOOD, **bent, "003_after.sql": "CREATE TABLE after ();"}
            await Migrator(dsn, write(files), lock=lock).up()
            rows = await history(dsn)
            assert {version: row["state"] for version, row in rows.items()} == dict.fromkeys("123", "applied")
            assert all(row["finished_at"] for row in rows.values())
            assert await exists(dsn, "public.after")
            owners = "SELECT count(DISTINCT relowner) FROM pg_class WHERE relname IN ('good', 'bad', 'after')"
            assert await ask(dsn, owners) == 1

    async def test_a_script_that_replaces_the_schema_of_the_history_fails_and_leaves_it_there(
        self, dsn: str, write: Write
    ) -> None:
        folder = write({"001_good.sql": GOOD, "002_bad.sql": "DROP SCHEMA public CASCADE; CREATE SCHEMA public;"})
        error = await failure_of(Migrator(dsn, folder))
        assert error.failure.version == "2"
        assert await states(dsn) == {"1": "applied", "2": "failed"}
        assert await exists(dsn, "good")


ESCAPES = {
    "COMMIT": "CREATE TABLE bad (); COMMIT; CREATE TABLE worse ();",
    "COMMIT at the end": "CREATE TABLE bad (); COMMIT;",
    "COMMIT and BEGIN": "CREATE TABLE bad (); COMMIT; BEGIN; CREATE TABLE worse ();",
    "COMMIT AND CHAIN": "CREATE TABLE bad (); COMMIT AND CHAIN; CREATE TABLE worse ();",
}
UNDONE = {
    "ROLLBACK": "CREATE TABLE bad (); ROLLBACK; CREATE TABLE worse ();",
    "ROLLBACK and BEGIN": "CREATE TABLE bad (); ROLLBACK; BEGIN; CREATE TABLE worse ();",
    "ROLLBACK AND CHAIN": "CREATE TABLE bad (); ROLLBACK AND CHAIN;",
    "PREPARE TRANSACTION": "CREATE TABLE bad (); PREPARE TRANSACTION 'x';",
}


class TestATransactionControlThatTheReaderMissed:
    @pytest.fixture(autouse=True)
    def blind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scripts, "_forbidden_controls", lambda *_: [])

    @every_lock
    @pytest.mark.parametrize("sql", ESCAPES.values(), ids=ESCAPES.keys())
    async def test_a_missed_commit_is_noticed_and_stops_every_run_until_a_person_has_looked(
        self, dsn: str, write: Write, sql: str, lock: Lock
    ) -> None:
        folder = write({"001_good.sql": GOOD, "002_bad.sql": sql, "003_after.sql": "CREATE TABLE after ();"})
        error = await failure_of(Migrator(dsn, folder, lock=lock))
        assert error.failure.version == "2"
        row = (await history(dsn))["2"]
        assert row["state"] == "running"
        assert row["error"]
        assert not await exists(dsn, "worse")
        assert not await exists(dsn, "after")
        with pytest.raises(HistoryError) as caught:
            await Migrator(dsn, folder, lock=lock).up()
        assert caught.value.versions == ("2",)
        assert str(row["backend_pid"]) in str(caught.value)

        await tell(dsn, "DELETE FROM schema_migrations WHERE version = '2'; DROP TABLE bad")
        write({"002_bad.sql": "CREATE TABLE bad ();"})
        assert [step.version for step in await Migrator(dsn, folder, lock=lock).up()] == ["2", "3"]

    @every_lock
    @pytest.mark.parametrize("sql", UNDONE.values(), ids=UNDONE.keys())
    async def test_a_missed_rollback_fails_its_migration_like_any_other_error(
        self, dsn: str, write: Write, sql: str, lock: Lock
    ) -> None:
        folder = write({"001_good.sql": GOOD, "002_bad.sql": sql, "003_after.sql": "CREATE TABLE after ();"})
        error = await failure_of(Migrator(dsn, folder, lock=lock))
        assert error.failure.version == "2"
        assert await states(dsn) == {"1": "applied", "2": "failed"}
        assert not await exists(dsn, "worse")
        write({"002_bad.sql": "CREATE TABLE bad ();"})
        assert [step.version for step in await Migrator(dsn, folder, lock=lock).up()] == ["2", "3"]

    @every_lock
    @pytest.mark.parametrize("command", ["COMMIT", "ROLLBACK", "ABORT", "END", "COMMIT; BEGIN", "ROLLBACK; BEGIN"])
    async def test_a_missed_commit_is_noticed_in_a_python_migration(
        self, dsn: str, write: Write, command: str, lock: Lock
    ) -> None:
        code = f"async def up(connection):\n    await connection.execute('CREATE TABLE bad (); {command}')\n"
        folder = write({"001_good.sql": GOOD, "002_bad.py": code, "003_after.sql": "CREATE TABLE after ();"})
        error = await failure_of(Migrator(dsn, folder, lock=lock))
        assert error.failure.version == "2"
        assert not await exists(dsn, "after")
        assert (await states(dsn))["2"] == ("failed" if "ROLLBACK" in command or "ABORT" in command else "running")


@pytest.mark.parametrize("block", ["DO $$BEGIN COMMIT; END$$;", "DO $$BEGIN ROLLBACK; END$$;", "CALL ends();"])
async def test_a_procedure_cannot_end_the_transaction(dsn: str, write: Write, block: str) -> None:
    await tell(dsn, "CREATE PROCEDURE ends() LANGUAGE plpgsql AS $$BEGIN COMMIT; END$$")
    folder = write({"001_good.sql": GOOD, "002_bad.sql": f"CREATE TABLE bad (); {block}"})
    error = await refused(dsn, Migrator(dsn, folder), fenced=False)
    assert error.failure.sqlstate == "2D000"
    assert await states(dsn) == {"1": "applied", "2": "failed"}
    write({"002_bad.sql": "SELECT 1;"})
    await Migrator(dsn, folder).up()


async def test_locks_that_a_script_forgets_end_with_the_run(dsn: str, write: Write) -> None:
    await Migrator(dsn, write({"001_a.sql": "SELECT pg_advisory_lock(42);", "002_b.sql": "SELECT 1;"})).up()
    async with connected(dsn) as connection:
        assert await connection.fetchval("SELECT pg_try_advisory_lock(42)")
        assert await column(dsn, "SELECT state FROM schema_migrations") == ["applied", "applied"]
