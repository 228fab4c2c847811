from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import cast

import anyio
import pytest

from pgratchet import Migrator, UsageError, migrated
from pgratchet.web.lifespan import Mode

pytestmark = pytest.mark.anyio


class FakeMigrator:
    """Writes down what it is asked for, in the order of everything else that happens."""

    def __init__(self, events: list[str], error: Exception | None = None) -> None:
        self.events = events
        self.error = error

    def serving(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def _do(self, verb: str) -> None:
        await anyio.lowlevel.checkpoint()
        self.events.append(verb)
        if self.error is not None:
            raise self.error

    async def up(self) -> None:
        await self._do("up")

    async def wait(self) -> None:
        await self._do("wait")

    async def check(self) -> None:
        await self._do("check")


@pytest.fixture
def events() -> list[str]:
    return []


def migrator(events: list[str], error: Exception | None = None) -> Migrator:
    return cast("Migrator", FakeMigrator(events, error))


@asynccontextmanager
async def recorded(app: list[str]) -> AsyncIterator[dict[str, object]]:
    """The lifespan of an application that is its list of events."""
    app.append("inner starts")
    yield {"pool": 1}
    app.append("inner stops")


@pytest.mark.parametrize(("mode", "verb"), [("apply", "up"), ("wait", "wait"), ("check", "check")])
async def test_each_mode_asks_for_one_thing(events: list[str], mode: Mode, verb: str) -> None:
    async with migrated(migrator(events), mode=mode)(object()) as state:
        assert state is None
        assert events == [verb]

    assert events == [verb]


async def test_applying_is_the_default(events: list[str]) -> None:
    async with migrated(migrator(events)):
        assert events == ["up"]


async def test_an_unknown_mode_is_refused_at_once(events: list[str]) -> None:
    with pytest.raises(UsageError, match="apply, wait, check"):
        migrated(migrator(events), mode=cast("Mode", "skip"))

    assert events == []


async def test_a_bare_generator_is_refused_at_once_and_not_after_the_migration(events: list[str]) -> None:
    async def inner(_: object) -> AsyncIterator[None]:
        yield

    with pytest.raises(UsageError, match="asynccontextmanager"):
        migrated(migrator(events), inner=inner)  # type: ignore[arg-type] # that is the mistake

    assert events == []


async def test_an_asynchronous_failure_callback_is_refused_at_once(events: list[str]) -> None:
    async def stop(_: BaseException) -> None:
        raise AssertionError

    class Stopping:
        async def __call__(self, _: BaseException) -> None:
            raise AssertionError

    for on_failure in (stop, Stopping()):
        with pytest.raises(UsageError, match="on_failure is called, and not awaited"):
            migrated(migrator(events), on_failure=on_failure)
    with pytest.raises(UsageError, match="listener is called, and not awaited"):
        Migrator("postgresql://localhost/a", listener=stop)  # type: ignore[arg-type]  # it is for exceptions


async def test_nothing_happens_before_the_application_starts(events: list[str]) -> None:
    migrated(migrator(events))(object())

    assert events == []


async def test_the_schema_is_there_before_the_applications_own_lifespan_starts(events: list[str]) -> None:
    async with migrated(migrator(events), inner=recorded)(events) as state:
        assert state == {"pool": 1}
        assert events == ["up", "inner starts"]

    assert events == ["up", "inner starts", "inner stops"]


async def test_the_hook_can_be_entered_without_an_application(events: list[str]) -> None:
    async with migrated(migrator(events), inner=lambda app: recorded(events if app is None else [])) as state:
        assert state == {"pool": 1}

    assert events == ["up", "inner starts", "inner stops"]


async def test_the_hook_can_be_entered_again(events: list[str]) -> None:
    hook = migrated(migrator(events))

    async with hook:
        pass
    async with hook:
        pass

    assert events == ["up", "up"]


async def test_a_failure_is_the_applications(events: list[str]) -> None:
    error = RuntimeError("no server")

    with pytest.raises(RuntimeError) as caught:
        async with migrated(migrator(events, error), inner=recorded)(events):
            events.append("served")

    assert caught.value is error
    assert events == ["up"]


@pytest.mark.parametrize("entered", ["called", "as it is"])
async def test_an_error_while_serving_reaches_the_applications_own_lifespan(events: list[str], entered: str) -> None:
    @asynccontextmanager
    async def inner(_: object) -> AsyncIterator[None]:
        try:
            yield
        except RuntimeError as error:
            events.append(str(error))
            raise

    hook = migrated(migrator(events), inner=inner)
    with pytest.raises(RuntimeError, match="in service"):
        async with hook(None) if entered == "called" else hook:
            raise RuntimeError("in service")

    assert events == ["up", "in service"]


async def test_a_lifespan_may_swallow_an_error(events: list[str]) -> None:
    @asynccontextmanager
    async def inner(_: object) -> AsyncIterator[None]:
        try:
            yield
        except RuntimeError:
            events.append("swallowed")

    async with migrated(migrator(events), inner=inner):
        raise RuntimeError("in service")

    assert events == ["up", "swallowed"]


async def test_two_applications_may_share_a_hook(events: list[str]) -> None:
    hook = migrated(migrator(events), inner=recorded)
    first: list[str] = []
    second: list[str] = []

    async with hook(first):
        async with hook(second):
            assert (first, second) == (["inner starts"], ["inner starts"])
        assert (first, second) == (["inner starts"], ["inner starts", "inner stops"])

    assert events == ["up", "up"]


async def test_a_cancelled_start_does_not_start_the_application(events: list[str]) -> None:
    class Endless(FakeMigrator):
        async def up(self) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                self.events.append("stopped")

    with anyio.move_on_after(0.01):
        async with migrated(cast("Migrator", Endless(events)), inner=recorded)(events):
            events.append("served")

    assert events == ["stopped"]
