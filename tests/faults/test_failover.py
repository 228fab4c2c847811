import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import anyio
import pytest

from pgratchet import BudgetExceededError, Finished, Migrator, ServerError
from pgratchet.embedded import Server
from pgratchet.embedded import server as embedded_server
from tests.faults.pairs import pair
from tests.faults.proxy import Proxy, proxy
from tests.support import (
    PASS_GATE,
    Write,
    abandoning,
    ask,
    column,
    connected,
    deserted,
    gate,
    leave,
    states,
    tell,
    until,
)

pytestmark = pytest.mark.anyio

LAST = 40


def many() -> dict[str, str]:
    """Return many small migrations, each of which would succeed twice, and be seen to; some are Python."""
    insert = "INSERT INTO ledger VALUES ({0}); SELECT pg_sleep(0.03);"
    python = "async def up(connection):\n    await connection.execute('" + insert + "')\n"
    kinds = {n: ("py", python) if n % 4 == 0 else ("sql", insert) for n in range(1, LAST + 1)}
    return {f"{n:03}_m.{suffix}": text.format(n) for n, (suffix, text) in kinds.items()}


class Runs:
    """Several runs at once, as of several replicas, and what they say they finished."""

    def __init__(self, folder: Path, *dsns: str, budget: float | None = None) -> None:
        self.finished: list[int] = []
        self.running = len(dsns)
        self._migrators = [Migrator(dsn, folder, lock_timeout=0, budget=budget) for dsn in dsns]

    async def go(self) -> None:
        async with anyio.create_task_group() as tasks:
            for migrator in self._migrators:
                tasks.start_soon(self._run, migrator)

    async def _run(self, migrator: Migrator) -> None:
        self.finished += [int(step.version) for step in await migrator.up()]
        self.running -= 1


async def applied_once(dsn: str, runs: Runs, last: int = LAST) -> None:
    """Assert that each migration had its effect once, and was reported once, by whichever run."""
    everything = list(range(1, last + 1))
    assert sorted(await column(dsn, "SELECT n FROM ledger")) == everything
    assert sorted(runs.finished) == everything
    assert set((await states(dsn)).values()) == {"applied"}
    await deserted(dsn)


async def progress(dsn: str) -> int:
    return int(await ask(dsn, "SELECT count(*) FROM ledger"))


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_run_whose_sessions_are_ended_at_random_loses_and_repeats_nothing(
    dsn: str, write: Write, seed: int
) -> None:
    await tell(dsn, "CREATE TABLE ledger (n int)")
    chance = random.Random(seed)  # noqa: S311 - the same moments each time, as far as a clock can have that
    runs = Runs(write(many()), dsn, dsn)
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name LIKE 'pgratchet%'"
    )
    async with connected(dsn) as killer:
        # A session may be ended between two requests.
        with anyio.fail_after(60), abandoning():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runs.go)
                kills = 0
                while runs.running and kills < 4:
                    await anyio.sleep(chance.uniform(0.05, 0.5))
                    kills += len(await killer.fetch(kill)) > 0
    assert kills
    await applied_once(dsn, runs)


@pytest.fixture
def own(memory: Path | None) -> Iterator[Server]:
    with embedded_server(tcp=True, folder=memory) as own:
        yield own


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_run_survives_a_server_that_restarts_again_and_again_while_others_wait(
    own: Server, write: Write, mode: Literal["fast", "immediate"]
) -> None:
    await tell(own.dsn, "CREATE TABLE ledger (n int)")
    runs = Runs(write(many()), own.dsn, own.dsn, own.dsn)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runs.go)
            for least in (1, 10, 25):

                async def far_enough(least: int = least) -> bool:
                    return await progress(own.dsn) >= least

                await until(far_enough)
                await anyio.to_thread.run_sync(own.restart, mode)
    await applied_once(own.dsn, runs)


async def give_up(dsn: str, folder: Path, reported: list[str]) -> None:
    """Run until the budget is spent on a server that stays away, and add the versions that the error reports."""
    with pytest.raises(BudgetExceededError, match=r"gave up after 1\.5 s: cannot connect") as error:
        await Migrator(dsn, folder, lock_timeout=0, budget=1.5, connect_budget=1).up()
    reported += ["gave up", *(step.version for step in error.value.finished)]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.parametrize("suffix", ["py", "sql"])
