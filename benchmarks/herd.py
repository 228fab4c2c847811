"""20 processes start at once on an empty database with 50 migrations; each is applied once, and all succeed.

They are measured against as many processes that import the same packages, build a command of the same size and apply
the same files with plain asyncpg under an advisory lock.
"""

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import asyncpg
import harness

from pgratchet import embedded

NUMBER = 50
PROCESSES = 20
TARGET = 1.3


def measure(runs: int) -> Iterator[harness.Figure]:
    """Yield the times of both herds and of a process alone, and the quotients."""
    with harness.folder(files()) as folder, embedded.server(durable=True) as server:

        def herd(command: Callable[[str, Path], Sequence[str]], processes: int) -> float:
            dsn = harness.database(server)
            taken = at_once(command(dsn, folder), processes)
            asyncio.run(judge(dsn))
            return taken

        taken = harness.take_turns(
            runs,
            {
                "the herd": partial(herd, harness.up, PROCESSES),
                "the herd of plain asyncpg": partial(herd, harness.yardstick, PROCESSES),
                "one alone": partial(herd, harness.up, 1),
                "one of plain asyncpg alone": partial(herd, harness.yardstick, 1),
            },
        )
    for name, samples in taken.items():
        yield harness.Figure(name, samples)
    ours, plain, one, plain_one = taken.values()
    yield harness.ratio("the herd / the herd of plain asyncpg", ours, plain, TARGET)
    yield harness.ratio("one alone / one of plain asyncpg alone", one, plain_one)


def files() -> dict[str, str]:
    """Return migrations, each of which inserts a row into a ledger that has no unique key."""
    texts = dict(harness.migrations(NUMBER))
    for number, name in enumerate(texts):
        texts[name] += f"INSERT INTO ledger VALUES ({number});\n"
    first = next(iter(texts))
    texts[first] = "CREATE TABLE ledger (number int);\n" + texts[first]
    return texts


def at_once(command: Sequence[str], processes: int) -> float:
    """Return the seconds until all processes have ended; raises RuntimeError if one fails."""
    begun = time.perf_counter()
    started = [
        subprocess.Popen(command, env=harness.ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    complaints = [process.communicate()[1] for process in started]
    taken = time.perf_counter() - begun
    if any(process.returncode for process in started):
        raise RuntimeError(f"of {command} some failed: {''.join(complaints)[-2000:]}")
    return taken


async def judge(dsn: str) -> None:
    """Raise RuntimeError unless each migration has inserted exactly one row."""
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("SELECT number FROM ledger ORDER BY number")
    await connection.close()
    if [row["number"] for row in rows] != list(range(NUMBER)):
        raise RuntimeError(f"not each migration was applied once: {rows}")


if __name__ == "__main__":
    harness.main(__doc__, measure, runs=5)
