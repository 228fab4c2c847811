"""100 migrations on a database that is 20 ms away.

The connection goes through the proxy of the tests for faults, which is in the project's folder.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import harness

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.faults.proxy import proxy

NUMBER = 100
ROUND_TRIP = 0.020


def measure(runs: int) -> Iterator[harness.Figure]:
    """Yield the time of the whole process and its number of flights, with all migrations pending and with none."""
    with harness.folder(harness.migrations(NUMBER)) as files, harness.volatile() as server:
        fresh, again = [], []
        for _ in range(runs):
            dsn = harness.database(server)
            fresh.append(asyncio.run(_through_proxy(dsn, files)))
            again.append(asyncio.run(_through_proxy(dsn, files)))
    yield harness.Figure(f"{NUMBER} migrations", [taken for taken, _ in fresh], target=1.0)
    yield harness.Figure("flights after the start-up", [flights for _, flights in fresh], "")
    yield harness.Figure("nothing pending", [taken for taken, _ in again])
    yield harness.Figure("flights after the start-up", [flights for _, flights in again], "", target=2)


async def _through_proxy(dsn: str, files: Path) -> tuple[float, int]:
    async with proxy(dsn, round_trip=ROUND_TRIP) as between:
        begun = time.perf_counter()
        await _up(between.dsn, files)
        return time.perf_counter() - begun, between.flights


async def _up(dsn: str, files: Path) -> None:
    pipe = asyncio.subprocess.PIPE
    command = (*harness.PGRATCHET, "up", "--dir", str(files))
    # Everybody on this machine can reach the proxy and read command lines: the password must not be in one.
    environment = harness.ENVIRONMENT | {"PGRATCHET_DSN": dsn}
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=environment)
    _, complaint = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {complaint.decode()[-2000:]}")


if __name__ == "__main__":
    harness.main(__doc__, measure, runs=7)
