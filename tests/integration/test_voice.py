"""The lines that a person sees of a start, in processes that set logging up in different ways."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.streams.text import TextReceiveStream

from pgratchet import Migrator
from tests.support import PASS_GATE, Write, free_port, gate, runner_lock, states, until

pytestmark = pytest.mark.anyio

FILES = {"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "CREATE TABLE b ();"}
APPLIED = ["up 1 a: done", "up 2 b: done"]
PROGRAM = """
import asyncio, logging, logging.config, os, sys
from contextlib import asynccontextmanager
from pgratchet import Migrator, migrated

migrator = Migrator(os.environ["DSN"], os.environ["FOLDER"], lock_timeout=0)

@asynccontextmanager
async def lifespan(_):
    logging.basicConfig(level=logging.INFO, format="root: %(message)s")
    logging.getLogger("app").info("started")
    yield

async def main():
    async with migrated(migrator{hook}):
        pass

{set_up}
asyncio.run({main})
assert logging.getLogger("pgratchet").handlers == {handlers}, "a handler was installed"
"""
INFO = 'logging.basicConfig(level=logging.INFO, format="root: %(message)s")'
ERRORS = "errors = logging.StreamHandler(); errors.setLevel(logging.ERROR); logging.root.addHandler(errors)"
OWN = "own = logging.StreamHandler(); logging.getLogger('pgratchet').addHandler(own); "


def program(set_up: str = "", hook: str = "", main: str = "main()", handlers: str = "[]") -> str:
    return (
        PROGRAM.replace("{set_up}", set_up)
        .replace("{hook}", hook)
        .replace("{main}", main)
        .replace("{handlers}", handlers)
    )


@asynccontextmanager
async def started(dsn: str, folder: Path, code: str) -> AsyncIterator[list[str]]:
    """Run the program beside the block; the list has the lines of its stderr, after the block all of them."""
    lines: list[str] = []
    process = await anyio.open_process(
        [sys.executable, "-c", code], env={**os.environ, "DSN": dsn, "FOLDER": str(folder)}, stdout=subprocess.DEVNULL
    )

    async def read() -> None:
        assert process.stderr is not None
        said = ""
        async for chunk in TextReceiveStream(process.stderr):
            said += chunk
            lines[:] = said.splitlines()

    async with process, anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        yield lines
        assert await process.wait() == 0, lines


async def seen(lines: list[str], words: str) -> None:
    async def said() -> bool:
        return any(words in line for line in lines)

    await until(said)


def spoken(sentences: Iterable[str], prefix: str = "pgratchet: ") -> list[str]:
    return [prefix + each for each in sentences]


@pytest.mark.parametrize(
    "set_up",
    [
        "",
        "logging.basicConfig(format='root: %(message)s')",
        "logging.basicConfig(level=logging.ERROR, format='root: %(message)s')",
        f"{ERRORS}; logging.root.setLevel(logging.INFO)",
        "logging.config.dictConfig({'version': 1, 'disable_existing_loggers': True})",
        f"{INFO}; logging.getLogger('pgratchet').propagate = False",
    ],
)
async def test_each_applied_migration_is_seen_where_no_handler_takes_it(dsn: str, write: Write, set_up: str) -> None:
    async with started(dsn, write(FILES), program(set_up)) as lines:
        pass
    assert lines == spoken(APPLIED)


@pytest.mark.parametrize(
    ("set_up", "handlers", "prefix"),
    [(INFO, "[]", "root: "), (f"{OWN}logging.getLogger('pgratchet').setLevel(logging.INFO)", "[own]", "")],
)
async def test_nothing_is_seen_twice_where_a_handler_takes_it(
    dsn: str, write: Write, set_up: str, handlers: str, prefix: str
) -> None:
    async with started(dsn, write(FILES), program(set_up, handlers=handlers)) as lines:
        pass
    assert [line for line in lines if "done" in line and "step" not in line] == spoken(APPLIED, prefix)
    assert not [line for line in lines if line.startswith("pgratchet: ")]


async def test_nothing_is_seen_twice_once_the_application_has_set_up_logging(dsn: str, write: Write) -> None:
    async with started(dsn, write(FILES), program(hook=", lifespan")) as lines:
        pass
    assert lines == [*spoken(APPLIED), "root: started"]

    folder = write({"003_c.sql": PASS_GATE})
    serve = ", lifespan, on_slow='serve-not-ready', slow_after=0"
    wait = "\n        while not migrator.readiness.ready: await asyncio.sleep(0.01)\n"
    async with gate(dsn) as closed, started(dsn, folder, program(hook=serve).replace("pass", wait)) as lines:
        await closed.reached()
        await closed.open()
    assert [line for line in lines if "up 3 c: done" in line] == ["root: up 3 c: done"]


@pytest.mark.parametrize(
    "set_up",
    ["logging.getLogger('pgratchet').setLevel(logging.WARNING)", "logging.disable()", "sys.stderr = None"],
)
async def test_nothing_is_seen_where_the_application_asks_for_silence(dsn: str, write: Write, set_up: str) -> None:
    async with started(dsn, write(FILES), program(set_up)) as lines:
        pass
    assert lines == []
    assert await states(dsn) == {"1": "applied", "2": "applied"}


async def test_only_the_hook_speaks(dsn: str, write: Write) -> None:
    async with started(dsn, write(FILES), program(main="migrator.up()")) as lines:
        pass
    assert lines == []
    assert await states(dsn) == {"1": "applied", "2": "applied"}


async def test_a_long_wait_for_the_lock_and_its_end_are_seen(dsn: str, write: Write) -> None:
    async with runner_lock(dsn) as holder, started(dsn, write(FILES), program()) as lines:
        await seen(lines, "pgratchet: waiting since ")
        await holder.execute("SELECT pg_advisory_unlock_all()")
    first, last, *applied = lines
    assert "for somebody else (role " in first
    assert last.startswith("pgratchet: waited ")
    assert float(last.split()[2]) >= 2
    assert applied == spoken(APPLIED)


async def test_a_long_wait_for_another_runner_and_its_end_are_seen_or_in_the_log(dsn: str, write: Write) -> None:
    folder = write(FILES)
    async with started(dsn, folder, program(INFO, hook=", mode='wait'")) as logged:
        await seen(logged, "root: waiting since ")
        async with started(dsn, folder, program(hook=", mode='wait'")) as lines:
            await seen(lines, "pgratchet: waiting since ")
            await Migrator(dsn, folder).up()
    for each, prefix in ((lines, "pgratchet:"), (logged, "root:")):
        # The first to say whom it waits for, and then what that one does.
        assert {line.split(" ")[0] for line in each} == {prefix}
        assert {line.split(" ")[1] for line in each[:-1]} == {"waiting"}
        assert each[-1].split(" ")[1] == "waited"


async def test_a_short_wait_is_not_seen(dsn: str, write: Write) -> None:
    listener = "listener=lambda event: print(type(event).__name__, file=sys.stderr)"
    code = program().replace("lock_timeout=0", listener)
    async with runner_lock(dsn) as holder, started(dsn, write(FILES), code) as lines:
        await seen(lines, "Waiting")
        await holder.execute("SELECT pg_advisory_unlock_all()")
    assert [line for line in lines if line.startswith("pgratchet: ")] == spoken(APPLIED)


@pytest.mark.parametrize("handler", ["none", "for errors"])
@pytest.mark.parametrize("there", ["nothing", "a peer that says nothing"])
async def test_a_long_wait_for_a_server_is_seen_once(write: Write, there: str, handler: str) -> None:
    code = program("" if handler == "none" else ERRORS).replace("lock_timeout=0", "connect_budget=3")
    code = code.replace("asyncio.run(main())", "try: asyncio.run(main())\nexcept Exception: pass")
    async with AsyncExitStack() as stack:
        port = free_port()
        if there != "nothing":
            # It accepts connections, and nobody reads.
            await stack.enter_async_context(await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port))
        absent = f"postgresql://somebody@127.0.0.1:{port}/shop?sslmode=disable"
        async with started(absent, write(FILES), code) as lines:
            pass
    what = "cannot connect" if there == "nothing" else "the server has not answered yet"
    waits = [line for line in lines if what in line and "gave up" not in line]
    assert waits
    assert all(line.startswith(what if handler == "none" else f"pgratchet: {what}") for line in waits)
    assert len(waits) < 3
