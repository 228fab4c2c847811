import asyncio

import anyio
import pytest

from pgratchet.web.background import in_background

pytestmark = pytest.mark.anyio

LONG = 30.0


class Work:
    """Ends when it is told to, and says how it ended."""

    def __init__(self, error: Exception | None = None) -> None:
        self.end = anyio.Event()
        self.ended = anyio.Event()
        self.how = ""
        self._error = error

    async def __call__(self) -> None:
        self.how = "cancelled"
        try:
            await self.end.wait()
            self.how = "failed" if self._error else "done"
            if self._error:
                raise self._error
        finally:
            self.ended.set()


async def test_work_that_is_done_in_time_is_waited_for() -> None:
    work = Work()
    work.end.set()

    with anyio.fail_after(5):
        async with in_background(work, LONG, None):
            assert work.how == "done"


async def test_work_that_fails_in_time_fails_the_start() -> None:
    work = Work(LookupError("no schema"))
    work.end.set()
    told: list[BaseException] = []

    with pytest.raises(LookupError):
        async with in_background(work, LONG, told.append):
            raise AssertionError("entered")
    assert told == []


async def test_work_that_takes_longer_goes_on_beside_the_application() -> None:
    work = Work()

    with anyio.fail_after(5):
        async with in_background(work, 0.0, None):
            assert not work.ended.is_set()
            work.end.set()
            await work.ended.wait()

    assert work.how == "done"


async def test_a_later_failure_of_the_work_is_told_and_leaves_the_application_alone() -> None:
    error = LookupError("no schema")
    work = Work(error)
    told: list[BaseException] = []

    with anyio.fail_after(5):
        async with in_background(work, 0.0, told.append):
            work.end.set()
            while not told:
                await anyio.lowlevel.checkpoint()

    assert told == [error]


async def test_the_work_is_cancelled_when_the_application_ends_and_nobody_is_told() -> None:
    work = Work()
    told: list[BaseException] = []

    with anyio.fail_after(5):
        async with in_background(work, 0.0, told.append):
            pass

    assert work.how == "cancelled"
    assert work.ended.is_set()
    assert told == []


async def test_an_error_of_the_application_passes_and_ends_the_work_too() -> None:
    work = Work()

    with pytest.raises(LookupError, match="in service"):
        async with in_background(work, 0.0, None):
            raise LookupError("in service")

    assert work.how == "cancelled"


@pytest.mark.parametrize("anyio_cancels", [True, False])
async def test_a_cancelled_start_ends_the_work_before_the_cancellation_goes_on(anyio_cancels: bool) -> None:  # noqa: FBT001 - a parameter of the test
    work = Work()

    async def start() -> None:
        async with in_background(work, LONG, None):
            raise AssertionError("entered")

    if anyio_cancels:
        with anyio.move_on_after(0.01):
            await start()
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await start()

    assert work.how == "cancelled"
    assert work.ended.is_set()


async def test_work_that_ends_by_a_cancellation_of_its_own_is_told_too() -> None:
    told: list[BaseException] = []
    reached = anyio.Event()

    async def work() -> None:
        await reached.wait()
        raise asyncio.CancelledError

    with anyio.fail_after(5):
        async with in_background(work, 0.0, told.append):
            reached.set()
            while not told:
                await anyio.lowlevel.checkpoint()

    assert [type(error) for error in told] == [asyncio.CancelledError]


async def test_a_second_cancellation_does_not_leave_the_work_behind() -> None:
    cancelled, end, ended = anyio.Event(), anyio.Event(), anyio.Event()

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()
            with anyio.CancelScope(shield=True):
                await end.wait()
            ended.set()

    async def serve() -> None:
        async with in_background(work, 0.0, None):
            await anyio.sleep_forever()

    with anyio.fail_after(5):
        server = asyncio.create_task(serve())
        await anyio.lowlevel.checkpoint()
        while not cancelled.is_set():
            server.cancel()
            await anyio.lowlevel.checkpoint()
        server.cancel()
        await anyio.lowlevel.checkpoint()
        end.set()
        with pytest.raises(asyncio.CancelledError):
            await server

    assert ended.is_set()


async def test_another_task_than_the_one_that_entered_it_may_leave_the_work() -> None:
    work = Work()
    host = in_background(work, 0.0, None)

    async def enter() -> None:
        await host.__aenter__()

    async def leave() -> None:
        await host.__aexit__(None, None, None)

    await asyncio.create_task(enter())
    await asyncio.create_task(leave())

    assert work.how == "cancelled"
