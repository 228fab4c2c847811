"""Replicas as processes of their own."""

import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.support import HISTORY

WORKER = Path(__file__).parent / "concurrency" / "worker.py"


@dataclass
class Replica:
    """A process that is ready to migrate, and starts when the test tells it to."""

    process: Process
    output: BufferedByteReceiveStream

    async def go(self) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send(b"go\n")

    async def result(self) -> tuple[int, Any]:
        """Return the exit code and the replica's report, once it has ended."""
        said = await self.output.receive_until(b"\n", 100_000)
        return await self.process.wait(), json.loads(said)


@asynccontextmanager
async def replicas(
    count: int,
    dsn: str,
    folder: Path,
    table: str = HISTORY,
    prefix: Sequence[str] = (),
    **options: Any,
) -> AsyncIterator[list[Replica]]:
    """Yield `count` replicas that are ready, with these options of a migrator; none outlives the block.

    `prefix` is a command that runs them.
    """
    given = json.dumps({"table": table, "lock_timeout": 0} | options)
    command = [*prefix, sys.executable, str(WORKER), str(folder), given]
    # Not an argument: everybody on this machine may read arguments.
    environment = {**os.environ, "WORKER_DSN": dsn}
    processes = [await anyio.open_process(command, stderr=None, env=environment) for _ in range(count)]
    started = [Replica(process, _output(process)) for process in processes]
    try:
        for replica in started:
            assert await replica.output.receive_until(b"\n", 100) == b"ready"
        yield started
    finally:
        for replica in started:
            if replica.process.returncode is None:
                replica.process.kill()
        with anyio.CancelScope(shield=True):
            for replica in started:
                await replica.process.aclose()


async def results(racing: list[Replica], seconds: float = 40) -> list[tuple[int, Any]]:
    """Start all replicas at once, and return exit codes and reports in the order of their ends."""
    found: list[tuple[int, Any]] = []

    async def collect(replica: Replica) -> None:
        await replica.go()
        found.append(await replica.result())

    with anyio.fail_after(seconds):
        async with anyio.create_task_group() as tasks:
            for replica in racing:
                tasks.start_soon(collect, replica)
    return found


def _output(process: Process) -> BufferedByteReceiveStream:
    assert process.stdout is not None
    return BufferedByteReceiveStream(process.stdout)
