"""The state of a version that a run has begun and not finished: while it is at work, and after it was killed."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from pgratchet import BehindError, Condition, HistoryError, Migrator, Readiness, State, Verdict
from tests.processes import replicas
from tests.support import (
    GATE,
    PASS_GATE,
    Write,
    a_role,
    as_role,
    ask,
    deserted,
    gate,
    runner_lock,
    states,
    tell,
    until,
)

pytestmark = pytest.mark.anyio

HEAD = "-- pgratchet: no-transaction\n"
PROCEDURE = (
    "CREATE PROCEDURE work() LANGUAGE plpgsql AS "
    f"$$ BEGIN COMMIT; PERFORM pg_advisory_xact_lock_shared({GATE}); COMMIT; END $$;"
)
AT_GATE = (
    "CREATE FUNCTION at_gate(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS "
    f"$$ BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN n; END $$;"
)
NOTHING = "CREATE TABLE t AS SELECT 1 AS n;"

CASES = {
    "between statements": (f"{HEAD}CREATE TABLE a ();\n{PASS_GATE}\nCREATE TABLE b ();", State.INTERRUPTED),
    "index": (f"{HEAD}CREATE TABLE a ();\nCREATE INDEX CONCURRENTLY i ON t (at_gate(n));", State.INTERRUPTED),
    "CALL": (f"{HEAD}CREATE TABLE a ();\nCALL work();", State.IN_DOUBT),
}


async def command(dsn: str, name: str, folder: Path) -> tuple[int, Any]:
    """Return the exit code and the JSON document of a command in a process of its own."""
    result = await anyio.run_process(
        [sys.executable, "-m", "pgratchet", name, "--dir", str(folder), "--json"],
        env=os.environ | {"DATABASE_URL": dsn},
        check=False,
    )
    return result.returncode, json.loads(result.stdout)


async def seen(dsn: str, folder: Path) -> State:
    """Return the state of version 1, which `status`, `check` and the readiness have to agree on."""
    migrator = Migrator(dsn, folder)
    with pytest.raises(BehindError) as caught:
        await migrator.check()
    readiness, (entry, *_) = migrator.readiness, await migrator.status()
    of = {
        State.PENDING: readiness.pending,
        State.RUNNING: readiness.running,
        State.INTERRUPTED: readiness.interrupted,
        State.IN_DOUBT: readiness.in_doubt,
    }
    assert [state for state, versions in of.items() if "1" in versions] == [entry.state]
    assert ("1" in caught.value.interrupted, "1" in caught.value.in_doubt) == (
        entry.state is State.INTERRUPTED,
        entry.state is State.IN_DOUBT,
    )
    assert readiness.state is Condition.FAILED
    return entry.state


@pytest.mark.parametrize(("sql", "left"), CASES.values(), ids=CASES)
async def test_a_half_done_version_is_running_while_its_runner_is_at_work_and_not_when_it_is_killed(
    dsn: str, write: Write, sql: str, left: State
) -> None:
    await tell(dsn, NOTHING + AT_GATE + PROCEDURE)
    folder = write({"001_a.sql": sql, "002_b.sql": "SELECT 1;"})
    async with gate(dsn) as closed, replicas(1, dsn, folder) as (replica,):
        await replica.go()
        await closed.reached()
        assert await seen(dsn, folder) is State.RUNNING
        replica.process.kill()
        await deserted(dsn, 2)
        assert await seen(dsn, folder) is left
        _, status = await command(dsn, "status", folder)
        assert [entry["state"] for entry in status["entries"]] == [left, "pending"]
        code, check = await command(dsn, "check", folder)
        assert (code, check["error"]["versions"]) == (3, ["1", "2"])
        assert check["error"]["interrupted" if left is State.INTERRUPTED else "in_doubt"] == ["1"]
    assert (await states(dsn))["1"] == "running"
    if left is State.IN_DOUBT:
        with pytest.raises(HistoryError):
            await Migrator(dsn, folder).up()
        entry = await Migrator(dsn, folder).repair(1, Verdict.AGAIN, "it had no effect")
        assert entry.state is State.INTERRUPTED
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["1", "2"]


@pytest.mark.parametrize(("sql", "left"), CASES.values(), ids=CASES)
async def test_the_readiness_behind_a_cancelled_run_says_what_it_has_left(
    dsn: str, write: Write, sql: str, left: State
) -> None:
    await tell(dsn, NOTHING + AT_GATE + PROCEDURE)
    folder = write({"001_a.sql": sql, "002_b.sql": "SELECT 1;"})
    migrator = Migrator(dsn, folder, lock_timeout=0)
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(migrator.up)
        await closed.reached()
        tasks.cancel_scope.cancel()
    await deserted(dsn)
    interrupted, in_doubt = [("1",) if left is state else () for state in (State.INTERRUPTED, State.IN_DOUBT)]
    assert migrator.readiness == Readiness(Condition.FAILED, pending=("2",), interrupted=interrupted, in_doubt=in_doubt)
    assert await seen(dsn, folder) is left
    if left is State.IN_DOUBT:
        await migrator.repair(1, Verdict.AGAIN, "it had no effect")
    assert [step.version for step in await migrator.up()] == ["1", "2"]


async def test_a_way_down_that_was_killed_is_interrupted_and_the_next_one_goes_on(dsn: str, write: Write) -> None:
    down = f"{HEAD}DROP TABLE a;\n{PASS_GATE}\nSELECT 1;"
    folder = write({"001_a.sql": "CREATE TABLE a ();", "001_a.down.sql": down})
    await Migrator(dsn, folder).up()
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        migrator = Migrator(dsn, folder, lock_timeout=0)
        tasks.start_soon(migrator.down)
        await closed.reached()
        assert await seen(dsn, folder) is State.RUNNING
        tasks.cancel_scope.cancel()
    await deserted(dsn)
    assert migrator.readiness == Readiness(Condition.FAILED, interrupted=("1",))
    assert await seen(dsn, folder) is State.INTERRUPTED
    assert [step.version for step in await Migrator(dsn, folder).down()] == ["1"]


async def test_a_transaction_that_was_killed_leaves_a_pending_version(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": f"CREATE TABLE a ();{PASS_GATE}"})
    async with gate(dsn) as closed, replicas(1, dsn, folder) as (replica,):
        await replica.go()
        await closed.reached()
        replica.process.kill()
        await deserted(dsn, 2)
    assert await seen(dsn, folder) is State.PENDING
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]


@pytest.fixture
async def interrupted(dsn: str, write: Write) -> Path:
    """A folder whose first version was cut off behind its first statement."""
    folder = write({"001_a.sql": CASES["between statements"][0]})
    async with gate(dsn) as closed, replicas(1, dsn, folder) as (replica,):
        await replica.go()
        await closed.reached()
        replica.process.kill()
        await deserted(dsn, 2)
    return folder


async def test_the_lock_of_somebody_who_is_not_at_work_on_it_does_not_make_a_version_running(
    dsn: str, interrupted: Path
) -> None:
    async with runner_lock(dsn):
        assert await seen(dsn, interrupted) is State.INTERRUPTED
    assert len(await Migrator(dsn, interrupted).up()) == 1


async def test_a_runner_that_is_stopped_between_two_statements_is_at_work_as_long_as_it_has_the_lock(
    dsn: str, write: Write
) -> None:
    """As a suspended container is: its session is idle for longer than a runner's ever is between two statements."""
    idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle' AND state_change < now() - interval '1.2 s'"
    folder = write({"001_a.sql": CASES["between statements"][0]})
    async with gate(dsn) as closed, replicas(1, dsn, folder) as (replica,):
        await replica.go()
        pid = await closed.reached()
        replica.process.send_signal(signal.SIGSTOP)
        await closed.open()
        await until(partial(ask, dsn, f"{idle} AND pid = {pid}"))
        assert await seen(dsn, folder) is State.RUNNING
        replica.process.send_signal(signal.SIGCONT)
        code, said = await replica.result()
    assert (code, said["finished"]) == (0, ["1"])


