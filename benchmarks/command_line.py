"""The command line with nothing pending, against one command with ten options that runs one SELECT."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import harness

TARGETS = {5: 1.25, 100: 1.25, 1_000: 1.6}
"""The most that a command may take, as a multiple of the yardstick, for each number of applied files."""

YARDSTICK = "one SELECT"


def measure(runs: int) -> Iterator[harness.Figure]:
    """Yield the commands, the yardstick, and the quotients."""
    with ExitStack() as stack:
        server = stack.enter_context(harness.volatile())
        subjects = {YARDSTICK: partial(harness.seconds, harness.yardstick(server.dsn))}
        targets = {}
        for number, target in TARGETS.items():
            files, dsn = stack.enter_context(harness.folder(harness.migrations(number))), harness.database(server)
            harness.seconds(harness.up(dsn, files))
            for command in ("up", "status"):
                name = f"pgratchet {command}, {number:,} files"
                line = (*harness.PGRATCHET, command, "--dsn", dsn, "--dir", str(files))
                subjects[name], targets[name] = partial(harness.seconds, line), target
        taken = harness.take_turns(runs, subjects)
    for name, samples in taken.items():
        yield harness.Figure(name, samples)
    for name, target in targets.items():
        yield harness.ratio(f"{name} / {YARDSTICK}", taken[name], taken[YARDSTICK], target)


if __name__ == "__main__":
    harness.main(__doc__, measure, runs=21)
