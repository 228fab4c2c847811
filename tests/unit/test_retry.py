"""Work is tried again for as long as its error may pass, and no longer."""

from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from pgratchet.postgres.link.budget import MOST, Cause, Tries, retry

pytestmark = pytest.mark.anyio

Work = Callable[[], Awaitable[str]]


class WrappedError(Exception):
    """An error of ours around one of the server's."""


def failing(*errors: Exception) -> Work:
    """Return work that raises these errors, one at each attempt, and then succeeds."""
    left = list(errors)

    async def work() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return work


class Pauses:
    def __init__(self) -> None:
        self.seen: list[tuple[str | None, int]] = []

    async def __call__(self, error: asyncpg.PostgresError, attempt: int) -> None:
        self.seen.append((error.sqlstate, attempt))


def deadlock() -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new({"C": "40P01", "M": "deadlock detected", "R": "DeadLockReport"})


async def test_work_that_fails_for_a_while_returns_its_result_after_a_pause_for_each_failure() -> None:
    pauses = Pauses()

    assert await retry(failing(deadlock(), deadlock()), Tries(), pauses) == "done"
    assert pauses.seen == [("40P01", 0), ("40P01", 1)]


async def test_the_last_error_is_raised_when_no_attempt_is_left() -> None:
    pauses = Pauses()
    errors = [deadlock() for _ in range(int(MOST[Cause.CONFLICT]) + 1)]

    with pytest.raises(asyncpg.DeadlockDetectedError) as raised:
        await retry(failing(*errors), Tries(), pauses)

    assert raised.value is errors[-1]
    assert len(pauses.seen) == MOST[Cause.CONFLICT]


@pytest.mark.parametrize("error", [asyncpg.SyntaxOrAccessError("no"), ValueError("no"), WrappedError("no")])
async def test_an_error_that_does_not_pass_is_raised_at_once(error: Exception) -> None:
    pauses = Pauses()

    with pytest.raises(type(error), match="no"):
        await retry(failing(error), Tries(), pauses)

    assert pauses.seen == []


async def test_the_server_error_inside_another_error_decides_whether_it_may_pass() -> None:
    def inside(error: Exception) -> Exception | None:
        return error.args[0] if isinstance(error, WrappedError) else None

    pauses = Pauses()
    assert await retry(failing(WrappedError(deadlock())), Tries(), pauses, inside) == "done"
    assert pauses.seen == [("40P01", 0)]
    with pytest.raises(asyncpg.DeadlockDetectedError):
        await retry(failing(deadlock()), Tries(), pauses, inside)


async def test_the_error_around_the_last_error_of_the_server_is_raised_when_no_attempt_is_left() -> None:
    wrapped = WrappedError(deadlock())

    with pytest.raises(WrappedError) as raised:
        await retry(failing(wrapped), Tries({}), Pauses(), lambda error: error.args[0])

    assert raised.value is wrapped
