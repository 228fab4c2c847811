"""Signals that come while the hook waits, and while it does not."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest

from pgratchet import Condition, Migrator, StartInterruptedError, migrated
from pgratchet.web.interruption import SIGNALS
from tests.faults.proxy import proxy
from tests.support import (
    PASS_GATE,
    PATIENCE,
    Write,
    connected,
    deserted,
    exists,
    free_port,
    gate,
    runner_lock,
    states,
    tell,
    until,
    waiters,
)

pytestmark = pytest.mark.anyio

ENDS_WITHIN = 2.0
TWO = {"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "CREATE TABLE b ();"}
SLOW = {"001_a.sql": "CREATE TABLE a ();" + PASS_GATE, "002_b.sql": "CREATE TABLE b ();"}


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param}


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@contextmanager
def served(handler: Any = None) -> Iterator[list[int]]:
    """Let all signals have this handler inside the block, or one that adds them to the list; as a server does."""
    came: list[int] = []
    own = (lambda number, _: came.append(number)) if handler is None else handler
    before = {number: signal.signal(number, own) for number in SIGNALS}
    try:
        yield came
        assert handlers() == [own] * len(SIGNALS), "not put back"
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


async def heard() -> bool:
    return all(getattr(handler, "__module__", "") == "pgratchet.web.interruption" for handler in handlers())


@asynccontextmanager
async def starting(hook: migrated) -> AsyncIterator["asyncio.Future[object]"]:
    """Yield a start that is under way, and cancel it at the end of the block."""
    start: asyncio.Future[object] = asyncio.ensure_future(hook.__aenter__())
    try:
        with anyio.fail_after(PATIENCE):
            yield start
    finally:
        start.cancel()
        await asyncio.wait({start})


async def interrupted(start: "asyncio.Future[object]", number: signal.Signals) -> None:
    """Send this process a signal, and see that it ends the start."""
    os.kill(os.getpid(), number)
    with (
        anyio.fail_after(ENDS_WITHIN),
        pytest.raises(StartInterruptedError, match=f"^{number.name} has ended the start"),
    ):
        await start


@asynccontextmanager
async def silent_port() -> AsyncIterator[int]:
    """Yield a port whose peer accepts connections and says nothing."""
    port = free_port()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port):
        yield port


@pytest.mark.parametrize(
    ("awaited", "number"),
    [
        ("no server", signal.SIGINT),
        ("a silent server", signal.SIGTERM),
        ("the lock", signal.SIGQUIT),
        ("another runner", signal.SIGTERM),
    ],
)
async def test_a_signal_ends_a_start_that_waits_and_reaches_the_handler_of_the_server(
    dsn: str, write: Write, awaited: str, number: signal.Signals
) -> None:
    folder = write(TWO)
    async with AsyncExitStack() as stack:
        came = stack.enter_context(served())
        mode = "apply"
        address = dsn
        if awaited == "no server":
            address = f"postgresql://somebody@127.0.0.1:{free_port()}/shop"
        elif awaited == "a silent server":
            address = f"postgresql://somebody@127.0.0.1:{await stack.enter_async_context(silent_port())}/shop"
        elif awaited == "the lock":
            await stack.enter_async_context(runner_lock(dsn))
        else:
            mode = "wait"
        migrator = Migrator(address, folder)
        start = await stack.enter_async_context(starting(migrated(migrator, mode=mode)))  # type: ignore[arg-type]  # one of them
        await (until(heard) if address != dsn else waiters(dsn))
        await interrupted(start, number)
        assert came == [number]
        assert migrator.readiness.state is Condition.FAILED
        await deserted(dsn)
    async with migrated(Migrator(dsn, folder)):
        assert await states(dsn) == {"1": "applied", "2": "applied"}


async def test_a_signal_reaches_the_handlers_of_the_loop_during_a_wait_and_after_it(dsn: str, write: Write) -> None:
    loop, came = asyncio.get_running_loop(), list[int]()

    async def twice() -> bool:
        return came == [signal.SIGTERM] * 2

    loop.add_signal_handler(signal.SIGTERM, came.append, signal.SIGTERM)
    try:
        async with runner_lock(dsn), starting(migrated(Migrator(dsn, write(TWO)))) as start:
            await waiters(dsn)
            await interrupted(start, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(twice)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
    await Migrator(dsn, write(TWO)).up()


async def test_a_signal_ends_a_start_whose_session_hangs_while_it_waits(dsn: str, write: Write) -> None:
    with served() as came:
        async with (
            proxy(dsn) as between,
            runner_lock(dsn),
            starting(migrated(Migrator(between.dsn, write(TWO)))) as start,
        ):
            await waiters(dsn)
            between.freeze()
            await interrupted(start, signal.SIGTERM)
        assert came == [signal.SIGTERM]
    await Migrator(dsn, write(TWO)).up()


@pytest.mark.parametrize("on_slow", ["wait", "serve-not-ready"])
async def test_a_signal_does_not_interrupt_a_step(dsn: str, write: Write, on_slow: Any) -> None:
    hook = migrated(Migrator(dsn, write(SLOW), lock_timeout=0), on_slow=on_slow, slow_after=30)
    with served() as came:
        async with gate(dsn) as closed, starting(hook) as start:
            await closed.reached()
            assert not await heard()
            os.kill(os.getpid(), signal.SIGTERM)
            await closed.open()
            await start
        assert came == [signal.SIGTERM]
        assert await states(dsn) == {"1": "applied", "2": "applied"}
        await hook.__aexit__(None, None, None)


async def test_a_signal_ends_a_start_whose_step_pauses_before_another_try(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    await tell(dsn, "CREATE TABLE t ()")
    folder = write({"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "SELECT 1; ALTER TABLE t ADD n int;"})
    with served() as came:
        async with connected(dsn) as blocker, starting(migrated(Migrator(dsn, folder, lock_timeout=0.05))) as start:
            await blocker.execute("BEGIN; LOCK TABLE t")

            async def pauses() -> bool:
                # The first pauses are short: the signal could come at the end of one.
                return caplog.text.count("trying again") > 3 and await heard()

            await until(pauses)
            await interrupted(start, signal.SIGINT)
            assert came == [signal.SIGINT]
        assert await states(dsn) == {"1": "applied"}
    await Migrator(dsn, folder).up()


async def test_signals_are_the_servers_again_while_the_work_goes_on_beside_the_application(
    dsn: str, write: Write
) -> None:
    migrator = Migrator(dsn, write(TWO))
    with served() as came:
        async with runner_lock(dsn) as holder:
            async with migrated(migrator, on_slow="serve-not-ready", slow_after=0.1):
                assert not await heard()
                os.kill(os.getpid(), signal.SIGTERM)
                await holder.execute("SELECT pg_advisory_unlock_all()")

                async def ready() -> bool:
                    return migrator.readiness.ready

                await until(ready)
            assert came == [signal.SIGTERM]


async def test_a_start_that_needs_no_wait_puts_the_handlers_back(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write(TWO))
    for _ in range(2):
        with served():
            async with migrated(migrator):
                assert not await heard()


async def test_starts_that_end_one_after_the_other_put_the_handlers_back(dsn: str, write: Write) -> None:
    first, second = (Migrator(dsn, write(TWO), table=f"public.{name}") for name in ("first", "second"))
    with served() as came:
        async with (
            runner_lock(dsn, "public.first") as holder,
            runner_lock(dsn, "public.second"),
            starting(migrated(first)) as going_on,
            starting(migrated(second, mode="wait")) as ending,
        ):
            await waiters(dsn, 2)
            await holder.execute("SELECT pg_advisory_unlock_all()")
            await going_on
            assert await heard()
            await interrupted(ending, signal.SIGINT)
        assert came == [signal.SIGINT]
    assert await states(dsn, "public.first") == {"1": "applied", "2": "applied"}


async def test_a_default_action_stays(dsn: str, write: Write) -> None:
    with served(signal.SIG_DFL):
        async with runner_lock(dsn), starting(migrated(Migrator(dsn, write(TWO)))) as start:
            await waiters(dsn)
            assert handlers() == [signal.SIG_DFL] * len(SIGNALS)
            assert not start.done()


async def test_an_ignored_signal_ends_a_start_that_waits(dsn: str, write: Write) -> None:
    """hypercorn's workers ignore SIGINT: their parent tells them, but only after their start."""
    with served(signal.SIG_IGN):
        async with runner_lock(dsn), starting(migrated(Migrator(dsn, write(TWO)))) as start:
            await waiters(dsn)
            await interrupted(start, signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    await Migrator(dsn, write(TWO)).up()


async def test_a_start_in_another_thread_leaves_signals_alone(dsn: str, write: Write) -> None:
    async def start() -> None:
        async with migrated(Migrator(dsn, write(TWO))):
            pass

    with served():
        async with runner_lock(dsn) as holder:
            thread = threading.Thread(target=asyncio.run, args=(start(),))
            thread.start()
            await waiters(dsn)
            assert not await heard()
            await holder.execute("SELECT pg_advisory_unlock_all()")
        await anyio.to_thread.run_sync(thread.join)
    assert await exists(dsn, "b")