async def test_a_run_waits_for_a_server_that_stays_away_while_the_budget_lasts(
    own: Server, write: Write, mode: Literal["fast", "immediate"], suffix: str
) -> None:
    await tell(own.dsn, "CREATE TABLE ledger (n int)")
    insert = "INSERT INTO ledger VALUES ({});"
    python = f"async def up(c):\n    await c.execute('{insert.format(2)}')\n"
    second = {"002_m.py": python} if suffix == "py" else {"002_m.sql": insert.format(2)}
    folder = write({"001_m.sql": insert.format(1), **second, "003_m.sql": insert.format(3) + PASS_GATE})
    reported: list[str] = []
    async with anyio.create_task_group() as tasks, gate(own.dsn) as closed:
        tasks.start_soon(give_up, own.dsn, folder, reported)
        await closed.reached()
        await anyio.to_thread.run_sync(own.stop, mode)
    assert reported == ["gave up", "1", "2"]
    await anyio.to_thread.run_sync(own.start)
    assert [step.version for step in await Migrator(own.dsn, folder).up()] == ["3"]
    assert await column(own.dsn, "SELECT n FROM ledger ORDER BY n") == [1, 2, 3]
    assert set((await states(own.dsn)).values()) == {"applied"}


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_run_reports_no_step_whose_message_a_server_that_stays_away_has_not_answered(
    own: Server, write: Write, mode: Literal["fast", "immediate"]
) -> None:
    """The steps before the blocked one may be committed, and nobody can say so now."""
    await tell(own.dsn, "CREATE TABLE held ()")
    files = {"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "CREATE TABLE b ();"}
    folder = write(files | {"003_c.sql": "ALTER TABLE held ADD COLUMN n int;"})
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'held'::regclass"
    reported: list[str] = []
    async with anyio.create_task_group() as tasks, connected(own.dsn) as holder:
        await holder.execute("BEGIN; LOCK TABLE held IN ACCESS SHARE MODE")
        tasks.start_soon(give_up, own.dsn, folder, reported)
        await until(partial(ask, own.dsn, waiting))
        await leave(own.dsn)
        await anyio.to_thread.run_sync(own.stop, mode)
    assert reported == ["gave up"]
    await anyio.to_thread.run_sync(own.start)
    assert (await Migrator(own.dsn, folder).up())[-1].version == "3"
    assert set((await states(own.dsn)).values()) == {"applied"}


class TestAFailover:
    @pytest.fixture
    def servers(self, memory: Path | None) -> Iterator[tuple[Server, Server]]:
        with pair(memory) as servers:
            yield servers

    @pytest.fixture
    async def endpoint(self, servers: tuple[Server, Server]) -> AsyncIterator[Proxy]:
        """One address, as clouds have it, that leads to the primary, and later to the standby."""
        async with proxy(servers[0].dsn) as endpoint:
            yield endpoint

    @pytest.mark.parametrize("way", ["two hosts", "two hosts, primary wanted", "one endpoint, primary wanted"])
    async def test_a_run_follows_a_failover_in_the_middle(
        self,
        servers: tuple[Server, Server],
        endpoint: Proxy,
        write: Write,
        way: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        primary, standby = servers
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}" if "two" in way else f"127.0.0.1:{endpoint.port}"
        user = urlsplit(primary.dsn).netloc.rpartition("@")[0]
        dsn = f"postgresql://{user}@{hosts}/postgres" + ("?target_session_attrs=primary" if "wanted" in way else "")
        await tell(primary.dsn, "CREATE TABLE ledger (n int)")
        files = {f"{n:03}_m.sql": f"INSERT INTO ledger VALUES ({n});" for n in range(1, 8)}
        runs = Runs(write(files | {"004_m.sql": "INSERT INTO ledger VALUES (4);" + PASS_GATE}), dsn, dsn)
        with caplog.at_level(logging.WARNING, "pgratchet"), anyio.fail_after(60):
            async with anyio.create_task_group() as tasks, gate(primary.dsn) as closed:
                tasks.start_soon(runs.go)
                await closed.reached()
                endpoint.lead_to(standby.dsn)
                await anyio.to_thread.run_sync(primary.stop, "immediate")
                endpoint.cut()
                await told(caplog, "cannot connect" if way == "two hosts, primary wanted" else "waiting for a primary")
                assert runs.running == 2
                assert await ask(standby.dsn, "SELECT pg_promote()")
        await applied_once(standby.dsn, runs, 7)


INSERT = "INSERT INTO ledger VALUES ({});"
DELETE = "DELETE FROM ledger WHERE n = {};"
# Python, so that no message is shared, and what is done is known.
LOSABLE = {f"{n:03}_m.py": f"async def up(c):\n    await c.execute('{INSERT.format(n)}')\n" for n in range(1, 6)}
REVERTIBLE = {f"{n:03}_m.sql": INSERT.format(n) for n in range(1, 6)} | {
    f"{n:03}_m.down.sql": DELETE.format(n) for n in range(1, 6)
}


class TestAFailoverThatLosesCommits:
    """Those that an asynchronous standby never got: history and effects go together."""

    @pytest.fixture
    def servers(self, memory: Path | None) -> Iterator[tuple[Server, Server]]:
        with pair(memory, synchronous=False) as servers:
            yield servers

    @pytest.mark.parametrize("ended", [False, True], ids=["in mid-run", "after a run"])
    async def test_a_run_applies_lost_migrations_again_after_a_failover_and_reports_them_once(
        self, servers: tuple[Server, Server], write: Write, caplog: pytest.LogCaptureFixture, *, ended: bool
    ) -> None:
        primary, standby = servers
        await tell(primary.dsn, "CREATE TABLE ledger (n int)")
        folder = write(LOSABLE)
        await Migrator(primary.dsn, folder).up(to=1)
        await cut_off(primary, standby)
        if ended:
            assert len(await Migrator(primary.dsn, folder).up()) == 4
            await take_over(primary, standby)
            finished = await Migrator(standby.dsn, folder).up()
        else:
            sql = INSERT.format(4) + PASS_GATE.strip()
            write({"004_m.py": f"async def up(c):\n    await c.execute('{sql}')\n"})
            finished = await through_a_failover(primary, standby, Migrator.up, folder)
        assert [step.version for step in finished] == ["2", "3", "4", "5"]
        lost = [n for n in range(1, 6) if f"up {n} m was committed, and the server has lost it" in caplog.text]
        assert lost == ([] if ended else [2, 3])
        assert sorted(await column(standby.dsn, "SELECT n FROM ledger")) == [1, 2, 3, 4, 5]
        assert await states(standby.dsn) == dict.fromkeys("12345", "applied")

    async def test_a_way_down_reverts_migrations_again_after_a_failover_and_reports_them_once(
        self, servers: tuple[Server, Server], write: Write
    ) -> None:
        primary, standby = servers
        await tell(primary.dsn, "CREATE TABLE ledger (n int)")
        folder = write(REVERTIBLE | {"003_m.down.sql": DELETE.format(3) + PASS_GATE})
        await Migrator(primary.dsn, folder).up()
        await cut_off(primary, standby)
        down = partial(Migrator.down, to=1)
        finished = await through_a_failover(primary, standby, down, folder)
        assert [step.version for step in finished] == ["5", "4", "3", "2"]
        assert await column(standby.dsn, "SELECT n FROM ledger") == [1]
        assert len(await Migrator(standby.dsn, folder).up()) == 4


async def cut_off(primary: Server, standby: Server) -> None:
    """Return when the standby has everything that the primary has now, and will not get more."""
    position = await ask(primary.dsn, "SELECT pg_current_wal_flush_lsn()::text")
    await until(lambda: ask(standby.dsn, "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", position))
    await tell(standby.dsn, "ALTER SYSTEM SET primary_conninfo = ''")
    await tell(standby.dsn, "SELECT pg_reload_conf()")
    await until(lambda: ask(standby.dsn, "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)"))


async def take_over(primary: Server, standby: Server) -> None:
    await anyio.to_thread.run_sync(primary.stop, "immediate")
    assert await ask(standby.dsn, "SELECT pg_promote()")


async def through_a_failover(
    primary: Server, standby: Server, verb: Callable[[Migrator], Awaitable[tuple[Finished, ...]]], folder: Path
) -> tuple[Finished, ...]:
    """Return what a run has finished whose server was lost when it stood at the gate, and the standby took over."""
    finished: list[Finished] = []

    async def run(dsn: str) -> None:
        finished.extend(await verb(Migrator(dsn, folder, lock_timeout=0)))

    async with proxy(primary.dsn) as endpoint, anyio.create_task_group() as tasks, gate(primary.dsn) as closed:
        tasks.start_soon(run, endpoint.dsn)
        await closed.reached()
        await take_over(primary, standby)
        endpoint.lead_to(standby.dsn)
        endpoint.cut()
    await deserted(standby.dsn)
    return tuple(finished)


@pytest.mark.parametrize("budget", [None, 1.5], ids=["until it is over", "while the budget lasts"])
async def test_a_run_waits_for_a_server_that_has_become_read_only_in_the_middle(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, budget: float | None
) -> None:
    folder = write({"001_a.sql": PASS_GATE})
    migrator = Migrator(dsn, folder, lock_timeout=0, budget=budget)
    setting = f"DATABASE {urlsplit(dsn).path[1:]} SET default_transaction_read_only"
    with caplog.at_level(logging.WARNING, "pgratchet"):
        async with anyio.create_task_group() as tasks, gate(dsn) as closed:

            async def run() -> None:
                if budget is None:
                    assert [step.version for step in await migrator.up()] == ["1"]
                else:
                    with pytest.raises(BudgetExceededError, match="read-only"):
                        await migrator.up()

            tasks.start_soon(run)
            pid = await closed.reached()
            await tell(dsn, f"ALTER {setting} = on")
            await closed.connection.execute(f"SELECT pg_terminate_backend({pid})")
            await told(caplog, "waiting for a primary")
            if budget is None:
                await tell(dsn, f"BEGIN READ WRITE; ALTER {setting} = off; COMMIT")
                await closed.open()
    with pytest.raises(ServerError, match="read-only") if budget else nullcontext():
        await migrator.up()
    await tell(dsn, f"BEGIN READ WRITE; ALTER {setting} = off; COMMIT")
    await migrator.up()
    assert await states(dsn) == {"1": "applied"}


async def told(caplog: pytest.LogCaptureFixture, what: str) -> None:
    async def said() -> bool:
        return what in caplog.text

    await until(said)
