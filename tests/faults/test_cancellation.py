import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest

from pgratchet import Migrator
from pgratchet.postgres.link.session import CLOSE_SECONDS, PARAMETERS
from tests.faults.proxy import Proxy, proxy
from tests.support import (
    HISTORY,
    LOCK_KEY,
    PASS_GATE,
    PATIENCE,
    Write,
    ask,
    column,
    connected,
    deserted,
    exists,
    gate,
    history,
    runner_lock,
    states,
    tell,
    until,
    waiters,
    without_tls,
)

pytestmark = pytest.mark.anyio

Work = Callable[[], Coroutine[Any, Any, object]]
SLEEP = "SELECT pg_sleep(600);"
GONE_WITHIN = 3.0


async def by_task(work: Work, when: Work) -> None:
    task: asyncio.Future[object] = asyncio.ensure_future(work())
    await when()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def by_deadline(work: Work, when: Work) -> None:
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await when()
            scope.deadline = anyio.current_time()
            await anyio.sleep_forever()
    assert scope.cancelled_caught


async def by_timeout(work: Work, when: Work) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(None) as limit, anyio.create_task_group() as tasks:
            tasks.start_soon(expire, limit)
            await work()

    async def expire(limit: asyncio.Timeout) -> None:
        await when()
        limit.reschedule(asyncio.get_running_loop().time())

    with pytest.raises(TimeoutError):
        await bounded()


WAYS = [by_task, by_deadline, by_timeout]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
Way = Callable[[Work, Work], Awaitable[None]]


async def sleeping(dsn: str) -> int:
    """Return the process id of the session that sleeps on the server, when there is one."""
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"

    async def asleep() -> int:
        return int(await ask(dsn, query) or 0)

    return await until(asleep)


@every_way
@pytest.mark.parametrize(
    "before",
    [
        {"001_a.sql": "CREATE TABLE a (); " + SLEEP},
        {"001_a.sql": "SELECT 1;", "002_b.sql": "CREATE TABLE b (); " + SLEEP, "003_c.sql": "SELECT 1;"},
        {"001_a.py": f"async def up(c):\n    await c.execute('CREATE TABLE a (); {SLEEP}')\n"},
    ],
    ids=["alone", "in company", "Python"],
)
async def test_a_run_cancelled_in_mid_statement_leaves_nothing_behind(
    dsn: str, write: Write, way: Way, before: dict[str, str]
) -> None:
    folder = write(before)
    with anyio.fail_after(10):
        await way(Migrator(dsn, folder).up, lambda: sleeping(dsn))
    await deserted(dsn, GONE_WITHIN)
    assert not await exists(dsn, "a")
    assert not await exists(dsn, "b")
    assert set((await states(dsn)).values()) <= {"applied"}

    write({name: text.replace("600", "0") for name, text in before.items()})
    await Migrator(dsn, folder).up()
    assert len(await states(dsn)) == len(before)


@every_way
async def test_a_cancelled_run_cancels_its_statement_without_waiting_for_the_server_to_notice(
    dsn: str, write: Write, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARAMETERS, "client_connection_check_interval", "0")
    folder = write({"001_a.sql": SLEEP})
    with anyio.fail_after(10):
        await way(Migrator(dsn, folder).up, lambda: sleeping(dsn))
    await deserted(dsn, GONE_WITHIN)
    write({"001_a.sql": "SELECT 1;"})
    await Migrator(dsn, folder).up()


@every_way
async def test_the_next_run_goes_on_after_a_cancellation_between_two_statements_of_a_file(
    dsn: str, write: Write, way: Way
) -> None:
    folder = write({"001_a.sql": f"-- pgratchet: no-transaction\nCREATE TABLE a (); {SLEEP}"})
    with anyio.fail_after(10):
        await way(Migrator(dsn, folder).up, lambda: sleeping(dsn))
    await deserted(dsn, GONE_WITHIN)
    row = (await history(dsn))["1"]
    assert (row["state"], row["statements_done"]) == ("running", 1)
    write({"001_a.sql": "-- pgratchet: no-transaction\nCREATE TABLE a (); SELECT 1;"})
    await Migrator(dsn, folder).up()
    assert await states(dsn) == {"1": "applied"}


