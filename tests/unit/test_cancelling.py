import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import pytest

from pgratchet.postgres.link.cancelling import (
    PAUSE,
    OwnCancellationError,
    cancelled_for_good,
    shieldable,
    undisturbed,
)

pytestmark = pytest.mark.anyio

Around = Callable[[Callable[[], Awaitable[object]]], Awaitable[object]]


async def cancelled(work: Awaitable[object]) -> None:
    """Cancel work once, when it has suspended."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.parametrize("around", [cancelled_for_good, shieldable])
async def test_work_in_a_task_of_its_own_returns_its_result(around: Around) -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    assert await around(work) == "done"


@pytest.mark.parametrize("around", [cancelled_for_good, shieldable])
@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt])
async def test_an_error_of_work_in_a_task_of_its_own_is_raised_as_it_is(
    around: Around, error: type[BaseException]
) -> None:
    async def work() -> None:
        raise error

    with pytest.raises(error):
        await around(work)


async def fail() -> None:
    raise LookupError


async def raise_a_cancellation() -> None:
    raise asyncio.CancelledError("reason")


async def await_a_cancelled_task() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel("reason")
    await task


async def cancel_itself() -> None:
    (asyncio.current_task() or asyncio.ensure_future(fail())).cancel("reason")
    await asyncio.sleep(60)


OWN_CANCELLATIONS = [raise_a_cancellation, await_a_cancelled_task, cancel_itself]


@pytest.mark.parametrize("work", OWN_CANCELLATIONS)
async def test_a_cancellation_of_shieldable_work_by_itself_is_an_error(work: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(OwnCancellationError) as caught:
        await cancelled_for_good(lambda: shieldable(work))
    assert caught.value.args == caught.value.cancellation.args == ("reason",)


@pytest.mark.parametrize("work", OWN_CANCELLATIONS)
async def test_a_cancellation_from_outside_stays_one_where_shieldable_work_cancels_itself_then(
    work: Callable[[], Awaitable[None]],
) -> None:
    async def sleep_and_work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await work()

    with anyio.fail_after(5):
        await cancelled(cancelled_for_good(lambda: shieldable(sleep_and_work)))
        await cancelled(shieldable(sleep_and_work))


async def test_a_cancellation_that_shieldable_work_has_asked_for_ends_with_it() -> None:
    async def work() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "done"

    assert await cancelled_for_good(lambda: shieldable(work)) == "done"
    await asyncio.sleep(0)


async def test_a_failed_child_of_a_task_group_fails_shieldable_work() -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as caught:
        await cancelled_for_good(lambda: shieldable(work))
    assert isinstance(caught.value.exceptions[0], LookupError)
    await asyncio.sleep(0)


async def test_work_that_suppresses_its_cancellation_is_cancelled_at_each_further_await() -> None:
    suppressed = 0

    async def work() -> None:
        nonlocal suppressed
        for _ in range(5):
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                suppressed += 1

    with anyio.fail_after(5):
        await cancelled(cancelled_for_good(work))
    assert suppressed == 5


async def test_an_error_in_the_place_of_a_cancellation_does_not_replace_it() -> None:
    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise LookupError from None

    with anyio.fail_after(5):
        await cancelled(cancelled_for_good(work))


async def test_a_short_await_behind_a_suppressed_cancellation_is_cancelled_as_well() -> None:
    survived = 0

    async def work() -> None:
        nonlocal survived
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        for _ in range(5):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(PAUSE / 2)
                survived += 1

    await cancelled(cancelled_for_good(work))
    assert survived == 0


@pytest.mark.parametrize("around", [cancelled_for_good, lambda work: undisturbed(work())])
async def test_the_first_of_two_cancellations_is_raised(around: Around) -> None:
    task = asyncio.ensure_future(around(lambda: undisturbed(asyncio.sleep(0.05))))
    for message in ("first", "second"):
        await asyncio.sleep(0.01)
        task.cancel(message)

    with pytest.raises(asyncio.CancelledError) as raised:
        await task

    assert raised.value.args == ("first",)


async def test_a_scope_of_anyio_recognises_its_own_cancellation_of_lasting_work() -> None:
    with anyio.move_on_after(0.01) as scope:
        await cancelled_for_good(lambda: asyncio.sleep(60))
    assert scope.cancelled_caught


async def test_a_timeout_of_asyncio_recognises_its_own_cancellation_of_lasting_work() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await cancelled_for_good(lambda: asyncio.sleep(60))


async def test_lasting_cancellation_spares_the_shields_of_anyio_in_shieldable_work() -> None:
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        try:
            await anyio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.05)
                cleaned = True

    with anyio.fail_after(5):
        await cancelled(cancelled_for_good(lambda: shieldable(work)))
    assert cleaned


async def test_lasting_cancellation_does_not_reach_undisturbed_work() -> None:
    cleaned = False

    async def clean() -> None:
        nonlocal cleaned
        await asyncio.sleep(0.05)
        cleaned = True

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await undisturbed(clean())

    with anyio.fail_after(5):
        await cancelled(cancelled_for_good(work))
    assert cleaned


async def test_a_cancellation_is_repeated_less_often_while_undisturbed_work_takes_its_time() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await undisturbed(asyncio.sleep(0.5))

    began = time.process_time()
    counter = asyncio.ensure_future(count())
    await cancelled(cancelled_for_good(work))
    counter.cancel()
    assert time.process_time() - began < 0.25
    assert turns > 5


async def test_undisturbed_work_returns_its_result_and_raises_its_error() -> None:
    assert await undisturbed(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(LookupError):
        await undisturbed(fail())
