from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest

from pgratchet import (
    BehindError,
    BudgetExceededError,
    ForeignTableError,
    HistoryError,
    MigrationFailedError,
    Migrator,
    ServerError,
    Verdict,
    __version__,
)
from pgratchet.cli import reports
from pgratchet.core.model import RecordState
from pgratchet.postgres.ledger.columns import COLUMNS
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.sql import Table
from tests.poolers import pgbouncer
from tests.support import (
    HISTORY,
    PATIENCE,
    Connection,
    Write,
    a_role,
    as_role,
    ask,
    column,
    connected,
    exists,
    failure_of,
    history,
    runner_lock,
    sessions,
    states,
    tell,
    until,
    waiters,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

COLUMN_NAMES = "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 ORDER BY attnum"


LEGACY = "version int, description text, filename text, executed_at timestamptz, success bool, error_message text"


async def blocked(dsn: str, *, again: bool = False) -> None:
    """Return when a session of ours waits for a lock; with `again`, when it has given that up before."""

    async def waiting() -> set[int]:
        rows = [row for row in await sessions(dsn) if row["wait_event_type"] == "Lock"]
        return {row["query_start"] for row in rows}

    first = await until(waiting)

    async def another() -> bool:
        return bool(await waiting() - first)

    if again:
        await until(another)


def one(write: Write) -> Path:
    return write({"001_one.sql": "CREATE TABLE public.one ();"})


class TestARow:
    async def test_a_row_says_what_was_done_by_whom_and_when(self, dsn: str, write: Write) -> None:
        files = {"0001_a.sql": "-- pgratchet: compatible-with=1\nSELECT 1; SELECT 2; SELECT pg_sleep(0.01);"}
        folder = write(files | {"0002_b.py": "async def up(connection):\n    pass\n"})
        before = await ask(dsn, "SELECT clock_timestamp()")
        await Migrator(dsn, folder).up()
        after = await ask(dsn, "SELECT clock_timestamp()")

        entries = {entry.version: entry for entry in await Migrator(dsn, folder).status()}
        row = (await history(dsn))["1"]
        migration = entries["1"].migration
        assert migration is not None
        assert (row["name"], row["kind"], row["state"]) == ("a", "sql", "applied")
        assert row["checksum"] == migration.checksum
        assert (row["statements_done"], row["statements_total"]) == (3, 3)
        assert before < row["started_at"] < row["finished_at"] < after
        assert row["applied_by"].startswith(f"{await ask(dsn, 'SELECT session_user')}@")
        assert "pgratchet" in row["applied_by"]
        assert row["backend_pid"] > 0
        assert before < row["backend_start"] < row["started_at"]
        assert len(row["token"]) >= 32
        assert (row["tool_version"], row["compatible_with"]) == (__version__, "1")
        assert (row["error"], row["reason"], row["cursor"]) == (None, None, None)
        assert (await history(dsn))["2"]["kind"] == "python"

    @pytest.mark.parametrize(
        ("style", "zone"), [("SQL, DMY", "Asia/Kolkata"), ("Postgres, MDY", "Asia/Manila"), ("German", "Etc/GMT+3")]
    )
    async def test_a_row_says_when_its_session_began_however_the_database_writes_dates(
        self, dsn: str, write: Write, style: str, zone: str
    ) -> None:
        database = urlsplit(dsn).path[1:]
        await tell(dsn, f"ALTER DATABASE {database} SET DateStyle = '{style}'")
        await tell(dsn, f"ALTER DATABASE {database} SET TimeZone = '{zone}'")
        look = "CREATE TABLE seen AS SELECT backend_start FROM pg_stat_get_activity(pg_backend_pid());"
        await Migrator(dsn, write({"001_a.sql": look})).up()
        assert (await history(dsn))["1"]["backend_start"] == await ask(dsn, "SELECT backend_start FROM seen")

    async def test_a_row_says_by_which_login_others_see_its_session(self, dsn: str, write: Write) -> None:
        async with a_role(dsn) as role:

            async def connect() -> Connection:
                connection = await asyncpg.connect(dsn)
                await connection.execute(f"GRANT CREATE ON SCHEMA public TO {role}; SET SESSION AUTHORIZATION {role}")
                return connection

            await Migrator(connect=connect, migrations=one(write)).up()
            user = await ask(dsn, "SELECT session_user")
            assert (await history(dsn))["1"]["applied_by"].startswith(f"{user}@")

    async def test_a_row_has_every_column_of_the_first_release(self, dsn: str, write: Write) -> None:
        await Migrator(dsn, one(write)).up()
        assert await column(dsn, COLUMN_NAMES, HISTORY) == list(COLUMNS)
        assert list(COLUMNS) == [
            "version", "name", "kind", "checksum", "state", "statements_done", "statements_total", "cursor",
            "started_at", "finished_at", "applied_by", "backend_pid", "backend_start", "token", "tool_version",
            "compatible_with", "reason", "error",
        ]  # fmt: skip

    async def test_a_row_may_have_columns_of_a_later_release(self, dsn: str, write: Write) -> None:
        folder = one(write)
        await Migrator(dsn, folder).up()
        await tell(dsn, "ALTER TABLE schema_migrations ADD later text, ADD even_later int DEFAULT 7")
        write({"002_two.sql": "SELECT 1;"})
        await Migrator(dsn, folder).up()
        assert await states(dsn) == {"1": "applied", "2": "applied"}

    async def test_a_row_in_a_state_of_a_later_release_is_refused(self, dsn: str, write: Write) -> None:
        folder = one(write)
        await Migrator(dsn, folder).up()
        await tell(dsn, "UPDATE schema_migrations SET state = 'verified'")
        for verb in (Migrator.up, Migrator.check, Migrator.status, Migrator.wait, Migrator.down):
            with pytest.raises(ServerError, match="verified"):
                await verb(Migrator(dsn, folder))
        await tell(dsn, "UPDATE schema_migrations SET state = 'applied'")
        await Migrator(dsn, folder).check()

    async def test_a_row_keeps_its_meaning_when_the_file_is_renumbered_with_zeros(self, dsn: str, write: Write) -> None:
        await Migrator(dsn, one(write)).up()
        folder = one(write)
        (folder / "001_one.sql").rename(folder / "1_one.sql")
        assert await Migrator(dsn, folder).up() == ()

    @pytest.mark.parametrize("change", ["CREATE TABLE public.one (n int);", "CREATE TABLE public.one ();\n\n"])
    async def test_a_row_of_an_edited_file_is_a_disagreement(self, dsn: str, write: Write, change: str) -> None:
        folder = one(write)
        await Migrator(dsn, folder).up()
        write({"001_one.sql": change, "002_two.sql": "CREATE TABLE two ();"})
        for verb in (Migrator.up, Migrator.check, Migrator.wait, Migrator.plan):
            with pytest.raises(HistoryError) as caught:
                await verb(Migrator(dsn, folder))
            assert caught.value.versions == ("1",)
        assert not await exists(dsn, "two")
        one(write)
        await Migrator(dsn, folder).up()

    async def test_a_row_ignores_line_endings_and_byte_order_mark(self, dsn: str, write: Write) -> None:
        folder = write({"001_one.sql": "-- head\nCREATE TABLE public.one ();\n"})
        await Migrator(dsn, folder).up()
        write({"001_one.sql": "\ufeff-- head\r\nCREATE TABLE public.one ();\r\n"})
        assert await Migrator(dsn, folder).up() == ()

    async def test_a_version_missing_below_a_row_is_refused_as_late(self, dsn: str, write: Write) -> None:
        folder = write({"001_one.sql": "SELECT 1;", "003_three.sql": "SELECT 3;"})
        await Migrator(dsn, folder).up()
        write({"002_two.sql": "CREATE TABLE two ();"})
        for verb in (Migrator.up, Migrator.check, Migrator.wait, Migrator.plan):
            with pytest.raises(HistoryError) as caught:
                await verb(Migrator(dsn, folder))
            assert caught.value.versions == ("2",)
        assert not await exists(dsn, "two")
        assert [step.version for step in await Migrator(dsn, folder, allow_late=True).up()] == ["2"]

    async def test_a_new_file_in_the_place_of_one_that_failed_is_late_and_has_no_failure(
        self, dsn: str, write: Write
    ) -> None:
        folder = write({"001_one.sql": "SELECT 1;", "002_two.sql": "SELECT nothing;"})
        with pytest.raises(MigrationFailedError):
            await Migrator(dsn, folder).up()
        (folder / "002_two.sql").unlink()
        await Migrator(dsn, write({"003_three.sql": "SELECT 3;"})).up()
        write({"002_other.sql": "CREATE TABLE two ();"})
        for verb in (Migrator.up, Migrator.check, Migrator.rehearse):
            with pytest.raises(HistoryError, match=r"002_other\.sql is pending, but later versions are applied"):
                await verb(Migrator(dsn, folder))
        assert [entry.state for entry in await Migrator(dsn, folder).status()] == ["applied", "late", "applied"]
        told = reports.status(await Migrator(dsn, folder).status())
        assert "nothing" not in str(told)
        assert [step.version for step in await Migrator(dsn, folder, allow_late=True).up()] == ["2"]

    async def test_a_failed_file_that_was_fixed_is_pending_again(self, dsn: str, write: Write) -> None:
        folder = write({"001_one.sql": "SELECT nothing;"})
        with pytest.raises(MigrationFailedError):
            await Migrator(dsn, folder).up()
        assert [entry.state for entry in await Migrator(dsn, folder).status()] == ["failed"]
        write({"001_one.sql": "SELECT 1;"})
        assert [entry.state for entry in await Migrator(dsn, folder).status()] == ["pending"]
        assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]

    async def test_a_row_without_a_file_lets_an_older_image_start(self, dsn: str, write: Write) -> None:
        folder = write({"001_one.sql": "SELECT 1;", "003_three.sql": "SELECT 3;"})
        await Migrator(dsn, folder).up()
        (folder / "003_three.sql").unlink()
        assert await Migrator(dsn, folder).up() == ()
        await Migrator(dsn, folder).check()
        with pytest.raises(HistoryError) as caught:
            await Migrator(dsn, folder, strict=True).up()
        assert caught.value.versions == ("3",)


