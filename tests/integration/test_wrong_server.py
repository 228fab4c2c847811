"""A server, a role or a database that cannot be migrated: which verbs refuse, and with which sentence."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest

from pgratchet import BehindError, HistoryError, MigrationFailedError, Migrator, ServerError, State, Verdict
from pgratchet.embedded import Server
from tests.faults.pairs import pair
from tests.support import Write, a_role, as_role, ask, connected, exists, states, tell, until

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

FILES = {
    "001_a.sql": "CREATE TABLE a ();",
    "001_a.down.sql": "DROP TABLE a;",
    "002_b.sql": "CREATE TABLE b ();",
    "002_b.down.sql": "DROP TABLE b;",
}
LEGACY = (
    "CREATE TABLE legacy (version int, description text, filename text, executed_at timestamptz, success bool, "
    "error_message text); INSERT INTO legacy VALUES (1, 'a', '001_a.sql', now(), true, NULL)"
)


async def refuses_to_write(migrator: Migrator, sentence: str) -> None:
    for work in (
        migrator.up,
        migrator.down,
        migrator.redo,
        migrator.rehearse,
        lambda: migrator.repair("2", Verdict.APPLIED, "somebody has looked"),
        lambda: migrator.adopt("public.legacy"),
    ):
        with anyio.fail_after(10), pytest.raises(ServerError, match=sentence):
            await work()


@pytest.fixture(scope="module")
def servers(memory: Path | None) -> Iterator[tuple[Server, Server]]:
    """A primary and its standby."""
    with pair(memory) as servers:
        yield servers


class TestAStandby:
    async def test_a_standby_answers_questions_and_refuses_all_else(
        self, servers: tuple[Server, Server], write: Write
    ) -> None:
        primary, standby = (server.dsn for server in servers)
        await tell(primary, LEGACY)
        folder = write(FILES)
        ours, theirs = Migrator(primary, folder), Migrator(standby, folder)
        await refuses_to_write(theirs, "standby")
        with pytest.raises(BehindError):
            await theirs.check()
        assert [step.migration.version for step in (await theirs.plan()).steps] == ["1", "2"]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(theirs.wait)
            assert len(await ours.up()) == 2
        await until(lambda: exists(standby, "b"))

        await theirs.check()
        await theirs.wait()
        assert await theirs.up() == ()
        assert [entry.state for entry in await theirs.status()] == [State.APPLIED, State.APPLIED]
        await refuses_downwards(theirs, "standby")
        assert (await theirs.adopt("public.legacy", dry_run=True)).already == ("1",)

    async def test_a_run_that_wants_a_primary_is_told_that_this_is_a_standby(
        self, servers: tuple[Server, Server], write: Write
    ) -> None:
        migrator = Migrator(f"{servers[1].dsn}?target_session_attrs=primary", write({"009_new.sql": "SELECT 1;"}))
        for work in (migrator.up, migrator.check, migrator.status):
            with anyio.fail_after(5), pytest.raises(ServerError, match="primary"):
                await work()


async def refuses_downwards(migrator: Migrator, sentence: str) -> None:
    for work in (migrator.down, migrator.redo):
        with pytest.raises(ServerError, match=sentence):
            await work()


async def test_a_read_only_database_answers_questions_and_refuses_all_else(dsn: str, write: Write) -> None:
    folder = write(FILES)
    await tell(dsn, LEGACY)
    await Migrator(dsn, folder).up(to=1)
    await tell(dsn, f"ALTER DATABASE {urlsplit(dsn).path[1:]} SET default_transaction_read_only = on")
    migrator = Migrator(dsn, folder)

    await refuses_to_write(migrator, "read-only")

    with pytest.raises(BehindError):
        await migrator.check()
    assert [entry.state for entry in await migrator.status()] == [State.APPLIED, State.PENDING]
    async with connected(dsn, default_transaction_read_only="off") as connection:
        await connection.execute(f"ALTER DATABASE {urlsplit(dsn).path[1:]} SET default_transaction_read_only = off")
    await migrator.up()
    assert await exists(dsn, "b")


@pytest.mark.parametrize("right", ["INSERT", "UPDATE", "DELETE"])
async def test_a_missing_right_to_write_the_history_is_named(dsn: str, write: Write, right: str) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})
    await Migrator(dsn, folder).up()
    write({"002_b.sql": "SELECT 2;"})
    async with a_role(dsn) as role:
        await tell(dsn, f"GRANT ALL ON schema_migrations TO {role}; REVOKE {right} ON schema_migrations FROM {role}")
        with pytest.raises(ServerError, match=f"needs {right} on public.schema_migrations"):
            await Migrator(as_role(dsn, role), folder).up()
        assert await states(dsn) == {"1": "applied"}
        await tell(dsn, f"GRANT {right} ON schema_migrations TO {role}")
        assert len(await Migrator(as_role(dsn, role), folder).up()) == 1


async def test_a_schema_that_may_not_be_used_is_named(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})
    await Migrator(dsn, folder, table="ours.history").up()
    async with a_role(dsn) as role:
        await tell(dsn, f"GRANT ALL ON ours.history TO {role}")
        migrator = Migrator(as_role(dsn, role), folder, table="ours.history")
        for work in (migrator.up, migrator.check, migrator.status, migrator.wait):
            with pytest.raises(ServerError, match="USAGE on schema ours"):
                await work()
        await tell(dsn, f"GRANT USAGE ON SCHEMA ours TO {role}")
        await migrator.check()


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("public.schema_migrations", "needs CREATE on schema public to make the table public.schema_migrations"),
        ("ours.history", "needs CREATE on the database to make the table ours.history"),
    ],
)
async def test_a_table_that_may_not_be_made_says_which_right_would_do(
    dsn: str, write: Write, table: str, sentence: str
) -> None:
    await tell(dsn, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # as it is from PostgreSQL 15 on
    async with a_role(dsn) as role:
        migrator = Migrator(as_role(dsn, role), write({"001_a.sql": "SELECT 1;"}), table=table)
        with pytest.raises(ServerError, match=sentence):
            await migrator.up()
        name = urlsplit(dsn).path[1:]
        await tell(dsn, f"GRANT CREATE ON SCHEMA public TO {role}; GRANT CREATE ON DATABASE {name} TO {role}")
        await migrator.up()


async def test_a_tablespace_that_the_role_may_not_use_is_named_and_no_schema(dsn: str, write: Write) -> None:
    name = urlsplit(dsn).path[1:]
    space = f"fast_{name}"
    if await ask(dsn, "SELECT current_setting('allow_in_place_tablespaces', true)") is None:
        pytest.skip("a tablespace needs a folder of the server's here")
    await tell(dsn, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    async with connected(dsn, allow_in_place_tablespaces="on") as connection:
        await connection.execute(f"CREATE TABLESPACE {space} LOCATION ''")
    try:
        async with a_role(dsn) as role:
            await tell(dsn, f"ALTER ROLE {role} IN DATABASE {name} SET default_tablespace = {space}")
            migrator = Migrator(as_role(dsn, role), write({"001_a.sql": "SELECT 1;"}))
            with pytest.raises(ServerError, match=f"needs CREATE on tablespace {space}") as caught:
                await migrator.up()
            assert "on schema" not in str(caught.value)
            await tell(dsn, f"GRANT CREATE ON TABLESPACE {space} TO {role}")
            await migrator.up()
            await tell(dsn, f"REVOKE ALL ON TABLESPACE {space} FROM {role}; DROP TABLE schema_migrations")
    finally:
        await tell(dsn, f"DROP TABLESPACE {space}")


async def test_a_right_that_is_neither_of_schema_nor_of_tablespace_is_left_to_the_servers_words(
    dsn: str, write: Write
) -> None:
    refuse = "BEGIN RAISE EXCEPTION 'no tables on Mondays' USING ERRCODE = '42501'; END"
    await tell(
        dsn,
        f"CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS '{refuse.replace(chr(39), chr(39) * 2)}'",
    )
    await tell(
        dsn,
        "GRANT CREATE ON SCHEMA public TO PUBLIC; "
        "CREATE EVENT TRIGGER no ON ddl_command_start EXECUTE FUNCTION refuse()",
    )
    async with a_role(dsn) as role:
        migrator = Migrator(as_role(dsn, role), write({"001_a.sql": "SELECT 1;"}))
        with pytest.raises(
            ServerError, match=r"no tables on Mondays.* lacks the right that the server names"
        ) as caught:
            await migrator.up()
        assert "needs CREATE" not in str(caught.value)
        await tell(dsn, "DROP EVENT TRIGGER no")
        await migrator.up()


async def test_a_database_ahead_of_the_files_is_a_warning_unless_strict_and_no_way_down(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    await Migrator(dsn, write(FILES)).up()
    older = write({"older/001_a.sql": FILES["001_a.sql"], "older/001_a.down.sql": FILES["001_a.down.sql"]}) / "older"

    assert await Migrator(dsn, older).up() == ()
    await Migrator(dsn, older).check()
    assert "2 b is in the database, but has no file here" in caplog.text
    strict = Migrator(dsn, older, strict=True)
    for work in (strict.up, strict.check, strict.wait):
        with pytest.raises(HistoryError, match="deploy the release that has it"):
            await work()
    for way in (Migrator(dsn, older).down, Migrator(dsn, older).redo, strict.down):
        with pytest.raises(HistoryError) as caught:
            await way()
        assert caught.value.versions == ("2",)
    assert set((await states(dsn)).values()) == {"applied"}
    assert [step.version for step in await Migrator(dsn, write(FILES)).down()] == ["2"]


async def test_a_database_that_asks_for_debugging_messages_is_migrated(dsn: str, write: Write) -> None:
    await tell(dsn, f"ALTER DATABASE {urlsplit(dsn).path[1:]} SET client_min_messages = debug5")
    migrator = Migrator(dsn, write(FILES | {"003_c.sql": "CREATE INDEX CONCURRENTLY i ON gone (n);"}))

    with pytest.raises(MigrationFailedError, match="gone"):
        await migrator.up()
    write({"003_c.sql": "-- pgratchet: no-transaction\nCREATE TABLE c (n int); CREATE INDEX CONCURRENTLY i ON c (n);"})
    await migrator.up()

    await migrator.check()
    assert await states(dsn) == {"1": "applied", "2": "applied", "3": "applied"}
    write({"003_c.down.sql": "DROP TABLE c;"})
    await migrator.down(to=0)
    assert not await exists(dsn, "a")
