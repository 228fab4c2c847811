"""Cancelled at its first await, its second, and so on through the last: whatever is awaited there."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pgratchet import Migrator, Verdict, migrated
from pgratchet.postgres.link.cancelling import TASK
from tests.support import HISTORY, Write, column, deserted, exists, states, tell, without_tls

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


Coro = Coroutine[Any, Any, Any]


class CancelledAt:
    """Cancels a task when that, or the one that does a run's work for it, suspends for the `at`th time.

    `reached` says that it came so far.
    """

    def __init__(self, at: int) -> None:
        self.reached = False
        self._left = at
        self._host: asyncio.Task[object] | None = None

    def start(self, work: Coro) -> asyncio.Task[object]:
        """Return the task that does the work."""
        loop = asyncio.get_running_loop()
        loop.set_task_factory(self._make)
        self._host = asyncio.Task(self._counted(work), loop=loop)
        self._host.add_done_callback(lambda _: loop.set_task_factory(None))
        return self._host

    def _make(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> "asyncio.Task[Any]":
        return asyncio.Task(self._counted(work), loop=loop, **options)

    async def _counted(self, work: Coro) -> object:
        return await _Watched(work, self._suspend)

    def _suspend(self) -> None:
        task = asyncio.current_task()
        if self._host is None or task is None or not (task is self._host or task.get_name() == TASK):
            return
        self._left -= 1
        if self._left == 0:
            self.reached = True
            self._host.cancel()


class _Watched:
    """Work that says each time when it suspends."""

    def __init__(self, work: Awaitable[object], suspend: Callable[[], None]) -> None:
        self._work = work
        self._suspend = suspend

    def __await__(self) -> Generator[Any, Any, object]:
        inner = self._work.__await__()
        trouble: BaseException | None = None
        while True:
            try:
                waited_for = inner.send(None) if trouble is None else inner.throw(trouble)
            except StopIteration as end:
                return end.value
            self._suspend()
            try:
                yield waited_for
            except BaseException as error:  # noqa: BLE001 - handed on into the work
                trouble = error
            else:
                trouble = None


Verb = Callable[[Migrator], Coro]


async def up(migrator: Migrator) -> None:
    await migrator.up()


async def lifespan(migrator: Migrator) -> None:
    async with migrated(migrator)(object()):
        pass


async def patient_lifespan(migrator: Migrator) -> None:
    async with migrated(migrator, on_slow="serve-not-ready", slow_after=30)(object()):
        pass


async def redo(migrator: Migrator) -> None:
    await migrator.redo()


async def rehearse(migrator: Migrator) -> None:
    await migrator.rehearse()


async def repair(migrator: Migrator) -> None:
    await migrator.repair(1, Verdict.APPLIED, "seen")


async def cancelled(work: Coro, at: int) -> bool:
    """Cancel work at one place; return whether it came so far. It ends in time, and in no other way."""
    it = CancelledAt(at)
    began = time.monotonic()
    task = it.start(work)
    await asyncio.wait([task])
    assert time.monotonic() - began < MOST_SECONDS
    assert task.cancelled() == it.reached, (at, task)
    if not it.reached:
        task.result()
    return it.reached


async def places(dsn: str, folder: Path, verb: Verb, prepare: Verb | None = None) -> AsyncIterator[int]:
    """Yield after each cancellation, at place after place, for as long as the work comes so far; then start anew."""
    for at in count(1):
        await tell(dsn, "DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE TABLE ledger (n int)")
        if prepare is not None:
            await prepare(Migrator(without_tls(dsn), folder))
        if not await cancelled(verb(Migrator(without_tls(dsn), folder)), at):
            break
        await deserted(dsn, GONE_WITHIN)
        yield at
    assert at > FEWEST_PLACES


@pytest.mark.parametrize(
    ("files", "verb"),
    [(IN_COMPANY, up), (PYTHON, up), (PYTHON, lifespan), (IN_COMPANY, patient_lifespan), (PYTHON, rehearse)],
    ids=["in company", "Python", "in a lifespan", "in a lifespan beside it", "rehearsed"],
)
async def test_the_next_run_goes_on_from_a_run_cancelled_at_any_await(
    dsn: str, write: Write, files: dict[str, str], verb: Verb
) -> None:
    folder = write(files)
    async for _ in places(dsn, folder, verb):
        await Migrator(dsn, folder).up()
        assert sorted(await column(dsn, "SELECT n FROM ledger")) == list(range(1, len(files) + 1))
        assert set((await states(dsn)).values()) == {"applied"}


async def test_the_next_run_goes_on_from_a_file_of_single_statements_cancelled_at_any_await(
    dsn: str, write: Write
) -> None:
    folder = write(BY_STATEMENT)
    async for _ in places(dsn, folder, up):
        await Migrator(dsn, folder).up()
        assert sorted(await column(dsn, "SELECT n FROM ledger")) == [1, 2]
        assert await column(dsn, "SELECT indisvalid FROM pg_index WHERE indrelid = 'ledger'::regclass") == [True]
        assert set((await states(dsn)).values()) == {"applied"}


async def test_a_redo_cancelled_at_any_await_is_all_or_nothing(dsn: str, write: Write) -> None:
    folder = write(IN_COMPANY | {"003_m.down.sql": "DROP TABLE t3; DELETE FROM public.ledger WHERE n = 3;"})
    async for _ in places(dsn, folder, redo, up):
        assert await states(dsn) in ({"1": "applied", "2": "applied"}, {str(n): "applied" for n in (1, 2, 3)})
        await Migrator(dsn, folder).up()
        assert sorted(await column(dsn, "SELECT n FROM ledger")) == [1, 2, 3]


async def test_a_repair_cancelled_at_any_await_is_recorded_or_not(dsn: str, write: Write) -> None:
    folder = write({"001_m.sql": INSERT.format(1)})
    async for _ in places(dsn, folder, repair):
        found = await states(dsn) if await exists(dsn, HISTORY) else {}
        await Migrator(dsn, folder).up()
        assert await column(dsn, "SELECT n FROM ledger") == ([] if found else [1])
