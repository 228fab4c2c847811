"""Timeouts that an administrator has set for a database or a role must not end a run."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from pgratchet import Migrator, embedded
from tests.poolers import pgbouncer
from tests.support import (
    LOCK_KEY,
    Write,
    a_role,
    as_role,
    ask,
    connect,
    connected,
    embedded_wheel,
    exists,
    states,
    tell,
    until,
    waiters,
)

pytestmark = pytest.mark.anyio

SHORT = "200ms"
LONG = "0.3"
TIMEOUTS = ("statement_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout")
OF_A_TRANSACTION = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
WAITING_FOR = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::text::regclass"
IDLE = f"import asyncio\n\n\nasync def up(connection):\n    await asyncio.sleep({LONG})\n"
FILES = {
    "001_a.sql": f"CREATE TABLE t AS SELECT 1 AS n; SELECT pg_sleep({LONG});",
    "002_b.py": IDLE + f"    await connection.execute('CREATE TABLE b (); SELECT pg_sleep({LONG})')\n",
    "003_c.sql": "RESET ALL; CREATE TABLE c ();",
    "004_d.sql": f"SELECT pg_sleep({LONG});",
}
HELD_UP = {"005_e.sql": "ALTER TABLE c ADD n int;"}
BY_STATEMENT = {
    "005_e.sql": f"-- pgratchet: no-transaction\nSELECT pg_sleep({LONG});\nCREATE INDEX CONCURRENTLY i ON t (slow(n));",
    "006_f.sql": f"CREATE TABLE f (); SELECT pg_sleep({LONG});",
}
SLOW = f"CREATE FUNCTION slow(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT n FROM pg_sleep({LONG})'"


@pytest.fixture(scope="module")
def newest(memory: Path | None) -> Iterator[str]:
    """To a server of PostgreSQL 17 or later, which alone has transaction_timeout."""
    with embedded.server(tcp=True, folder=memory, binaries=embedded_wheel() / "pginstall" / "bin") as server:
        yield server.dsn


async def defaults(dsn: str, timeouts: tuple[str, ...], whose: str) -> None:
    """Make timeouts short for a database or a role, and see that they are."""
    await tell(dsn, "".join(f"ALTER {whose} SET {name} = '{SHORT}';" for name in timeouts))
    async with connected(dsn) as connection:
        assert [await connection.fetchval(f"SHOW {name}") for name in timeouts] == [SHORT] * len(timeouts)


async def test_timeouts_of_a_role_do_not_end_a_run(dsn: str, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    async with a_role(dsn, "SUPERUSER") as role:
        await defaults(as_role(dsn, role), TIMEOUTS, f"ROLE {role}")
        await survived(Migrator(as_role(dsn, role), write(FILES | BY_STATEMENT)), dsn, caplog)


@pytest.mark.parametrize("factory", [False, True], ids=["by DSN", "by factory"])
async def test_timeouts_of_a_database_and_transaction_timeout_do_not_end_a_run(
    newest: str, write: Write, caplog: pytest.LogCaptureFixture, *, factory: bool
) -> None:
    await tell(newest, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await defaults(newest, (*TIMEOUTS, "transaction_timeout"), "DATABASE postgres")
    folder = write(FILES)
    migrator = Migrator(connect=partial(connect, newest), migrations=folder) if factory else Migrator(newest, folder)
    with anyio.fail_after(15):
        assert len(await migrator.rehearse()) == len(FILES)
    write(BY_STATEMENT)
    await survived(migrator, newest, caplog)


@pytest.mark.parametrize("size", [1, 3])
async def test_timeouts_of_a_role_do_not_end_a_run_through_a_pooler(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    async with a_role(dsn, "SUPERUSER") as role:
        await defaults(as_role(dsn, role), OF_A_TRANSACTION, f"ROLE {role}")
        await survived_through_a_pooler(as_role(dsn, role), dsn, write, caplog, size)


async def test_transaction_timeout_does_not_end_a_run_through_a_pooler(
    newest: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(newest, statement_timeout="0", transaction_timeout="0") as connection:
        await connection.execute("CREATE DATABASE for_roles")
    dsn = newest.removesuffix("postgres") + "for_roles"
    async with a_role(dsn, "SUPERUSER") as role:
        await defaults(as_role(dsn, role), (*OF_A_TRANSACTION, "transaction_timeout"), f"ROLE {role}")
        await survived_through_a_pooler(as_role(dsn, role), dsn, write, caplog, 3)


async def survived_through_a_pooler(
    mine: str, dsn: str, write: Write, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    """Without that of idle sessions, which would end those that the pooler keeps for later."""
    async with pgbouncer(mine, "transaction", size) as between:
        migrator = Migrator(between.dsn, write(FILES))
        with anyio.fail_after(30):
            assert len(await migrator.rehearse()) == len(FILES)
            assert len(await migrator.up()) == len(FILES)
        write(HELD_UP)
        async with connected(dsn) as holder, anyio.create_task_group() as tasks:
            await holder.execute("BEGIN; LOCK TABLE c")
            tasks.start_soon(migrator.up)
            await until(partial(ask, dsn, WAITING_FOR, "c"))
            await anyio.sleep(float(LONG))
            await holder.execute("ROLLBACK")
    assert "again" not in caplog.text
    assert set((await states(dsn)).values()) == {"applied"}


async def survived(migrator: Migrator, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    await tell(dsn, SLOW)
    with anyio.fail_after(30):
        finished = await migrator.up()
    assert [step.version for step in finished] == [str(n) for n in range(1, 7)]
    assert "connecting again" not in caplog.text
    assert set((await states(dsn)).values()) == {"applied"}
    assert [await exists(dsn, name) for name in ("t", "b", "c", "i", "f")] == [True] * 5


async def test_timeouts_of_idle_sessions_do_not_end_a_waiter(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();"})
    # Of the role alone: whoever looks on would be ended as well.
    async with a_role(dsn, "SUPERUSER") as role:
        await tell(dsn, f"ALTER ROLE {role} SET idle_session_timeout = '50ms'")
        async with connected(dsn) as holder, anyio.create_task_group() as tasks:
            await holder.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")
            tasks.start_soon(Migrator(as_role(dsn, role), folder).up)
            (before,) = await waiters(dsn)
            await anyio.sleep(1)  # several polls
            (after,) = await waiters(dsn)
            holder.terminate()
        assert before["pid"] == after["pid"]
        assert await states(dsn) == {"1": "applied"}
