import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest
from anyio.abc import SocketStream

from pgratchet import BudgetExceededError, Migrator, embedded
from pgratchet.embedded import Server
from pgratchet.postgres.ledger.lock import RunnerLock
from tests.poolers import pgbouncer
from tests.processes import replicas
from tests.support import (
    PASS_GATE,
    Write,
    ask,
    column,
    connected,
    deserted,
    free_port,
    gate,
    history,
    sessions,
    states,
    tell,
    until,
    waiters,
)

pytestmark = pytest.mark.anyio

HERD = 50
RELEASED_WITHIN = 0.5
ROUNDS = 10
"""A convoy would take many times as long in each of them; a busy machine does not in all.

What the machine needs at that moment for as many to connect and look, waiting for nobody, is taken off.
"""


async def test_fifty_waiters_all_go_on_within_half_a_second_of_the_last_commit(dsn: str, write: Write) -> None:
    """They are released by the history: one after the other, by the lock, would take a poll each."""
    await tell(dsn, "CREATE TABLE ledger (n int)")
    delays: list[float] = []
    for number in range(1, ROUNDS + 1):
        folder = write({f"{number:03}_m.sql": f"INSERT INTO ledger VALUES ({number}); {PASS_GATE}"})
        returned: list[datetime] = []

        async def wait(folder: Path = folder, returned: list[datetime] = returned) -> None:
            assert await Migrator(dsn, folder).up() == ()
            returned.append(datetime.now(UTC))

        async with gate(dsn) as closed, anyio.create_task_group() as tasks:
            tasks.start_soon(Migrator(dsn, folder, lock_timeout=0).up)
            await closed.reached()
            for _ in range(HERD):
                tasks.start_soon(wait)
            await waiters(dsn, HERD)
            await closed.open()
        assert len(returned) == HERD
        delay = (max(returned) - (await history(dsn))[str(number)]["finished_at"]).total_seconds()
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for _ in range(HERD):
                tasks.start_soon(Migrator(dsn, folder).check)
        delays.append(delay - (time.monotonic() - began))
        if delays[-1] < RELEASED_WITHIN:
            break
    assert min(delays) < RELEASED_WITHIN, delays
    assert await column(dsn, "SELECT n FROM ledger") == list(range(1, len(delays) + 1))


async def test_waiters_log_since_when_they_wait_and_each_change_of_what_the_holder_does_once(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgratchet.runs.run.LOOK_EVERY", 0.05)
    second_gate = 8
    second = f"SELECT pg_advisory_xact_lock_shared({second_gate});"
    folder = write({"007_first.sql": PASS_GATE, "008_second.sql": "-- pgratchet: no-transaction\n" + second})

    looks = 0
    holder = RunnerLock.holder

    async def counted(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return await holder(*arguments)

    monkeypatch.setattr(RunnerLock, "holder", counted)

    def said(what: str) -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        return [line for line in lines if "waiting since" in line and f"for up {what} (role" in line]

    async def seen_often(what: str) -> bool:
        nonlocal looks
        if not any("blocked by a lock" in line for line in said(what)):
            looks = 0
        return looks > 5

    with caplog.at_level(logging.INFO, "pgratchet"):
        async with connected(dsn) as stopper, gate(dsn) as closed, anyio.create_task_group() as tasks:
            await stopper.execute(f"SELECT pg_advisory_lock({second_gate})")
            tasks.start_soon(Migrator(dsn, folder, lock_timeout=0).up)
            await closed.reached()
            began = datetime.now(UTC)
            tasks.start_soon(Migrator(dsn, folder).up)
            await until(partial(seen_often, "7 first"))
            await closed.open()
            await until(partial(seen_often, "8 second"))
            await stopper.execute(f"SELECT pg_advisory_unlock({second_gate})")
    lines = said("7 first") + said("8 second")
    assert len(set(lines)) == len(lines)
    (since,) = {line.split()[2] for line in lines}
    assert f"{began:%H:%M:%SZ}" <= since <= f"{began + timedelta(seconds=2):%H:%M:%SZ}"
    assert await states(dsn) == {"7": "applied", "8": "applied"}


CANNOT = {
    "57P03": asyncpg.CannotConnectNowError("the database system is starting up"),
    "53300": asyncpg.TooManyConnectionsError("sorry, too many clients already"),
    "refused": ConnectionRefusedError(111, "refused"),
    "reset": ConnectionResetError(104, "reset"),
}


@pytest.mark.parametrize("reason", CANNOT)
async def test_a_run_asks_an_unavailable_server_again_until_the_budget_runs_out(
    dsn: str, write: Write, reason: str
) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})
    attempts = 0

    async def connect() -> "asyncpg.Connection[asyncpg.Record]":
        nonlocal attempts
        attempts += 1
        raise CANNOT[reason]

    with anyio.fail_after(5), pytest.raises(BudgetExceededError, match="cannot connect"):
        await Migrator(connect=connect, migrations=folder, budget=0.5).up()
    assert attempts > 2
    await Migrator(dsn, folder).up()


