"""A process that waits while another release fixes and applies what it waits for."""

import os
import re
import sys
from functools import partial
from pathlib import Path

import anyio
import pytest

from pgratchet import Condition, HistoryError, MigrationFailedError, Migrator
from tests.processes import replicas
from tests.support import PASS_GATE, PATIENCE, Write, ask, gate, states, tell, until, waiters

pytestmark = pytest.mark.anyio

OLDER = re.compile(r"while this run waited; the files here are older than those of the run that did it")
BROKEN, FIXED = "INSERT INTO ledger SELECT 1/0;", "INSERT INTO ledger VALUES (2);"
FIRST = {"001_first.sql": "CREATE TABLE ledger (n int);"}


def release(write: Write, name: str, files: dict[str, str]) -> Path:
    return write({f"{name}/{file}": text for file, text in (FIRST | files).items()}) / name


async def failed(dsn: str, folder: Path) -> Migrator:
    """Return a migrator whose second migration has failed."""
    migrator = Migrator(dsn, folder)
    with pytest.raises(MigrationFailedError):
        await migrator.up()
    return migrator


async def waits(dsn: str) -> bool:
    following = "datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%row_to_json%'"
    return bool(await ask(dsn, f"SELECT count(*) FROM pg_stat_activity WHERE {following}"))


async def test_a_process_that_waits_with_the_files_that_failed_ends_once_the_fixed_ones_are_applied(
    dsn: str, write: Write
) -> None:
    old = release(write, "old", {"002_second.sql": BROKEN})
    await failed(dsn, old)
    command = [sys.executable, "-m", "pgratchet", "wait", "--dir", str(old)]
    async with await anyio.open_process(command, env=os.environ | {"DATABASE_URL": dsn}) as process:
        with anyio.fail_after(20):
            await until(partial(waits, dsn))
            await Migrator(dsn, release(write, "new", {"002_second.sql": FIXED})).up()
            assert process.stderr is not None
            said = b"".join([part async for part in process.stderr]).decode()
            assert await process.wait() == 4
    assert "2 second failed" in said
    assert OLDER.search(said.replace("\n", " "))
    assert "was edited" not in said
    await Migrator(dsn, old.parent / "new").wait()


async def test_it_does_not_wait_for_the_versions_that_are_still_missing(dsn: str, write: Write) -> None:
    reader = await failed(dsn, release(write, "old", {"002_second.sql": BROKEN, "003_third.sql": "SELECT 3;"}))

    async def ends() -> None:
        with pytest.raises(HistoryError, match=OLDER) as caught:
            await reader.wait()
        assert caught.value.versions == ("2",)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends)
            await until(partial(waits, dsn))
            await Migrator(dsn, release(write, "new", {"002_second.sql": FIXED})).up()
    assert reader.readiness.state is Condition.FAILED


async def test_a_replica_that_waits_for_its_turn_ends_as_well(dsn: str, write: Write) -> None:
    old = release(write, "old", {"002_second.sql": BROKEN})
    new = release(write, "new", {"002_second.sql": PASS_GATE + FIXED})
    async with gate(dsn) as closed, replicas(1, dsn, new) as (newer,), replicas(1, dsn, old) as (older,):
        await newer.go()
        await closed.reached()
        await older.go()
        await waiters(dsn)
        await closed.open()
        assert (await newer.result())[0] == 0
        code, said = await older.result()
    assert (code, said["error"]) == (1, "HistoryError")
    assert OLDER.search(said["text"])
    assert await states(dsn) == {"1": "applied", "2": "applied"}
    assert await Migrator(dsn, new).up() == ()


async def test_a_process_that_waits_for_a_file_which_the_newer_release_has_given_up_ends(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgratchet.runs.run.LOOK_AT_ALL_EVERY", 0.2)
    reader = await failed(dsn, release(write, "old", {"002_second.sql": BROKEN}))

    async def ends() -> None:
        with pytest.raises(HistoryError, match=OLDER):
            await reader.wait()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends)
            await until(partial(waits, dsn))
            await Migrator(dsn, release(write, "new", {"003_instead.sql": FIXED})).up()
    await Migrator(dsn, release(write, "new", {})).check()


async def test_a_process_that_waits_with_files_that_can_be_applied_as_they_are_goes_on(dsn: str, write: Write) -> None:
    """The cause of the failure was in the database."""
    folder = release(write, "release", {"002_second.sql": "INSERT INTO missing VALUES (2);"})
    reader = await failed(dsn, folder)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader.wait)
            await until(partial(waits, dsn))
            await tell(dsn, "CREATE TABLE missing (n int)")
            await Migrator(dsn, folder).up()
    assert reader.readiness.ready
