import asyncio
import logging
import signal
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from starlette.applications import Starlette

from pgratchet import (
    AbsentError,
    BehindError,
    BudgetExceededError,
    FilesError,
    MigrationFailedError,
    Migrator,
    Readiness,
    ServerError,
    UsageError,
    migrated,
)
from tests.frameworks.drivers import started
from tests.support import PASS_GATE, Write, ask, deserted, exists, gate, runner_lock, states, tell, waiters

anyio_test = pytest.mark.anyio


@pytest.fixture
def folder(write: Write) -> Path:
    return write({"001_a.sql": "CREATE TABLE a (n int);", "002_b.sql": "INSERT INTO a VALUES (7);"})


@pytest.fixture
def migrator(dsn: str, folder: Path) -> Migrator:
    return Migrator(dsn, folder)


def inner(dsn: str, events: list[str]) -> Callable[[Any], AbstractAsyncContextManager[dict[str, int]]]:
    """Return an application's own lifespan: it reads, at start-up, what only the migrations put there."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, int]]:
        events.append(f"start of {type(app).__name__}")
        yield {"found": await ask(dsn, "SELECT n FROM a")}
        events.append("end")

    return lifespan


@anyio_test
class TestModes:
    async def test_the_mode_apply_migrates(self, dsn: str, migrator: Migrator) -> None:
        async with migrated(migrator, mode="apply")() as state:
            assert state is None
            assert await states(dsn) == {"1": "applied", "2": "applied"}

    async def test_the_mode_wait_leaves_migrating_to_others(self, dsn: str, migrator: Migrator) -> None:
        entered = anyio.Event()

        async def serve() -> None:
            async with migrated(migrator, mode="wait", inner=inner(dsn, []))() as state:
                assert state == {"found": 7}
                entered.set()

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve)
                await waiters(dsn)
                assert not await exists(dsn, "a")
                assert not entered.is_set()
                await migrator.up()
                await entered.wait()

    async def test_the_mode_wait_ends_with_its_budget(self, dsn: str, folder: Path) -> None:
        with anyio.fail_after(5), pytest.raises(BudgetExceededError):
            await migrated(Migrator(dsn, folder, budget=0.2), mode="wait").__aenter__()

    async def test_the_mode_check_fails_at_once_where_the_schema_is_behind(self, dsn: str, migrator: Migrator) -> None:
        events: list[str] = []
        hook = migrated(migrator, mode="check", inner=inner(dsn, events))
        with anyio.fail_after(5), pytest.raises(BehindError):
            await hook.__aenter__()
        assert events == []
        assert not await exists(dsn, "a")
        await migrator.up()
        async with hook():
            assert events == ["start of NoneType"]

    async def test_there_are_three_modes(self, migrator: Migrator) -> None:
        with pytest.raises(UsageError):
            migrated(migrator, mode="aply")  # type: ignore[arg-type]  # that is the mistake


@anyio_test
class TestTheHook:
    async def test_the_hook_is_a_context_manager_as_it_is(self, dsn: str, migrator: Migrator) -> None:
        events: list[str] = []
        hook = migrated(migrator, inner=inner(dsn, events))
        for _ in range(2):
            async with hook as state:
                assert state == {"found": 7}
        assert events == ["start of NoneType", "end"] * 2

    async def test_the_hook_passes_errors_of_the_application_through(self, dsn: str, migrator: Migrator) -> None:
        seen: list[BaseException] = []

        @asynccontextmanager
        async def own(_: Any) -> AsyncIterator[None]:
            try:
                yield
            except KeyError as error:
                seen.append(error)
                raise

        with pytest.raises(KeyError):
            async with migrated(migrator, inner=own)():
                raise KeyError
        assert len(seen) == 1
        await deserted(dsn, 2)

    async def test_the_hook_holds_no_session_while_the_application_serves(self, dsn: str, migrator: Migrator) -> None:
        async with migrated(migrator)():
            await deserted(dsn, 1)

    async def test_the_hook_changes_neither_logging_nor_signal_handlers(
        self, write: Write, migrator: Migrator, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def taken() -> list[object]:
            loggers = [logging.getLogger(name) for name in (None, "pgratchet", "asyncpg", "anyio", "app")]
            handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
            ours = [[each.level, each.disabled, each.propagate, list(each.handlers)] for each in loggers]
            return [ours, handlers, logging.raiseExceptions, logging.root.manager.disable]

        before = taken()
        async with migrated(migrator)():
            assert taken() == before
        write({"003_c.sql": "SELECT 1/0;"})
        with pytest.raises(MigrationFailedError):
            await migrated(migrator).__aenter__()
        assert taken() == before
        assert capfd.readouterr().out == ""

    async def test_a_hook_cancelled_at_start_up_leaves_nothing_behind(self, dsn: str, write: Write) -> None:
        """As gunicorn does after 30 s of start-up."""
        folder = write({"001_a.sql": "CREATE TABLE a (); " + PASS_GATE})
        events: list[str] = []
        hook = migrated(Migrator(dsn, folder, lock_timeout=0), inner=inner(dsn, events))
        async with gate(dsn) as closed:
            task: asyncio.Future[object] = asyncio.ensure_future(hook.__aenter__())
            await closed.reached()
            task.cancel()
            with anyio.fail_after(5), pytest.raises(asyncio.CancelledError):
                await task
            await deserted(dsn, 3)
        assert events == []
        assert not await exists(dsn, "a")
        await Migrator(dsn, folder).up()

    async def test_a_hook_cancelled_while_another_migrates_leaves_nothing_behind(
        self, dsn: str, migrator: Migrator
    ) -> None:
        async with runner_lock(dsn):
            with anyio.move_on_after(0.3) as scope:
                await migrated(migrator).__aenter__()
            assert scope.cancelled_caught
            await deserted(dsn, 3)
        await migrator.up()

    async def test_the_hooks_of_many_applications_at_once_migrate_once(self, dsn: str, write: Write) -> None:
        await tell(dsn, "CREATE SEQUENCE runs")
        folder = write({"001_a.sql": "SELECT nextval('runs'); SELECT pg_sleep(0.1);"})

        async def start(app: Starlette) -> None:
            async with started(app):
                pass

        apps = [Starlette(lifespan=migrated(Migrator(dsn, folder))) for _ in range(6)]
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for app in apps:
                    tasks.start_soon(start, app)
        assert await ask(dsn, "SELECT last_value FROM runs") == 1

    @pytest.mark.parametrize("ending", [RuntimeError, asyncio.CancelledError])
    async def test_the_hook_shuts_the_gate_where_the_applications_own_lifespan_does_not_start(
        self, migrator: Migrator, ending: type[BaseException]
    ) -> None:
        @asynccontextmanager
        async def failing(_: object) -> AsyncIterator[None]:
            assert migrator.readiness.ready
            raise ending
            yield

        with pytest.raises(ending):
            async with migrated(migrator, failing):
                pass
        assert migrator.readiness == Readiness()
        async with migrated(migrator):
            assert migrator.readiness.ready

    async def test_the_hook_has_the_next_application_look_for_itself(self, migrator: Migrator) -> None:
        async with migrated(migrator), migrated(migrator):
            assert migrator.readiness.ready
        assert not migrator.readiness.ready
        async with migrated(migrator):
            async with migrated(migrator):
                pass
            assert migrator.readiness.ready


async def traceback_of(hook: migrated, wanted: type[BaseException]) -> list[str]:
    """Return the lines that a server prints of the error with which a start fails."""
    with pytest.raises(wanted) as caught:
        await hook.__aenter__()
    return "".join(traceback.format_exception(caught.value)).rstrip().split("\n")


@anyio_test
class TestTheTracebackOfAFailedStart:
    async def test_it_ends_with_the_report(self, write: Write, dsn: str) -> None:
        folder = write({"001_a.sql": "SELECT 1;\n\tSELECT nope;"})
        lines = await traceback_of(migrated(Migrator(dsn, folder)), MigrationFailedError)
        assert lines[-9:] == [
            f"{folder}/001_a.sql:2:9: up 1 a failed in statement 2 of 2",
            "",
            "  1 | SELECT 1;",
            "> 2 | \tSELECT nope;",
            "    | \t       ^",
            "",
            'SQLSTATE 42703: column "nope" does not exist',
            "",
            "fix the file and start again: the failed migration was rolled back",
        ]
        write({"001_a.sql": "SELECT 1;"})
        async with migrated(Migrator(dsn, folder)):
            pass

    async def test_it_has_the_frames_of_a_python_migration(self, write: Write, dsn: str) -> None:
        code = "def helper():\n    return {}['key']\n\n\nasync def up(connection):\n    helper()\n"
        lines = await traceback_of(migrated(Migrator(dsn, write({"001_a.py": code}))), MigrationFailedError)
        assert "    return {}['key']" in lines
        assert lines[-1] == "fix the file and start again: the failed migration was rolled back"

    async def test_it_has_the_frames_of_a_factory_of_connections(self, folder: Path) -> None:
        async def connect() -> Any:
            raise LookupError("no token")

        lines = await traceback_of(migrated(Migrator(connect=connect, migrations=folder)), ServerError)
        assert '    raise LookupError("no token")' in lines

    @pytest.mark.parametrize("wrong", ["password", "database", "files"])
    async def test_it_ends_with_the_message_and_has_no_frames_of_the_run(
        self, dsn: str, write: Write, folder: Path, wrong: str
    ) -> None:
        wanted: type[BaseException] = AbsentError
        if wrong == "password":
            dsn = urlsplit(dsn)._replace(netloc=f"postgres:wrong@{urlsplit(dsn).netloc.rpartition('@')[2]}").geturl()
        elif wrong == "database":
            dsn = urlsplit(dsn)._replace(path="/nowhere").geturl()
        else:
            write({"003_c.sql": "SELECT 'unterminated;"})
            wanted = FilesError
        lines = await traceback_of(migrated(Migrator(dsn, folder)), wanted)
        assert lines[-1].startswith(f"pgratchet.core.errors.{wanted.__name__}: ")
        assert not [line for line in lines if "asyncpg/" in line or "pgratchet/runs/" in line]
