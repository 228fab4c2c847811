"""The PgBouncer of the tests: is it one, and does it end."""

import asyncio
import os
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest

from tests.poolers import Mode, pgbouncer
from tests.support import PASSWORD, PATIENCE, REQUIRED, ask, connected, until, without_tls

pytestmark = pytest.mark.anyio

BACKEND = "SELECT pg_backend_pid()"


@pytest.mark.parametrize("mode", ["session", "transaction", "statement"])
async def test_a_query_goes_through_in_every_mode(dsn: str, mode: Mode) -> None:
    async with pgbouncer(dsn, mode) as pooler:
        assert await ask(pooler.dsn, "SELECT current_database()") == await ask(dsn, "SELECT current_database()")
        assert await ask(pooler.dsn, "SELECT inet_server_port()") != pooler.port


async def test_the_pooler_lets_nobody_in_without_its_password(dsn: str) -> None:
    async with pgbouncer(dsn) as pooler:
        parts = urlsplit(pooler.dsn)
        for password in ("", ":", f":{PASSWORD}"):
            address = parts._replace(netloc=f"{parts.username}{password}@127.0.0.1:{pooler.port}").geturl()
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
                await ask(address, "SELECT 1")
        assert await ask(pooler.dsn, "SELECT 1") == 1


async def test_two_clients_share_a_server_connection_in_transaction_mode(dsn: str) -> None:
    async with pgbouncer(dsn, size=1) as pooler, connected(pooler.dsn) as first, connected(pooler.dsn) as second:
        assert await first.fetchval(BACKEND) == await second.fetchval(BACKEND)


async def test_a_client_has_a_server_connection_of_its_own_in_session_mode(dsn: str) -> None:
    async with pgbouncer(dsn, "session") as pooler, connected(pooler.dsn) as first, connected(pooler.dsn) as second:
        assert await first.fetchval(BACKEND) != await second.fetchval(BACKEND)


async def test_no_transaction_spans_statements_in_statement_mode(dsn: str) -> None:
    async with pgbouncer(dsn, "statement") as pooler, connected(pooler.dsn) as client:
        with pytest.raises(asyncpg.PostgresError, match="transaction blocks not allowed"):
            await client.execute("BEGIN")


async def test_the_pool_has_as_many_server_connections_as_asked_for(dsn: str) -> None:
    async with pgbouncer(dsn, size=1) as pooler:
        # The request to cancel has a connection of its own, which may still be negotiating TLS when the pooler ends.
        mine = without_tls(pooler.dsn)
        async with connected(mine) as first, connected(mine) as second, first.transaction():
            with anyio.move_on_after(0.2) as waited:
                await second.fetchval(BACKEND)
        assert waited.cancelled_caught


async def test_settings_reach_pgbouncer(dsn: str) -> None:
    async with pgbouncer(dsn) as pooler:
        with pytest.raises(asyncpg.PostgresError, match="unsupported startup parameter: lock_timeout"):
            await asyncpg.connect(pooler.dsn, server_settings={"lock_timeout": "1s"})
    async with (
        pgbouncer(dsn, ignore_startup_parameters="lock_timeout") as pooler,
        connected(pooler.dsn, lock_timeout="1s") as client,
    ):
        assert await client.fetchval("SHOW lock_timeout") == "0"


async def test_a_pooler_leads_to_other_databases_too(dsn: str) -> None:
    async with pgbouncer(dsn) as pooler:
        assert await ask(pooler.dsn_for("template1"), "SELECT current_database()") == "template1"


async def test_a_restart_cuts_the_clients_and_takes_new_ones_at_the_same_address(dsn: str) -> None:
    async with pgbouncer(dsn) as pooler, connected(pooler.dsn) as client:
        before = pooler.dsn
        pooler.restart()
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await client.fetchval("SELECT 1")
        assert pooler.dsn == before
        assert await ask(pooler.dsn, "SELECT 1") == 1


async def test_a_paused_pool_serves_nobody_until_it_resumes(dsn: str) -> None:
    async with pgbouncer(dsn) as pooler, connected(pooler.dsn) as client:
        await pooler.tell("PAUSE")
        query = asyncio.ensure_future(client.fetchval("SELECT 1"))
        assert not (await asyncio.wait([query], timeout=0.2))[0]
        await pooler.tell("RESUME")
        with anyio.fail_after(PATIENCE):
            assert await query == 1


async def test_nothing_is_left_of_a_pooler(dsn: str) -> None:
    async with pgbouncer(dsn) as pooler, connected(pooler.dsn) as client:
        folder, pid = pooler.log.parent, pooler.pid
        backend = await client.fetchval(BACKEND)
        assert "process up" in pooler.log.read_text()
        if os.geteuid() == 0:
            assert folder.stat().st_uid != 0

    async def gone() -> bool:
        return not await ask(dsn, "SELECT count(*) FROM pg_stat_activity WHERE pid = $1", backend)

    async def ended() -> bool:
        # Its parent has ended, too: the system reaps the orphan a moment later.
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    await until(gone)
    assert not folder.exists()
    await until(ended)


async def test_a_test_is_skipped_or_fails_where_pgbouncer_is_missing(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install pgbouncer"):
        await pgbouncer(dsn).__aenter__()
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install pgbouncer"):
        await pgbouncer(dsn).__aenter__()