@pytest.mark.parametrize("there", ["nothing", "a peer that says nothing", "a peer that hangs up"])
async def test_a_server_that_never_answers_is_given_up_after_the_budget_for_connecting(
    dsn: str, write: Write, there: str
) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})

    async def serve(stream: SocketStream) -> None:
        async with stream:
            if there == "a peer that says nothing":
                await anyio.sleep_forever()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=(port := free_port()))
    async with listener, anyio.create_task_group() as tasks:
        if there == "nothing":
            await listener.aclose()
        else:
            tasks.start_soon(listener.serve, serve)
        absent = f"postgresql://somebody:secret@127.0.0.1:{port}/shop?sslmode=disable"
        for run in (Migrator(absent, folder, connect_budget=0.3).up, Migrator(absent, folder, connect_budget=0.3).wait):
            with anyio.fail_after(5), pytest.raises(BudgetExceededError) as caught:
                await run()
            said = str(caught.value)
            assert said.startswith("gave up after 0.3 s: cannot connect: ")
            assert f"127.0.0.1:{port}" in said
            assert said.endswith("; start the server, or correct its address")
            assert "secret" not in said
        tasks.cancel_scope.cancel()
    await Migrator(dsn, folder).up()


async def test_a_server_that_is_full_has_answered(memory: Path | None, write: Write) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})
    with small_server(memory, 2) as own:

        async def refused_often() -> bool:
            return own.log.read_text(errors="replace").count("sorry, too many clients already") > 4

        async with anyio.create_task_group() as tasks, connected(own.dsn), connected(own.dsn):
            tasks.start_soon(Migrator(own.dsn, folder, connect_budget=0.2).up)
            # By then its pauses have been longer than 0.2 s.
            await until(refused_often)
        assert await states(own.dsn) == {"1": "applied"}


async def test_a_pooler_without_its_server_has_answered(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})
    async with pgbouncer(f"postgresql://somebody@127.0.0.1:{free_port()}/shop", query_wait_timeout=1) as pooler:
        with anyio.fail_after(20), pytest.raises(BudgetExceededError, match="gave up after 4 s: cannot connect"):
            await Migrator(pooler.dsn, folder, budget=4, connect_budget=3).up()
    await Migrator(dsn, folder).up()


@contextmanager
def small_server(folder: Path | None, connections: int) -> Iterator[Server]:
    settings = {"max_connections": str(connections), "superuser_reserved_connections": "0"}
    with embedded.server(tcp=True, folder=folder, settings=settings) as own:
        yield own


