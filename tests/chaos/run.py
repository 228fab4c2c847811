"""Trials in several processes, each of which has a server of its own."""

import asyncio
import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

import asyncpg

from pgratchet import embedded
from tests.chaos.harm import ROLE
from tests.chaos.plan import plan
from tests.chaos.trial import Outcome, Trial

SETTINGS = {"log_line_prefix": "%m [%p] ", "log_connections": "on"}
MOST_REPLICAS = 5
MEMORY = Path("/dev/shm")  # noqa: S108 - private directories are made in it

_servers: list[embedded.Server] = []
_stack = ExitStack()


def run(seeds: Sequence[int], jobs: int, folder: Path) -> Iterator[Outcome]:
    """Yield the outcome of each seed's trial, as they come; `folder` has the evidence of trials with violations."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _begin) as pool:
        for future in as_completed([pool.submit(one, seed, folder) for seed in seeds]):
            yield future.result()


def one(seed: int, folder: Path) -> Outcome:
    """Return the outcome of one trial on this process's server."""
    mine = folder / f"seed-{seed}"
    shutil.rmtree(mine, ignore_errors=True)
    outcome = asyncio.run(Trial(_servers[0], plan(seed), mine).run())
    if not outcome.violations:
        shutil.rmtree(mine)
    return outcome


def _begin() -> None:
    memory = MEMORY if MEMORY.is_dir() else None
    server = _stack.enter_context(embedded.server(tcp=True, folder=memory, settings=SETTINGS))
    asyncio.run(_make_roles(server.dsn))
    _servers.append(server)


async def _make_roles(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    # With the same password as postgres: a verifier does not depend on the role's name.
    verifier = await connection.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = current_user")
    for number in range(MOST_REPLICAS):
        await connection.execute(f"CREATE ROLE {ROLE}{number} LOGIN SUPERUSER PASSWORD '{verifier}'")
    await connection.close()
