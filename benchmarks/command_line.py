"""The command line with nothing pending, against a process that imports the same and runs one SELECT."""

import sys
from collections.abc import Iterator
from functools import partial

import harness

NUMBER = 5


def measure(runs: int) -> Iterator[harness.Figure]:
    """Yield the commands, the yardstick, and the quotients."""
    with harness.folder(harness.migrations(NUMBER)) as files, harness.volatile() as server:
        dsn = harness.database(server)
        harness.seconds(harness.up(dsn, files))
        status = (*harness.PGRATCHET, "status", "--dsn", dsn, "--dir", str(files))
        subjects = {
            "pgratchet up": partial(harness.seconds, harness.up(dsn, files)),
            "pgratchet status": partial(harness.seconds, status),
            "the imports and one SELECT": partial(harness.seconds, (sys.executable, "-c", harness.ONE_SELECT, dsn)),
        }
        taken = harness.take_turns(runs, subjects)
    for name, samples in taken.items():
        yield harness.Figure(name, samples)
    *commands, yardstick = taken
    for name in commands:
        yield harness.ratio(f"{name} / one SELECT", taken[name], taken[yardstick], 1.25)


if __name__ == "__main__":
    harness.main(__doc__, measure, runs=21)