@every_way
async def test_a_run_cancelled_while_it_builds_an_index_leaves_no_session_behind(
    dsn: str, write: Write, way: Way
) -> None:
    await tell(dsn, "CREATE TABLE t (n int)")
    folder = write({"001_i.sql": "CREATE INDEX CONCURRENTLY i ON t (n);"})
    waiting = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND wait_event_type = 'Lock'"

    async def waits() -> int:
        return int(await ask(dsn, waiting) or 0)

    async with connected(dsn) as old:
        await old.execute("BEGIN; INSERT INTO t VALUES (1)")
        with anyio.fail_after(10):
            await way(Migrator(dsn, folder).up, lambda: until(waits))
        await deserted(dsn, GONE_WITHIN)
    assert (await history(dsn))["1"]["state"] == "running"
    await Migrator(dsn, folder).up()
    assert await ask(dsn, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass")


@every_way
async def test_a_run_cancelled_while_it_waits_for_the_lock_leaves_nothing_behind(
    dsn: str, write: Write, way: Way
) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();"})
    async with runner_lock(dsn):
        with anyio.fail_after(10):
            await way(Migrator(dsn, folder).up, lambda: waiters(dsn))
        await deserted(dsn, GONE_WITHIN)
    await Migrator(dsn, folder).up()
    assert await exists(dsn, "a")


@every_way
async def test_a_wait_for_another_runner_that_is_cancelled_leaves_nothing_behind(
    dsn: str, write: Write, way: Way
) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();"})
    with anyio.fail_after(10):
        await way(Migrator(dsn, folder).wait, lambda: waiters(dsn))
    await deserted(dsn, GONE_WITHIN)
    await Migrator(dsn, folder).up()


@every_way
async def test_a_run_cancelled_while_it_waits_for_a_table_leaves_nothing_behind(
    dsn: str, write: Write, way: Way
) -> None:
    await tell(dsn, "CREATE TABLE busy (n int)")
    folder = write({"001_a.sql": "ALTER TABLE busy ADD m int;"})
    blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'busy'::regclass"

    async def blocks() -> bool:
        return bool(await ask(dsn, blocked))

    async with connected(dsn) as other:
        await other.execute("BEGIN; LOCK TABLE busy IN ACCESS SHARE MODE")
        with anyio.fail_after(10):
            await way(Migrator(dsn, folder, lock_timeout=0).up, lambda: until(blocks))
        await deserted(dsn, GONE_WITHIN)
    await Migrator(dsn, folder).up()


@every_way
async def test_a_run_cancelled_while_it_connects_ends_at_once(write: Write, way: Way, dsn: str) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();"})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        async def arrived() -> None:
            await anyio.wait_readable(listener)

        with anyio.fail_after(5):
            await way(Migrator(f"postgresql://x@127.0.0.1:{port}/x?sslmode=disable", folder).up, arrived)
    await Migrator(dsn, folder).up()


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02, 0.04])
async def test_the_next_run_goes_on_after_a_cancellation_at_any_moment(dsn: str, write: Write, delay: float) -> None:
    files = {f"{n:03}_m.sql": f"CREATE TABLE t{n} (); INSERT INTO t{n} DEFAULT VALUES;" for n in range(1, 30)}
    files["015_m.py"] = "async def up(c):\n    await c.execute('CREATE TABLE t15 ()')\n"
    del files["015_m.sql"]
    folder = write(files)
    # Cancelled in mid-negotiation of TLS, asyncpg leaves a future that nobody looks at, and asyncio complains.
    plain = dsn + ("&" if "?" in dsn else "?") + "sslmode=disable"
    with anyio.fail_after(10):
        with anyio.move_on_after(delay):
            await Migrator(plain, folder).up()
        await deserted(dsn, GONE_WITHIN)
        await Migrator(dsn, folder).up()
    assert set((await states(dsn)).values()) == {"applied"}
    assert await ask(dsn, "SELECT count(*) FROM pg_class WHERE relname ~ '^t[0-9]+$'") == 29


