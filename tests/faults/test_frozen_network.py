"""A network that swallows everything, without a FIN or a RST: both sides have to find out by themselves."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import anyio
import pytest

from pgratchet import Migrator, embedded
from pgratchet.postgres.link.session import VANISHED_AFTER
from tests.processes import Replica, replicas
from tests.support import Write, ask, column, connected, deserted, missing, sessions, states, tell, until

pytestmark = pytest.mark.anyio

BOUND = VANISHED_AFTER + 2.0
"""Seconds: Linux rings timers as long as these up to a quarter of a second late, of which there are four in a row; then
whoever waits looks for the lock every 0.4 s, and does its work.
"""

BLOCK = ip_network("10.213.0.0/16")[os.getpid() % (1 << 14) * 4]
"""The first of the four addresses of a wire; sessions of tests that run at once have each its own."""

HERE, THERE, BOTH = str(BLOCK + 1), str(BLOCK + 2), f"{BLOCK}/30"
# Without tcp_user_timeout the server would wait a quarter of an hour for its notices to be acknowledged.
TALKING = """
INSERT INTO talking DEFAULT VALUES;
DO $$BEGIN
    FOR n IN 1..(SELECT seconds * 10 FROM patience) LOOP
        RAISE INFO 'still here';
        PERFORM pg_sleep(0.1);
    END LOOP;
END$$;
"""
IDLE = """
import asyncio


async def up(connection):
    await connection.execute("INSERT INTO idle DEFAULT VALUES")
    await asyncio.sleep(await connection.fetchval("SELECT seconds FROM patience"))
