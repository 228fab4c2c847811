import asyncio

import pytest
import uvloop

from pgratchet import Migrator
from tests.support import Write, ask, deserted, exists, states

FILES = {
    "001_a.sql": "CREATE TABLE a (n int); INSERT INTO a VALUES (1);",
    "002_i.sql": "CREATE INDEX CONCURRENTLY i ON a (n);",
    "003_p.py": "async def up(connection):\n    await connection.execute('INSERT INTO a VALUES (3)')\n",
}


def test_a_run_works_on_uvloop(dsn: str, write: Write) -> None:
    uvloop.run(Migrator(dsn, write(FILES)).up())

    assert asyncio.run(states(dsn)) == dict.fromkeys("123", "applied")


def test_a_run_that_is_cancelled_on_uvloop_leaves_nothing_behind(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "CREATE TABLE a (); SELECT pg_sleep(60);"}))

    async def cancel_in_mid_statement() -> None:
        run = asyncio.create_task(migrator.up())
        while not await ask(dsn, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.02)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await deserted(dsn)

    uvloop.run(cancel_in_mid_statement())

    assert not asyncio.run(exists(dsn, "a"))
    write({"001_a.sql": "CREATE TABLE a ();"})
    uvloop.run(migrator.up())
    assert asyncio.run(states(dsn)) == {"1": "applied"}
