"""The peak memory of the command line that applies one file of 100 MB: a million rows."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import harness

STATEMENTS = 333_334
ROWS = 3
CHARACTERS = 303
MEGABYTE = 1_000_000
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of getrusage


def measure(runs: int) -> Iterator[harness.Figure]:
    """Yield the size of the file, the peak, and their quotient."""
    text = script()
    size = len(text) / MEGABYTE
    peaks, taken = [], []
    with harness.folder({"1_fill.sql": text}) as files, harness.volatile() as server:
        for _ in range(runs):
            begun = time.perf_counter()
            peaks.append(peak(harness.up(harness.database(server), files)) / MEGABYTE)
            taken.append(time.perf_counter() - begun)
    yield harness.Figure("the file", [size], "MB")
    yield harness.Figure("peak of the process", peaks, "MB")
    yield harness.Figure("its time", taken)
    yield harness.ratio("peak / file", peaks, [size] * runs, 4.0)


def script() -> str:
    """Return a table and the INSERTs that fill it."""
    lines = ["CREATE TABLE filled (id int, name text, note text);\n"]
    for number in range(STATEMENTS):
        rows = ", ".join(f"({number * ROWS + row}, 'name {number}', '%s')" for row in range(ROWS))
        line = f"INSERT INTO filled (id, name, note) VALUES {rows};\n"
        lines.append(line.replace("%s", "x" * ((CHARACTERS - len(line) + 2 * ROWS) // ROWS)))
    return "".join(lines)


def peak(command: Sequence[str]) -> int:
    """Return the largest resident size of a process, in bytes; raises RuntimeError if it fails."""
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(command, env=harness.ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=complaints)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            complaints.seek(0)
            raise RuntimeError(f"{command} ended with {process.returncode}: {complaints.read()[-2000:]!r}")
    return usage.ru_maxrss * RSS_UNIT


if __name__ == "__main__":
    harness.main(__doc__, measure, runs=1)
