"""Cancelled at its first await, its second, and so on through the last: whatever is awaited there."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pgratchet import Migrator, migrated
from tests.support import Write, column, deserted, states, tell

pytestmark = pytest.mark.anyio

MOST_SECONDS = 6.0
"""What a cancelled run may take: closing is bounded by five seconds, and normally takes none."""

GONE_WITHIN = 3.0
FEWEST_PLACES = 15
"""A run that nobody cancels suspends more often than that: fewer would say that the places are not counted."""

INSERT = "INSERT INTO public.ledger VALUES ({});"
IN_COMPANY = {f"{n:03}_m.sql": f"CREATE TABLE t{n} ();" + INSERT.format(n) for n in (1, 2, 3)}
PYTHON = {
    f"{n:03}_m.py": f"async def up(c):\n    await c.execute('{INSERT.format(n)}')\n    await c.fetch('SELECT 1')\n"
    for n in (1, 2)
}
BY_STATEMENT = {
    "001_m.sql": INSERT.format(1),
    "002_m.sql": "-- pgratchet: no-transaction\n" + INSERT.format(2) + "CREATE INDEX CONCURRENTLY i ON ledger (n);",
}


class CancelledAt:
    """Work that its own task cancels when it suspends for the `at`th time; `reached` says that it came so far."""

    def __init__(self, work: Awaitable[object], at: int) -> None:
        self.reached = False
        self._work = work
        self._at = at

    def __await__(self) -> Generator[Any, Any, object]:
        inner = self._work.__await__()
        trouble: BaseException | None = None
        for suspensions in count(1):
            try:
                waited_for = inner.send(None) if trouble is None else inner.throw(trouble)
            except StopIteration as end:
                return end.value
            if suspensions == self._at:
                self.reached = True
                (asyncio.current_task() or self._nobody()).cancel()
            try:
                yield waited_for
            except BaseException as error:  # noqa: BLE001 - handed on into the work
                trouble = error
            else:
                trouble = None
        raise AssertionError("count() has no end")

    def _nobody(self) -> asyncio.Task[object]:
        raise AssertionError("to be awaited in a task")


async def up(migrator: Migrator) -> None:
    await migrator.up()


async def lifespan(migrator: Migrator) -> None:
    async with migrated(migrator)(object()):
        pass


async def cancelled(work: Awaitable[object], at: int) -> bool:
    """Cancel work at one place; return whether it came so far. It ends in time, and in no other way."""
    it = CancelledAt(work, at)

    async def run() -> None:
        await it

    began = time.monotonic()
    task = asyncio.create_task(run())
    await asyncio.wait([task])
    assert time.monotonic() - began < MOST_SECONDS
    assert task.cancelled() == it.reached, (at, task)
    if not it.reached:
        task.result()
    return it.reached


async def places(dsn: str, folder: Path, verb: Callable[[Migrator], Awaitable[None]]) -> AsyncIterator[int]:
    """Yield after each cancellation, at place after place, for as long as the work comes so far; then start anew."""
    # Cancelled in mid-negotiation of TLS, asyncpg leaves a future that nobody looks at, and asyncio complains.
    plain = dsn + ("&" if "?" in dsn else "?") + "sslmode=disable"
    for at in count(1):
        await tell(dsn, "DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE TABLE ledger (n int)")
        if not await cancelled(verb(Migrator(plain, folder)), at):
            break
        await deserted(dsn, GONE_WITHIN)
        yield at
    assert at > FEWEST_PLACES


@pytest.mark.parametrize(
    ("files", "verb"),
    [(IN_COMPANY, up), (PYTHON, up), (IN_COMPANY, lifespan)],
    ids=["in company", "Python", "in a lifespan"],
)
async def test_at_each_of_its_awaits_a_run_leaves_nothing_that_the_next_cannot_go_on_from(
    dsn: str, write: Write, files: dict[str, str], verb: Callable[[Migrator], Awaitable[None]]
) -> None:
    folder = write(files)
    async for _ in places(dsn, folder, verb):
        await Migrator(dsn, folder).up()
        assert sorted(await column(dsn, "SELECT n FROM ledger")) == list(range(1, len(files) + 1))
        assert set((await states(dsn)).values()) == {"applied"}


async def test_at_each_of_its_awaits_a_run_of_single_statements_is_gone_on_with(dsn: str, write: Write) -> None:
    folder = write(BY_STATEMENT)
    async for _ in places(dsn, folder, up):
        await Migrator(dsn, folder).up()
        assert sorted(await column(dsn, "SELECT n FROM ledger")) == [1, 2]
        assert await column(dsn, "SELECT indisvalid FROM pg_index WHERE indrelid = 'ledger'::regclass") == [True]
        assert set((await states(dsn)).values()) == {"applied"}