async def test_everybody_gets_through_a_server_with_far_fewer_connections_than_replicas(
    memory: Path | None, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write({f"{n:03}_m.sql": "SELECT pg_sleep(0.1);" for n in range(1, 6)} | {"006_m.sql": PASS_GATE})
    with small_server(memory, 6) as own, caplog.at_level(logging.WARNING, "pgratchet"):
        done: list[int] = []

        async def replica(budget: float) -> None:
            done.append(len(await Migrator(own.dsn, folder, lock_timeout=0, budget=budget).up()))

        async with gate(own.dsn) as closed:
            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    for _ in range(30):
                        tasks.start_soon(replica, 60.0)

                    async def full() -> bool:
                        return "53300" in caplog.text

                    await until(full)
                    # Full it stays: who has a connection keeps it for as long as it waits.
                    with pytest.raises(BudgetExceededError, match="53300"):
                        await Migrator(own.dsn, folder, budget=0.2).up()
                    await closed.open()
        assert sorted(done) == [0] * 29 + [6]
        await deserted(own.dsn)


async def test_all_processes_get_through_a_server_with_half_as_many_connections(
    memory: Path | None, write: Write
) -> None:
    folder = write({f"{n:03}_m.sql": "SELECT pg_sleep(0.02);" for n in range(1, 4)} | {"004_m.sql": PASS_GATE})
    with small_server(memory, 6) as own:
        async with gate(own.dsn) as closed, replicas(12, own.dsn, folder, budget=60) as racing:
            for replica in racing:
                await replica.go()

            async def full() -> bool:
                return "sorry, too many clients already" in own.log.read_text(errors="replace")

            await until(full)
            await closed.open()
            outcome = [await replica.result() for replica in racing]
        assert [code for code, _ in outcome] == [0] * 12
        assert sorted(len(said["finished"]) for _, said in outcome) == [0] * 11 + [4]
        await deserted(own.dsn)


async def refused(dsn: str) -> bool:
    """Say whether the server is there, and lets nobody in: 57P03."""
    try:
        async with connected(dsn):
            return False
    except asyncpg.CannotConnectNowError:
        return True


@asynccontextmanager
async def five_that_are_refused(own: Server, folder: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Run migrators; the block begins when the server's refusal was heard, and at its end all of them get through."""

    async def heard() -> bool:
        return "57P03" in caplog.text

    await until(lambda: refused(own.dsn))
    with anyio.fail_after(60), caplog.at_level(logging.WARNING, "pgratchet"):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(Migrator(own.dsn, folder, budget=60).up)
            await until(heard)
            yield
    assert await states(own.dsn) == {"1": "applied"}


async def test_runs_wait_for_a_server_that_shuts_down_until_it_is_back(
    memory: Path | None, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})
    with small_server(memory, 20) as own:
        async with connected(own.dsn) as last:
            # In this mode it stays, and refuses, for as long as somebody is connected.
            os.kill(own.pid or 0, signal.SIGTERM)
            async with five_that_are_refused(own, folder, caplog):
                last.terminate()
                await anyio.to_thread.run_sync(own.restart)


async def test_runs_wait_for_a_standby_that_lets_nobody_in_until_it_is_promoted(
    memory: Path | None, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})
    with small_server(memory, 20) as own:
        own.stop()
        own._settings["hot_standby"] = "off"
        signal_file(own, "standby.signal")
        await anyio.to_thread.run_sync(own.start)
        async with five_that_are_refused(own, folder, caplog):
            signal_file(own, "promote")
            # It looks for that file when it gets this signal.
            os.kill(own.pid or 0, signal.SIGUSR1)


def signal_file(own: Server, name: str) -> None:
    path, owner = own.data / name, own.data.stat()
    path.touch()
    os.chown(path, owner.st_uid, owner.st_gid)


async def test_runs_wait_for_a_server_that_starts(
    memory: Path | None, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})

    async def heard() -> bool:
        return caplog.text.count("cannot connect") >= 5

    with small_server(memory, 20) as own, caplog.at_level(logging.WARNING, "pgratchet"):
        own.stop()
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(Migrator(own.dsn, folder, budget=30).up)
            await until(heard)
            await anyio.to_thread.run_sync(own.start)
        assert await states(own.dsn) == {"1": "applied"}


async def test_twenty_processes_wait_while_an_index_is_built_concurrently(
    dsn: str, write: Write, server: Server
) -> None:
    """The build waits for a snapshot that is older than all of them, and for none of theirs."""
    await tell(dsn, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    folder = write(
        {
            "001_i.sql": "CREATE INDEX CONCURRENTLY i ON t (n);",
            "002_j.sql": "CREATE INDEX CONCURRENTLY j ON t (n); REINDEX INDEX CONCURRENTLY i;",
        }
    )
    said_before = len(server.log.read_text(errors="replace"))
    building = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND wait_event = 'virtualxid'"
    async with connected(dsn) as old, replicas(20, dsn, folder) as herd:
        await old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t")
        for replica in herd:
            await replica.go()
        with anyio.fail_after(40):
            await until(lambda: ask(dsn, building))
            await waiters(dsn, 19)
            assert len(await sessions(dsn)) == 20
            assert await ask(dsn, building) == 1
            await old.execute("COMMIT")
            outcome = [await replica.result() for replica in herd]
    assert [code for code, _ in outcome] == [0] * 20
    assert sorted(len(said["finished"]) for _, said in outcome) == [0] * 19 + [2]
    assert await column(dsn, "SELECT indisvalid FROM pg_index WHERE indrelid = 't'::regclass") == [True, True]
    assert "deadlock" not in server.log.read_text(errors="replace")[said_before:]
    await deserted(dsn)