FOREIGN = {
    "golang-migrate": ("version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL", "golang-migrate"),
    "dbmate": ("version varchar(128) PRIMARY KEY", "dbmate"),
    "Rails": ("version character varying NOT NULL PRIMARY KEY", "Rails"),
    "Ecto": ("version bigint PRIMARY KEY, inserted_at timestamp(0)", "Ecto"),
    "home-made": (
        "version int, description text, filename text, executed_at timestamptz, success boolean, error_message text",
        "adopt",
    ),
    "Alembic": ("version_num varchar(32) NOT NULL PRIMARY KEY", "Alembic"),
    "goose": ("id int PRIMARY KEY, version_id bigint, is_applied boolean, tstamp timestamp", "goose"),
    "unknown": ("id serial PRIMARY KEY, name text", "something else"),
}


class TestAnotherToolsTable:
    @pytest.mark.parametrize(("columns", "word"), FOREIGN.values(), ids=FOREIGN.keys())
    async def test_another_tools_table_is_refused_by_name_with_the_way_out(
        self, dsn: str, write: Write, columns: str, word: str
    ) -> None:
        await tell(dsn, f"CREATE TABLE schema_migrations ({columns})")
        for verb in (Migrator.up, Migrator.check, Migrator.status, Migrator.wait, Migrator.rehearse, Migrator.down):
            with pytest.raises(ForeignTableError, match=word) as caught:
                await verb(Migrator(dsn, one(write)))
            assert "pgratchet_migrations" in str(caught.value)
        assert not await exists(dsn, "one")

        await Migrator(dsn, one(write), table="public.pgratchet_migrations").up()
        assert await states(dsn, "public.pgratchet_migrations") == {"1": "applied"}

    @pytest.mark.parametrize("kind", ["VIEW schema_migrations AS SELECT 1 AS n", "SEQUENCE schema_migrations"])
    async def test_another_relation_of_that_name_is_refused(self, dsn: str, write: Write, kind: str) -> None:
        await tell(dsn, f"CREATE {kind}")
        with pytest.raises(ForeignTableError):
            await Migrator(dsn, one(write)).up()
        assert not await exists(dsn, "one")


