"""1,000 small migrations into an empty database, each its own transaction, against one psql process.

Both sides are whole processes. For every file, psql runs BEGIN, the file, an INSERT into a history table of three
columns, and COMMIT. In memory, no disk hides the cost of either side; real databases are on disks, so that quotient has
no target.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import harness

from pgratchet import embedded

NUMBER = 1000


def measure(runs: int) -> Iterator[harness.Figure]:
    """Yield both sides and their ratio, for each kind of durability."""
    psql = harness.program("psql")
    with harness.folder(harness.migrations(NUMBER)) as files, harness.folder({"all.sql": script(files)}) as scripts:
        theirs = (psql, "-qX", "-f", str(scripts / "all.sql"), "-d")
        with embedded.server(durable=True) as server:
            yield from _compare("default durability", runs, server, files, theirs, target=1.0)
        with embedded.server(durable=True, settings={"fsync": "off"}) as server:
            yield from _compare("fsync off", runs, server, files, theirs, target=1.2)
        with harness.volatile() as server:
            yield from _compare("fsync off, in memory", runs, server, files, theirs)


def _compare(  # noqa: PLR0913 - one caller, which names the arguments
    name: str, runs: int, server: embedded.Server, files: Path, psql: Sequence[str], *, target: float | None = None
) -> Iterator[harness.Figure]:
    subjects = {
        "pgratchet": lambda: harness.seconds(harness.up(harness.database(server), files)),
        "psql": lambda: harness.seconds([*psql, harness.database(server)]),
    }
    taken = harness.take_turns(runs, subjects)
    for subject, samples in taken.items():
        yield harness.Figure(f"{subject}, {name}", samples)
    yield harness.ratio(f"pgratchet / psql, {name}", taken["pgratchet"], taken["psql"], target)


def script(folder: Path) -> str:
    """Return the script for psql that applies the files of a folder."""
    steps = [
        f"BEGIN;\n\\i '{path}'\nINSERT INTO history (version, name) VALUES ({number}, '{path.stem}');\nCOMMIT;\n"
        for number, path in enumerate(sorted(folder.iterdir()), 1)
    ]
    table = "CREATE TABLE history (version bigint PRIMARY KEY, name text, applied_at timestamptz DEFAULT now());\n"
    return "".join(["\\set ON_ERROR_STOP 1\n", table, *steps])


if __name__ == "__main__":
    harness.main(__doc__, measure, runs=7)
