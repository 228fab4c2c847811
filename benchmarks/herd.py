"""20 processes start at once on an empty database with 50 migrations; each is applied once, and all succeed.

What is allowed is one and a half times the time of one process alone, and the time that 20 processes need to
start at once, import the same packages and run one SELECT.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import asyncpg
import harness

from pgratchet import embedded

NUMBER = 50
PROCESSES = 20
FACTOR = 1.5


def measure(runs: int) -> Iterator[harness.Figure]:
    """Yield the three times, and the herd's share of what is allowed."""
    with harness.folder(files()) as folder, embedded.server(durable=True) as server:

        def herd(processes: int) -> float:
            dsn = harness.database(server)
            taken = at_once(harness.up(dsn, folder), processes)
            asyncio.run(judge(dsn))
            return taken

        taken = harness.take_turns(
            runs,
            {
                "the herd": lambda: herd(PROCESSES),
                "one alone": lambda: herd(1),
                "as many SELECTs": lambda: at_once((sys.executable, "-c", harness.ONE_SELECT, server.dsn), PROCESSES),
            },
        )
    for name, samples in taken.items():
        yield harness.Figure(name, samples)
    herds, alone, selects = taken.values()
    allowed = [FACTOR * one + start for one, start in zip(alone, selects, strict=True)]
    yield harness.ratio(f"the herd / ({FACTOR} x one alone + SELECTs)", herds, allowed, 1.0)


def files() -> dict[str, str]:
    """Return migrations each of which leaves a row in a ledger that would take a second one too."""
    texts = dict(harness.migrations(NUMBER))
    for number, name in enumerate(texts):
        texts[name] += f"INSERT INTO ledger VALUES ({number});\n"
    first = next(iter(texts))
    texts[first] = "CREATE TABLE ledger (number int);\n" + texts[first]
    return texts


def at_once(command: Sequence[str], processes: int) -> float:
    """Return how long that many processes take together; all have to succeed."""
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
    """Raise unless each migration has left exactly one row."""
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("SELECT number FROM ledger ORDER BY number")
    await connection.close()
    if [row["number"] for row in rows] != list(range(NUMBER)):
        raise RuntimeError(f"not each migration was applied once: {rows}")


if __name__ == "__main__":
    harness.main(__doc__, measure, runs=5)