NAMES = [
    "tenant.schema_migrations",
    "Tenant A.My Migrations",
    "über.Gedächtnis",
    "select.table",
    "o'hara.it\\s",
    "plain",
]


class TestTheTable:
    @pytest.mark.parametrize("name", NAMES)
    async def test_the_history_is_made_where_it_is_wanted(self, dsn: str, write: Write, name: str) -> None:
        table = Table.parse(name)
        folder = one(write)
        migrator = Migrator(dsn, folder, table=name)
        await migrator.up()
        write({"002_two.sql": "-- pgratchet: no-transaction\nSELECT 1;", "003_three.sql": "SELECT 1/0;"})
        assert (await failure_of(migrator)).failure.version == "3"
        write({"003_three.py": "async def up(connection): pass\n"})
        (folder / "003_three.sql").unlink()
        await migrator.up()
        await migrator.check()
        assert await states(dsn, table.quoted) == {"1": "applied", "2": "applied", "3": "applied"}
        assert not await exists(dsn, HISTORY)

    @pytest.mark.parametrize("schema", ["public", "ours"])
    async def test_sessions_that_race_for_the_history_make_it_once(self, dsn: str, schema: str) -> None:
        """As replicas do whose lock lasts for a transaction. IF NOT EXISTS alone fails in one race of five."""
        async with AsyncExitStack() as stack:
            racing = [await stack.enter_async_context(connected(dsn)) for _ in range(8)]
            for number in range(60):
                table = History(Table(schema if schema == "public" else f"{schema}{number}", f"history{number}"))
                async with anyio.create_task_group() as tasks:
                    for connection in racing:
                        tasks.start_soon(table.ensure, connection, ["pg_monitor"], Budget(None))
                assert await table.read(racing[0]) == ()

    async def test_a_type_of_the_historys_name_is_an_error(self, dsn: str, write: Write) -> None:
        await tell(dsn, "CREATE DOMAIN schema_migrations AS int")
        migrator = Migrator(dsn, one(write))
        with pytest.raises(ServerError, match='type "schema_migrations" already exists'):
            await migrator.up()
        await tell(dsn, "DROP DOMAIN schema_migrations")
        assert len(await migrator.up()) == 1

    async def test_one_database_may_have_several_histories(self, dsn: str, write: Write) -> None:
        folder = write({"001_a.sql": "SELECT 1;"})
        for table in ("a.history", "b.history"):
            assert len(await Migrator(dsn, folder, table=table).up()) == 1
            assert await Migrator(dsn, folder, table=table).up() == ()

    @pytest.mark.parametrize(
        "case",
        [
            ("public.history", "REVOKE CREATE ON SCHEMA public FROM public", "CREATE on schema public"),
            ("ours.history", "SELECT 1", "CREATE on the database"),
            (
                "theirs.history",
                "CREATE SCHEMA theirs; GRANT USAGE ON SCHEMA theirs TO public",
                "CREATE on schema theirs",
            ),
        ],
    )
    async def test_a_history_that_may_not_be_made_is_an_error_that_names_the_right_needed(
        self, dsn: str, write: Write, case: tuple[str, str, str]
    ) -> None:
        table, prepare, right = case
        await tell(dsn, prepare)
        async with a_role(dsn) as role:
            migrator = Migrator(as_role(dsn, role), one(write), table=table)
            with pytest.raises(ServerError, match=right):
                await migrator.up()
            assert not await exists(dsn, "one")
            on = right.removeprefix("CREATE on ").replace("the database", f"DATABASE {urlsplit(dsn).path[1:]}")
            await tell(dsn, f"GRANT CREATE ON {on} TO {role}; GRANT CREATE ON SCHEMA public TO {role}")
            await migrator.up()
            await migrator.check()

    @pytest.mark.parametrize("schema", ["public", "ours"])
    async def test_a_history_that_may_not_be_read_is_an_error_that_names_the_right_needed(
        self, dsn: str, write: Write, schema: str
    ) -> None:
        table = f"{schema}.history"
        await Migrator(dsn, one(write), table=table).up()
        async with a_role(dsn) as role:
            for verb in (Migrator.up, Migrator.check, Migrator.wait, Migrator.status):
                with pytest.raises(ServerError, match="SELECT on"):
                    await verb(Migrator(as_role(dsn, role), one(write), table=table))
            await tell(dsn, f"GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON {table} TO {role}")
            await Migrator(as_role(dsn, role), one(write), table=table).check()

    @pytest.mark.parametrize("table", [HISTORY, "ours.History"])
    async def test_readers_can_wait_for_the_history_and_check_it(self, dsn: str, write: Write, table: str) -> None:
        folder = one(write)
        async with a_role(dsn) as role:
            reader = Migrator(as_role(dsn, role), folder, table=table)
            with pytest.raises(BehindError):
                await reader.check()
            async with runner_lock(dsn, table) as holder, anyio.create_task_group() as tasks:
                tasks.start_soon(reader.wait)
                tasks.start_soon(Migrator(dsn, folder, table=table, readers=[role]).up)
                await waiters(dsn)
                holder.terminate()
            await reader.check()
            assert [entry.state for entry in await reader.status()] == ["applied"]
            assert await reader.up() == ()
            write({"002_two.sql": "CREATE TABLE two ();"})
            with pytest.raises(BehindError):
                await reader.check()
            with pytest.raises(ServerError, match="INSERT"):
                await reader.up()
            assert await Migrator(dsn, folder, table=table, readers=[role, role]).up()

    async def test_readers_get_their_rights_also_where_nothing_is_to_be_applied(self, dsn: str, write: Write) -> None:
        folder = one(write)
        await Migrator(dsn, folder, table="ours.history").up()
        async with a_role(dsn) as role:
            reader = Migrator(as_role(dsn, role), folder, table="ours.history")
            with pytest.raises(ServerError, match=f"the role {role} needs USAGE on schema ours and SELECT"):
                await reader.wait()
            assert await Migrator(dsn, folder, table="ours.history", readers=[role]).up() == ()
            await reader.wait()

    async def test_a_role_that_loses_a_race_and_then_its_rights_is_told_the_right_needed(
        self, dsn: str, write: Write
    ) -> None:
        """The second attempt fails in another way than the first one."""
        async with a_role(dsn) as role, connected(dsn) as other, anyio.create_task_group() as tasks:
            await tell(dsn, f"GRANT CREATE ON DATABASE {urlsplit(dsn).path[1:]} TO {role}")
            await other.execute("BEGIN; CREATE SCHEMA ours")

            async def refused() -> None:
                with anyio.fail_after(PATIENCE), pytest.raises(ServerError, match="permission denied for schema ours"):
                    await Migrator(as_role(dsn, role), one(write), table="ours.history").up()

            tasks.start_soon(refused)
            await blocked(dsn)
            await other.execute("COMMIT")
        await Migrator(dsn, one(write), table="ours.history").up()

    @pytest.mark.parametrize("verb", ["up", "repair", "adopt"])
    async def test_two_runners_may_grant_the_history_at_the_same_time(
        self, dsn: str, write: Write, caplog: pytest.LogCaptureFixture, verb: str
    ) -> None:
        folder = one(write)
        await tell(dsn, f"CREATE TABLE legacy ({LEGACY})")
        async with a_role(dsn) as role, connected(dsn) as other, anyio.create_task_group() as tasks:
            migrator = Migrator(dsn, folder, readers=[role], budget=PATIENCE)
            verbs: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
                "up": migrator.up,
                "repair": partial(migrator.repair, 1, Verdict.APPLIED, "by hand"),
                "adopt": partial(migrator.adopt, "public.legacy"),
            }
            await History(Table.parse(HISTORY)).ensure(other, (), Budget(None))
            await other.execute(f"BEGIN; GRANT USAGE ON SCHEMA public TO {role}")
            with anyio.fail_after(PATIENCE):
                tasks.start_soon(verbs[verb])
                await blocked(dsn, again=verb == "up")
                await other.execute("COMMIT")
        assert ("(55P03); trying again" in caplog.text) is (verb == "up")
        assert (await Migrator(dsn, folder).up() == ()) is (verb != "adopt")

    async def test_readers_that_do_not_exist_are_an_error_before_anything_is_applied(
        self, dsn: str, write: Write
    ) -> None:
        with pytest.raises(ServerError, match="nobody_at_all"):
            await Migrator(dsn, one(write), readers=["nobody_at_all"]).up()
        assert not await exists(dsn, "one")
        await Migrator(dsn, one(write)).up()