"""
FILES = {
    "silent": ("sql", "INSERT INTO silent DEFAULT VALUES; SELECT pg_sleep(seconds) FROM patience;"),
    "talking": ("sql", TALKING),
    "idle": ("py", IDLE),
}


@dataclass
class Side:
    """The other side of a wire: a network namespace with one interface of the same name."""

    name: str

    @property
    def prefix(self) -> list[str]:
        """What runs a command over there."""
        return ["ip", "netns", "exec", self.name]

    def freeze(self) -> None:
        """Have both ends send everything to a hardware address that nobody has, and nobody be told."""
        for prefix, address in self._ends:
            nobody = ["lladdr", "02:00:00:00:00:99", "nud", "permanent"]
            _run(*prefix, "ip", "neigh", "replace", address, "dev", self.name, *nobody)

    def thaw(self) -> None:
        for prefix, address in self._ends:
            _run(*prefix, "ip", "neigh", "del", address, "dev", self.name)

    @property
    def _ends(self) -> tuple[tuple[list[str], str], ...]:
        return ([], THERE), (self.prefix, HERE)

    def connections(self, port: int) -> int:
        """Return how many connections to a port the other side takes to be alive."""
        alive = ["ss", "-tnH", "state", "established", f"( dport = :{port} )"]
        return len(_run(*self.prefix, *alive).splitlines())


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


@contextmanager
def other_side() -> Iterator[Side]:
    """Yield the other side of a new wire; none can be made without root. Nothing of it is left in the end."""
    if sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, ("ip", "ss"))):
        missing("network namespaces need Linux, root, and iproute2")
    side = Side(f"pgr{os.getpid()}")
    try:
        try:
            _run("ip", "netns", "add", side.name)
            _run("ip", "link", "add", side.name, "type", "veth", "peer", "name", side.name, "netns", side.name)
            _run("ip", "address", "add", f"{HERE}/30", "dev", side.name)
            _run("ip", "link", "set", side.name, "up")
            _run(*side.prefix, "ip", "address", "add", f"{THERE}/30", "dev", side.name)
            _run(*side.prefix, "ip", "link", "set", side.name, "up")
        except subprocess.CalledProcessError as error:
            missing(f"no network namespace can be made here: {error.stderr}")
        yield side
    finally:
        for command in (["ip", "link", "del", side.name], ["ip", "netns", "del", side.name]):
            with suppress(subprocess.CalledProcessError):
                _run(*command)


@pytest.fixture
def side() -> Iterator[Side]:
    with other_side() as side:
        yield side


@pytest.fixture
def own(memory: Path | None, side: Side) -> Iterator[embedded.Server]:  # noqa: ARG001 - it brings the address
    """A server that can be reached from the other side as well."""
    with embedded.server(tcp=True, folder=memory) as own:
        own._settings["listen_addresses"] = f"127.0.0.1,{HERE}"
        with (own.data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {BOTH} scram-sha-256\n")
        own.restart()
        yield own


def through(own: embedded.Server) -> str:
    """Return the DSN for the other side."""
    return own.dsn.replace("127.0.0.1", HERE)


async def test_a_frozen_network_frees_the_lock_and_is_noticed_by_the_runner_within_the_bound(
    own: embedded.Server, side: Side, write: Write
) -> None:
    """One runner is in mid-statement, one in a statement that talks, one idle in Python: all vanish at once."""
    async with connected(own.dsn) as observer, AsyncExitStack() as stack:
        await observer.execute(
            "CREATE TABLE patience AS SELECT 600 AS seconds;" + "".join(f"CREATE TABLE {n} (n int);" for n in FILES)
        )
        folders = {name: write({f"{name}/001_m.{suffix}": text}) / name for name, (suffix, text) in FILES.items()}
        runners: dict[str, Replica] = {}
        for name, folder in folders.items():
            (runners[name],) = await stack.enter_async_context(
                replicas(1, through(own), folder, f"history.{name}", side.prefix)
            )
            await runners[name].go()
        with anyio.fail_after(60):
            await until(partial(all_at_work, own.dsn))
            assert side.connections(own.port) >= len(FILES)
            side.freeze()
            frozen = time.monotonic()
            # What runs on the good side is done at once; what is frozen is not told of it.
            await observer.execute("UPDATE patience SET seconds = 0")

            taken_over: dict[str, float] = {}
            async with anyio.create_task_group() as tasks:

                async def take_over(name: str) -> None:
                    steps = await Migrator(own.dsn, folders[name], table=f"history.{name}").up()
                    taken_over[name] = time.monotonic() - frozen
                    assert [step.version for step in steps] == ["1"]

                for name in FILES:
                    tasks.start_soon(take_over, name)
            assert max(taken_over.values()) < BOUND

            async def noticed() -> bool:
                return not await anyio.to_thread.run_sync(side.connections, own.port)

            await until(noticed)
            assert time.monotonic() - frozen < BOUND
            side.thaw()
            for name in ("silent", "talking"):  # the idle one hears of it when it wakes up
                assert await runners[name].result() == (0, {"finished": []})
        for name in FILES:
            assert await states(own.dsn, f"history.{name}") == {"1": "applied"}
            assert await ask(own.dsn, f"SELECT count(*) FROM {name}") == 1


async def all_at_work(dsn: str) -> bool:
    names: list[str] = [row["application_name"] for row in await sessions(dsn)]
    return sum(name.startswith("pgratchet since") for name in names) == len(FILES)


async def test_a_run_survives_a_server_behind_a_frozen_network_and_finishes_each_step_once(
    own: embedded.Server, side: Side, write: Write
) -> None:
    """Nobody takes over: the runner itself finds its server again, and what became of its step."""
    await tell(own.dsn, "CREATE TABLE ledger (n int)")
    insert = "INSERT INTO ledger VALUES ({});"
    # Done long before anybody notices: the answer is lost, and the COMMIT is not.
    files = {"001_m.sql": insert.format(1), "002_m.sql": insert.format(2) + "SELECT pg_sleep(1);"}
    folder = write(files | {"003_m.py": f"async def up(c):\n    await c.execute('{insert.format(3)}')\n"})
    async with replicas(1, through(own), folder, prefix=side.prefix) as (runner,):
        with anyio.fail_after(60):
            await runner.go()
            await until(partial(ask, own.dsn, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
            side.freeze()
            frozen = time.monotonic()

            async def noticed() -> bool:
                return not await anyio.to_thread.run_sync(side.connections, own.port)

            await until(noticed, BOUND)
            assert await column(own.dsn, "SELECT n FROM ledger") == [1, 2]
            assert 1 < time.monotonic() - frozen < BOUND
            side.thaw()
            assert await runner.result() == (0, {"finished": ["1", "2", "3"]})
    assert sorted(await column(own.dsn, "SELECT n FROM ledger")) == [1, 2, 3]
    assert set((await states(own.dsn)).values()) == {"applied"}
    await deserted(own.dsn)
