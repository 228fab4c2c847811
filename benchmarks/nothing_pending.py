"""A start with nothing pending, at 1,000 and at 10,000 applied migrations.

One part is to connect, read the history and close; it is compared with the same work by asyncpg alone. The whole is
the wait of a replica at each start, in which it also reads and compares the files.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import asyncpg
import harness

from pgratchet import Migrator
from pgratchet.core.model import HistoryRow
from pgratchet.files import directory
from pgratchet.files.layouts.own import own
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.link.dsn import address_of
from pgratchet.postgres.link.session import connector, open_session
from pgratchet.postgres.link.sql import Table

NUMBERS = (1_000, 10_000)
PARTS = ("history by pgratchet", "history by asyncpg alone", "reading the files", "the whole")
TABLE = Table.parse("public.schema_migrations")


def measure(runs: int) -> Iterator[harness.Figure]:
    """Yield the parts and the whole for each number of migrations, and the growth of the whole."""
    subjects: dict[tuple[int, str], Callable[[], float]] = {}
    with ExitStack() as stack:
        server = stack.enter_context(harness.volatile())
        for number in NUMBERS:
            files, dsn = stack.enter_context(harness.folder(harness.migrations(number))), harness.database(server)
            harness.seconds(harness.up(dsn, files))
            subjects |= {(number, part): partial(harness.timed, work) for part, work in _parts(dsn, files).items()}
        taken = harness.take_turns(runs, subjects)
    for (number, part), samples in taken.items():
        yield harness.Figure(f"{number:,} applied: {part}", samples)
    for number in NUMBERS:
        ours, bare, reading, whole = (taken[number, part] for part in PARTS)
        yield harness.ratio(f"{number:,} applied: history, pgratchet / asyncpg alone", ours, bare, 1.5)
        yield harness.ratio(f"{number:,} applied: files / the whole", reading, whole)
    few, many = (taken[number, PARTS[-1]] for number in NUMBERS)
    yield harness.ratio("the whole, 10,000 / 1,000", many, few, NUMBERS[1] / NUMBERS[0])


def _parts(dsn: str, files: Path) -> dict[str, Callable[[], Awaitable[object]]]:
    works = (partial(_ours, dsn), partial(_bare, dsn), partial(_files, files), Migrator(dsn, files).up)
    return dict(zip(PARTS, works, strict=True))


async def _ours(dsn: str) -> None:
    async with open_session(connector(address_of(dsn))) as connection:
        await History(TABLE).read(connection)


async def _bare(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.fetch(f"SELECT {', '.join(HistoryRow._fields)} FROM {TABLE.quoted}")
    await connection.close()


async def _files(folder: Path) -> None:
    own.parse(directory.read(folder))


if __name__ == "__main__":
    harness.main(__doc__, measure, runs=11)