class TestReading:
    async def test_a_history_without_a_table_or_a_schema_is_empty(self, dsn: str) -> None:
        async with connected(dsn) as connection:
            assert await History(Table("public", "nope")).read(connection) == ()
            assert await History(Table("nope", "nope")).read(connection) == ()
            assert await History(Table("nope", "nope")).read_some(connection, ["1"]) == ()

    async def test_a_reader_takes_all_rows_or_some(self, dsn: str, write: Write) -> None:
        folder = write({f"{n:03}_m.sql": "SELECT 1;" for n in range(1, 6)})
        await Migrator(dsn, folder).up()
        async with connected(dsn) as connection:
            rows = await History(Table.parse(HISTORY)).read(connection)
            assert {row.version for row in rows} == {"1", "2", "3", "4", "5"}
            assert {row.state for row in rows} == {RecordState.APPLIED}
            some = await History(Table.parse(HISTORY)).read_some(connection, ["2", "4", "9"])
            assert {row.version for row in some} == {"2", "4"}

    async def test_a_reader_waits_for_a_migration_that_has_locked_the_table(self, dsn: str, write: Write) -> None:
        migrator = Migrator(dsn, one(write), lock_timeout=0.1)
        await migrator.up()
        async with connected(dsn) as connection:
            await connection.execute("BEGIN; LOCK TABLE schema_migrations")
            with anyio.fail_after(10):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(migrator.check)
                    await anyio.wait_all_tasks_blocked()
                    await connection.execute("COMMIT")

    async def test_a_reader_on_a_closed_connection_fails(self, dsn: str) -> None:
        async with connected(dsn) as connection:
            await connection.close()
            with pytest.raises(asyncpg.InterfaceError):
                await History(Table.parse(HISTORY)).read(connection)

    async def test_the_log_tells_once_what_a_run_waits_for(
        self, dsn: str, write: Write, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = one(write)
        migrator = Migrator(dsn, folder)
        await migrator.up()
        async with connected(dsn) as somebody, anyio.create_task_group() as tasks:
            await somebody.execute(f"BEGIN; LOCK TABLE {HISTORY}")
            tasks.start_soon(migrator.up)
            await blocked(dsn)
            await blocked(dsn, again=True)
            await somebody.execute("ROLLBACK")
        assert caplog.text.count(f"the table {HISTORY} is locked by another session; waiting for it") == 1

    @pytest.mark.parametrize("pooled", [False, True])
    async def test_a_reader_gives_up_with_the_budget(self, dsn: str, write: Write, *, pooled: bool) -> None:
        folder = one(write)
        await Migrator(dsn, folder).up()
        async with (
            pgbouncer(dsn) if pooled else nullcontext(SimpleNamespace(dsn=dsn)) as between,
            connected(dsn) as somebody,
        ):
            await somebody.execute(f"BEGIN; LOCK TABLE {HISTORY}")
            with anyio.fail_after(8), pytest.raises(BudgetExceededError, match="is locked by another session"):
                await Migrator(between.dsn, folder, budget=1).up()
            await somebody.execute("ROLLBACK")
            assert await Migrator(between.dsn, folder).up() == ()

    async def test_a_reader_in_a_transaction_waits_as_well(self, dsn: str, write: Write) -> None:
        migrator = Migrator(dsn, one(write))
        await migrator.rehearse()
        async with connected(dsn) as somebody, anyio.create_task_group() as tasks:
            await History(Table.parse(HISTORY)).ensure(somebody, (), Budget(None))
            await somebody.execute(f"BEGIN; LOCK TABLE {HISTORY}")
            tasks.start_soon(migrator.repair, 1, Verdict.APPLIED, "by hand")
            await blocked(dsn)
            await blocked(dsn, again=True)
            await somebody.execute("ROLLBACK")
        assert await states(dsn) == {"1": "applied"}


async def test_a_database_that_is_set_to_read_only_is_refused(dsn: str, write: Write) -> None:
    async with a_role(dsn, "SUPERUSER") as role:
        await tell(dsn, f"ALTER ROLE {role} SET default_transaction_read_only = on")
        folder = write({"001_a.sql": "CREATE TABLE a ();"})

        with pytest.raises(ServerError, match="read-only"):
            await Migrator(as_role(dsn, role), folder).up()
        await tell(dsn, f"ALTER ROLE {role} RESET default_transaction_read_only")
        await Migrator(as_role(dsn, role), folder).up()

        assert await states(dsn) == {"1": "applied"}


async def test_a_row_whose_version_is_no_number_is_named(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "CREATE TABLE a ();"}))
    await migrator.up()
    await tell(dsn, "UPDATE schema_migrations SET version = '1a'")

    with pytest.raises(ServerError, match="1a"):
        await migrator.status()
