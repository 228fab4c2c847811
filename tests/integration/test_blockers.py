"""A lock that is not had in time: who has it, and what they do, is told with each try and with the last."""

import logging
import re
from functools import partial
from typing import Literal

import anyio
import asyncpg
import pytest

from pgratchet import BudgetExceededError, Migrator
from pgratchet.postgres.wire import backends
from tests.support import Connection, Write, a_role, as_role, connected, states, tell, until

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

QUERY = "LOCK TABLE busy IN ACCESS SHARE MODE"


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgratchet.postgres.wire.sending.LOOK_AFTER", 0.1)


async def gives_up(
    dsn: str,
    write: Write,
    caplog: pytest.LogCaptureFixture,
    lock: Literal["session", "transaction", "none"] = "session",
) -> tuple[str, list[str]]:
    """Return what a run ends in that waits for the table in vain, and what it says before each other try."""
    folder = write({"001_a.sql": "ALTER TABLE busy ADD m int;"})
    caplog.clear()
    with (
        caplog.at_level(logging.WARNING, "pgratchet"),
        anyio.fail_after(20),
        pytest.raises(BudgetExceededError) as caught,
    ):
        await Migrator(dsn, folder, lock=lock, lock_timeout=0.4, budget=0.9).up()
    tries = [record.getMessage() for record in caplog.records if "trying again" in record.getMessage()]
    return str(caught.value), tries


async def block(connection: Connection) -> int:
    """Lock the table; return who does."""
    await connection.execute(f"BEGIN; {QUERY}")
    return int(await connection.fetchval("SELECT pg_backend_pid() /* still busy */"))


@pytest.mark.parametrize("lock", ["session", "transaction", "none"])
async def test_a_failure_names_the_blockers_with_all_that_is_known_of_them(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, lock: Literal["session", "transaction", "none"]
) -> None:
    await tell(dsn, "CREATE TABLE busy (n int)")
    async with connected(dsn, application_name="night batch") as one, connected(dsn) as two:
        user = await one.fetchval("SELECT current_user")
        pids = [await block(one), await block(two)]
        end, tries = await gives_up(dsn, write, caplog, lock)
    assert tries
    for text in (end, *tries):
        for pid, application in zip(pids, ("night batch", "no application name"), strict=True):
            about = rf"pid {pid} \({user}, {application}, idle in transaction for \d+ s: SELECT pg_backend_pid\(\)"
            assert re.search(about, text), text
    await Migrator(dsn, write({})).up()
    assert await states(dsn) == {"1": "applied"}


async def test_blockers_are_told_once_and_again_when_they_are_others(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tell(dsn, "CREATE TABLE busy (n int)")
    folder = write({"001_a.sql": "ALTER TABLE busy ADD m int;"})
    looks = 0
    describe = backends.told

    def counted(rows: list[asyncpg.Record]) -> str:
        nonlocal looks
        looks += bool(rows)
        return describe(rows)

    monkeypatch.setattr("pgratchet.postgres.wire.sending.told", counted)

    def said() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        return [line for line in lines if "for a lock held by" in line]

    async def seen_often(lines: int) -> bool:
        nonlocal looks
        if len(said()) < lines:
            looks = 0
        return looks > 5

    with caplog.at_level(logging.WARNING, "pgratchet"), anyio.fail_after(20):
        async with connected(dsn) as one, connected(dsn) as two, anyio.create_task_group() as tasks:
            pids = [await block(one), await block(two)]
            tasks.start_soon(Migrator(dsn, folder, lock_timeout=0).up)
            await until(partial(seen_often, 1))
            await one.execute("COMMIT")
            await until(partial(seen_often, 2))
            await two.execute("COMMIT")
    assert [[pid for pid in pids if f"pid {pid} " in line] for line in said()] == [pids, pids[1:]]
    assert all(re.match(r"waiting since \d\d:\d\d:\d\dZ for a lock held by pid", line) for line in said())
    assert await states(dsn) == {"1": "applied"}


async def test_a_role_that_cannot_see_the_blockers_queries_is_told_which_grant_shows_them(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_role(dsn) as role:
        await tell(dsn, f"GRANT CREATE ON SCHEMA public TO {role}; CREATE TABLE busy (n int)")
        await tell(dsn, f"ALTER TABLE busy OWNER TO {role}")
        async with connected(dsn, application_name="night batch") as batch:
            pid = await block(batch)
            end, _ = await gives_up(as_role(dsn, role), write, caplog)
            assert f"pid {pid}" in end
            assert "GRANT pg_read_all_stats shows what it does" in end
            assert "still busy" not in end

            await tell(dsn, f"GRANT pg_read_all_stats TO {role}")
            end, _ = await gives_up(as_role(dsn, role), write, caplog)
            assert "idle in transaction" in end
            assert "still busy" in end
        await Migrator(as_role(dsn, role), write({})).up()
        assert await states(dsn) == {"1": "applied"}
