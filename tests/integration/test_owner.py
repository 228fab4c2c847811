"""A role that logs in and may do nothing but become the owner: whose everything is, and who may do what."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest

from pgratchet import BehindError, HistoryError, MigrationFailedError, Migrator, ServerError, Verdict
from tests.poolers import pgbouncer
from tests.support import (
    HISTORY,
    PASS_GATE,
    PASSWORD,
    Write,
    a_role,
    as_role,
    ask,
    column,
    connect,
    connected,
    gate,
    history,
    states,
    tell,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

PAGE = Path(__file__).parents[2] / "docs" / "production.md"
FILES = {
    "001_a.sql": "CREATE TABLE a (n int);",
    "001_a.down.sql": "DROP TABLE a;",
    "002_b.sql": "RESET ROLE; CREATE TABLE b ();",
    "003_c.sql": "CREATE INDEX CONCURRENTLY c ON a (n);",
    "004_d.py": "async def up(connection):\n    await connection.execute('CREATE TABLE d ()')\n",
    "005_e.sql": "-- pgratchet: no-transaction\nRESET ROLE;\nSELECT 1;\nCREATE INDEX CONCURRENTLY e ON a (n);",
    "006_f.sql": "CREATE TABLE f ();",
}
LEGACY = (
    "version int, description text, filename text, executed_at timestamptz, success bool, error_message text); "
    "INSERT INTO legacy VALUES (1, 'a', '001_a.sql', now(), true, NULL)"
)
OWNERS = """
SELECT DISTINCT relowner::regrole::text FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relname IN ('a', 'b', 'c', 'd', 'e', 'f', 'schema_migrations')
"""


@asynccontextmanager
async def roles(dsn: str) -> AsyncIterator[tuple[str, str]]:
    """Yield a role that may create things, and the DSN of one that may do nothing but become that."""
    async with a_role(dsn, "NOINHERIT") as login:
        owner = f"{login} Owner"
        await tell(
            dsn,
            f'CREATE ROLE "{owner}"; GRANT CREATE ON SCHEMA public TO "{owner}"; GRANT "{owner}" TO {login};'
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        )
        try:
            yield owner, as_role(dsn, login)
        finally:
            await tell(dsn, f'DROP OWNED BY "{owner}" CASCADE; DROP ROLE "{owner}"')


async def refuses_ddl(dsn: str) -> bool:
    try:
        await tell(dsn, "CREATE TABLE public.mine ()")
    except asyncpg.InsufficientPrivilegeError:
        return True
    return False


async def test_the_owner_owns_everything_and_the_history_too(dsn: str, write: Write) -> None:
    async with roles(dsn) as (owner, login):
        assert await refuses_ddl(login)
        migrator = Migrator(login, write(FILES), owner=owner)
        assert len(await migrator.up()) == 6
        assert await column(dsn, OWNERS) == [f'"{owner}"']
        assert await refuses_ddl(login)


async def test_the_history_names_the_login_role(dsn: str, write: Write) -> None:
    async with roles(dsn) as (owner, login):
        await Migrator(login, write(FILES), owner=owner).up()
        user = owner.removesuffix(" Owner")
        assert all(row["backend_start"] for row in (await history(dsn)).values())
        assert all(row["applied_by"].startswith(f"{user}@") for row in (await history(dsn)).values())


async def test_the_way_down_is_the_owners_as_well(dsn: str, write: Write) -> None:
    async with roles(dsn) as (owner, login):
        migrator = Migrator(login, write({name: FILES[name] for name in ("001_a.sql", "001_a.down.sql")}), owner=owner)
        await migrator.up()
        await migrator.redo()
        await migrator.down()
        assert await states(dsn) == {}


async def test_a_login_role_may_wait_and_check_without_the_owner(dsn: str, write: Write) -> None:
    async with roles(dsn) as (owner, login):
        folder = write(FILES)
        await Migrator(login, folder, owner=owner).up()
        reader = Migrator(login, folder)
        await reader.wait()
        await reader.check()
        assert reader.readiness.ready
        write({"007_g.sql": "CREATE TABLE g ();"})
        with pytest.raises(ServerError, match="may not write the history"):
            await reader.up()


async def test_a_migration_that_changes_role_is_recorded_all_the_same(dsn: str, write: Write) -> None:
    async with roles(dsn) as (owner, login):
        user = owner.removesuffix(" Owner")
        files = {"001_a.sql": f"SET ROLE {user}; SELECT 1;", "002_b.sql": "CREATE TABLE b ();"}
        await Migrator(login, write(files), owner=owner).up()
        assert await states(dsn) == {"1": "applied", "2": "applied"}
        assert await column(dsn, OWNERS) == [f'"{owner}"']


async def test_a_factory_of_connections_needs_no_role_of_its_own(dsn: str, write: Write) -> None:
    async with roles(dsn) as (owner, login):
        files = {name: text.replace("RESET ROLE;", "") for name, text in FILES.items()}
        assert len(await Migrator(connect=partial(connect, login), migrations=write(files), owner=owner).up()) == 6
        assert await column(dsn, OWNERS) == [f'"{owner}"']


async def test_through_a_pooler_the_role_stays_with_nobody(dsn: str, write: Write) -> None:
    async with roles(dsn) as (owner, login), pgbouncer(login, size=1) as pooler:
        folder = write({name: FILES[name] for name in ("001_a.sql", "001_a.down.sql", "004_d.py", "006_f.sql")})
        migrator = Migrator(pooler.dsn, folder, owner=owner)
        assert len(await migrator.up()) == 3
        assert await ask(pooler.dsn, "SELECT current_user = session_user")
        assert await column(dsn, OWNERS) == [f'"{owner}"']
        await migrator.repair("6", Verdict.NOT_APPLIED, "dropped by hand")
        await tell(dsn, "DROP TABLE f")
        assert [step.version for step in await migrator.up()] == ["6"]
        assert await ask(pooler.dsn, "SELECT current_user = session_user")


async def test_a_failure_is_recorded_by_the_owner_and_the_next_run_succeeds(dsn: str, write: Write) -> None:
    async with roles(dsn) as (owner, login):
        migrator = Migrator(login, write({"001_a.sql": "RESET ROLE; SELECT 1/0;"}), owner=owner)
        with pytest.raises(MigrationFailedError, match="division by zero"):
            await migrator.up()
        assert await states(dsn) == {"1": "failed"}
        write({"001_a.sql": "CREATE TABLE a ();"})
        await migrator.up()
        assert await states(dsn) == {"1": "applied"}


async def test_an_owner_that_the_role_is_no_member_of_is_refused_with_the_grant_that_is_missing(
    dsn: str, write: Write
) -> None:
    async with a_role(dsn) as login:
        for migrator in (
            partial(Migrator, as_role(dsn, login)),
            partial(Migrator, connect=partial(connect, as_role(dsn, login))),
        ):
            with pytest.raises(ServerError, match='GRANT "pg_monitor" TO the one that logs in'):
                await migrator(migrations=write({"001_a.sql": ""}), owner="pg_monitor").up()
            with pytest.raises(ServerError, match="nobody here"):
                await migrator(migrations=write({"001_a.sql": ""}), owner="nobody here").up()


async def test_a_login_role_can_read_a_history_that_began_with_an_adoption_or_a_repair(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();"})
    async with roles(dsn) as (owner, login):
        await Migrator(login, folder, owner=owner).repair(1, Verdict.APPLIED, "made by hand")
        assert await Migrator(login, folder, owner=owner).up() == ()
        await Migrator(login, folder).check()
    await tell(dsn, "DROP TABLE IF EXISTS public.schema_migrations; CREATE TABLE legacy (" + LEGACY)
    async with roles(dsn) as (owner, login):
        await tell(dsn, f'GRANT SELECT ON legacy TO "{owner}"')
        migrator = Migrator(login, folder, owner=owner)
        assert (await migrator.adopt("public.legacy")).adopted == ("1",)
        await Migrator(login, folder).check()


async def test_a_runner_that_works_as_the_owner_is_not_taken_for_dead(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "-- pgratchet: no-transaction\nSELECT 1;\n" + PASS_GATE})
    async with roles(dsn) as (owner, login), gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(Migrator(login, folder, lock_timeout=0, owner=owner).up)
        await closed.reached()
        superuser = Migrator(dsn, folder, lock="none", trusted_owners=[owner])
        for other in (superuser, Migrator(login, folder, lock="none", owner=owner)):
            with pytest.raises(HistoryError, match="is at work on"):
                await other.repair(1, Verdict.NOT_APPLIED, "looks dead")
        await closed.open()


async def test_a_session_that_has_a_dead_runners_number_is_not_waited_for(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "-- pgratchet: no-transaction\nSELECT 1;\nSELECT 1/0;"})
    async with roles(dsn) as (owner, login):
        migrator = Migrator(login, folder, owner=owner, budget=10)
        with pytest.raises(MigrationFailedError):
            await migrator.up()
        write({"001_a.sql": "-- pgratchet: no-transaction\nSELECT 1;\nSELECT 2;"})
        async with connected(login) as stranger:
            pid = await stranger.fetchval("SELECT pg_backend_pid()")
            await tell(dsn, f"UPDATE {HISTORY} SET state = 'running', backend_pid = {pid}")
            await migrator.up()
        assert await states(dsn) == {"1": "applied"}


@pytest.mark.parametrize("database", [None, "postgres"])
async def test_a_strangers_session_that_has_a_dead_runners_number_is_not_waited_for(
    dsn: str, write: Write, database: str | None
) -> None:
    folder = write({"001_a.sql": "-- pgratchet: no-transaction\nSELECT 1;\nSELECT 2;"})
    there = urlsplit(dsn)._replace(path=f"/{database}").geturl() if database else dsn
    async with roles(dsn) as (owner, login), connected(there) as stranger:
        migrator = Migrator(login, folder, owner=owner, budget=10)
        await migrator.up()
        pid = await stranger.fetchval("SELECT pg_backend_pid()")
        user = await stranger.fetchval("SELECT session_user::text")
        left = f"state = 'running', backend_pid = {pid}, statements_done = 0, cursor = ''"
        await tell(dsn, f"UPDATE {HISTORY} SET {left}" + (f", applied_by = '{user}@here'" if database else ""))
        await migrator.up()
        assert await states(dsn) == {"1": "applied"}


async def test_a_hidden_session_that_has_logged_in_as_a_runner_did_is_waited_for(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "-- pgratchet: no-transaction\nSELECT 1;\n" + PASS_GATE})
    async with roles(dsn) as (owner, login), gate(dsn) as closed, anyio.create_task_group() as tasks:
        # An older image, that still logs in as another role.
        tasks.start_soon(Migrator(dsn, folder, lock_timeout=0, owner=owner).up)
        await closed.reached()
        with pytest.raises(HistoryError, match=r"is at work on.*GRANT pg_read_all_stats"):
            await Migrator(login, folder, lock="none", owner=owner).repair(1, Verdict.NOT_APPLIED, "looks dead")
        await closed.open()


async def test_a_history_of_another_role_names_the_role_that_needs_the_right_to_write(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();"})
    await Migrator(dsn, folder).up()
    async with roles(dsn) as (owner, login):
        await tell(dsn, f'GRANT SELECT ON {HISTORY} TO "{owner}"')
        write({"002_b.sql": "CREATE TABLE b ();"})
        with pytest.raises(ServerError, match=f"the role {owner} may not write the history"):
            await Migrator(login, folder, owner=owner).up()
        await tell(dsn, f'ALTER TABLE {HISTORY} OWNER TO "{owner}"')
        await Migrator(login, folder, owner=owner).up()
        assert await states(dsn) == {"1": "applied", "2": "applied"}
        await tell(dsn, f"ALTER TABLE {HISTORY} OWNER TO CURRENT_USER")


@asynccontextmanager
async def roles_of_the_page(dsn: str) -> AsyncIterator[dict[str, str]]:
    """Do what docs/production.md says of an owner; yield the roles, which have names of this database's own."""
    blocks = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (sql,) = (block for block in blocks if "orders_owner NOLOGIN" in block)
    names = {name: f"{name}_{urlsplit(dsn).path.rpartition('_')[2]}" for name in ("orders_owner", "migrator", "app")}
    for name, ours in names.items():
        sql = re.sub(rf"\b{name}\b", ours, sql)
    try:
        await tell(dsn, f"CREATE ROLE {names['app']} LOGIN; {sql}")
        await tell(dsn, "".join(f"ALTER ROLE {names[name]} PASSWORD '{PASSWORD}';" for name in ("migrator", "app")))
        yield names
    finally:
        everybody = ", ".join(names.values())
        await tell(dsn, f"DROP OWNED BY {everybody} CASCADE; DROP ROLE {everybody}")


@pytest.mark.parametrize("pooled", [False, True])
async def test_the_roles_of_the_page_suffice_from_the_first_look_on(dsn: str, write: Write, *, pooled: bool) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();"})
    async with roles_of_the_page(dsn) as names, AsyncExitStack() as stack:
        table, owner, reader = "pgratchet.schema_migrations", names["orders_owner"], names["app"]
        addresses = [as_role(dsn, role) for role in (names["migrator"], reader)]
        if pooled:
            addresses = [(await stack.enter_async_context(pgbouncer(address))).dsn for address in addresses]
        migrator = Migrator(addresses[0], folder, table=table, owner=owner, readers=[reader])
        service = Migrator(addresses[1], folder, table=table)
        for each in (migrator, service):
            assert [entry.state for entry in await each.status()] == ["pending"]
            with pytest.raises(BehindError):
                await each.check()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.wait)
            assert len((await migrator.plan()).steps) == len(await migrator.up()) == 1
        await service.check()