async def test_cancelling_one_waiter_does_not_disturb_the_others(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": PASS_GATE})
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(Migrator(dsn, folder, lock_timeout=0).up)
        await closed.reached()
        tasks.start_soon(Migrator(dsn, folder).up)
        with anyio.move_on_after(0.3):
            await Migrator(dsn, folder).up()
        await closed.open()
    assert await states(dsn) == {"1": "applied"}
    assert await column(dsn, "SELECT pid FROM pg_locks WHERE objid = $1", LOCK_KEY & 0xFFFFFFFF) == []


async def test_a_run_that_is_cancelled_twice_leaves_nothing_behind(dsn: str, write: Write) -> None:
    """As when a server repeats SIGTERM while the first one is still being obeyed."""
    folder = write({"001_a.sql": SLEEP})
    task: asyncio.Future[Any] = asyncio.ensure_future(Migrator(dsn, folder).up())
    await sleeping(dsn)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with anyio.fail_after(10), pytest.raises(asyncio.CancelledError):
        await task
    await deserted(dsn, GONE_WITHIN)
    write({"001_a.sql": "SELECT 1;"})
    await Migrator(dsn, folder).up()


IN_A_SAVEPOINT = f"""
async def up(connection):
    async with connection.transaction():
        await connection.execute("{SLEEP}")
"""
ENDED_WITHIN = CLOSE_SECONDS + 2
STEPS = {
    "SQL": {"001_a.sql": SLEEP},
    "Python": {"001_a.py": f"async def up(c):\n    await c.execute('{SLEEP}')\n"},
    "in a savepoint": {"001_a.py": IN_A_SAVEPOINT},
    "statement by statement": {"001_a.sql": f"-- pgratchet: no-transaction\n{SLEEP}"},
}


@pytest.mark.parametrize(
    ("way", "kind"),
    [*((way, "in a savepoint") for way in WAYS), *((by_task, kind) for kind in STEPS if kind != "in a savepoint")],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_a_cancelled_run_ends_in_bounded_time_on_a_frozen_network(
    dsn: str, write: Write, way: Way, kind: str
) -> None:
    files = STEPS[kind]
    folder = write(files)
    async with proxy(dsn) as network:

        async def frozen() -> None:
            await sleeping(dsn)
            network.freeze()

        with anyio.fail_after(PATIENCE + ENDED_WITHIN):
            began = await timed(way, Migrator(without_tls(network.dsn), folder).up, frozen)
        assert anyio.current_time() - began < ENDED_WITHIN
    await next_succeeds(dsn, write, files)


@every_way
@pytest.mark.parametrize("files", STEPS.values(), ids=STEPS)
async def test_a_run_heeds_a_cancellation_that_comes_as_its_session_is_lost(
    dsn: str, write: Write, way: Way, files: dict[str, str]
) -> None:
    folder = write(files)
    async with proxy(dsn) as network:
        with anyio.fail_after(PATIENCE):
            await way(Migrator(without_tls(network.dsn), folder).up, partial(lose, dsn, network))
        assert network.connections <= 2  # the run's, and the one that looks who blocks
    await next_succeeds(dsn, write, files)


@pytest.mark.parametrize("way", [by_task, by_timeout], ids=lambda way: way.__name__)
async def test_a_rehearsal_heeds_a_cancellation_that_comes_as_its_session_is_lost(
    dsn: str, write: Write, way: Way
) -> None:
    folder = write({"001_a.sql": SLEEP})
    async with proxy(dsn) as network:
        with anyio.fail_after(PATIENCE):
            await way(Migrator(without_tls(network.dsn), folder).rehearse, partial(lose, dsn, network))
        assert network.connections <= 2
    await next_succeeds(dsn, write, {"001_a.sql": SLEEP})


async def lose(dsn: str, network: Proxy) -> None:
    """Return when the session sleeps, and is lost in the next turn of the loop."""
    await sleeping(dsn)
    asyncio.get_running_loop().call_soon(network.cut)


async def timed(way: Way, work: Work, when: Work) -> float:
    """Cancel work, and return the time at which that was."""
    times: list[float] = []

    async def moment() -> None:
        await when()
        times.append(anyio.current_time())

    await way(work, moment)
    return times[0]


async def next_succeeds(dsn: str, write: Write, files: dict[str, str]) -> None:
    """Show that nothing of a cancelled run is left, and that one that does not sleep gets through."""
    await deserted(dsn, GONE_WITHIN)
    assert set((await states(dsn)).values() if await exists(dsn, HISTORY) else ()) <= {"running"}
    await Migrator(dsn, write({name: text.replace("600", "0") for name, text in files.items()})).up()
    assert await states(dsn) == {"1": "applied"}