async def test_a_role_that_sees_nothing_of_other_sessions_is_told_the_same(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": CASES["between statements"][0]})
    async with a_role(dsn) as reader, gate(dsn) as closed, replicas(1, dsn, folder, readers=[reader]) as (replica,):
        await replica.go()
        await closed.reached()
        assert await seen(as_role(dsn, reader), folder) is State.RUNNING
        replica.process.kill()
        await deserted(dsn, 2)
        assert await seen(as_role(dsn, reader), folder) is State.INTERRUPTED
    assert len(await Migrator(dsn, folder).up()) == 1


async def test_a_waiting_replica_notices_that_the_runner_has_died_although_no_row_changes(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgratchet.runs.observing.LOOK_EVERY", 0.1)
    monkeypatch.setattr("pgratchet.runs.run.LOOK_AT_ALL_EVERY", 60)
    folder = write({"001_a.sql": CASES["between statements"][0]})
    reader = Migrator(dsn, folder)

    async def sees(state: str) -> bool:
        seen = reader.readiness
        return seen.state is Condition.PENDING and getattr(seen, state) == ("1",)

    async with gate(dsn) as closed, replicas(1, dsn, folder) as (replica,), anyio.create_task_group() as tasks:
        await replica.go()
        await closed.reached()
        tasks.start_soon(reader.wait)
        await until(partial(sees, "running"))
        replica.process.kill()
        await until(partial(sees, "interrupted"))
        await closed.open()
        await Migrator(dsn, folder).up()
    assert reader.readiness.ready
