"""Instances of a server that start at once, each with its workers, on one empty database."""

from contextlib import AsyncExitStack

import anyio
import pytest

from tests.serving.conftest import Start
from tests.serving.processes import PATIENCE, everybody_started, hammered
from tests.support import PASS_GATE, Write, ask, column, deserted, gate, states

pytestmark = pytest.mark.anyio

WHOLE = {
    "001_ledger.sql": "CREATE TABLE ledger (n int);",
    "002_b.sql": f"INSERT INTO ledger VALUES (2); {PASS_GATE}",
    "003_i.sql": "CREATE INDEX CONCURRENTLY i ON ledger (n);",
    "004_d.sql": "INSERT INTO ledger VALUES (4);",
}
BROKEN = {
    "001_ledger.sql": "CREATE TABLE ledger (n int); CREATE SEQUENCE runs;",
    "002_b.sql": f"SELECT nextval('runs'); {PASS_GATE} SELECT 1/0;",
    "003_c.sql": "INSERT INTO ledger VALUES (3);",
}
FIXED = {"002_b.sql": "SELECT nextval('runs');"}
ENDING = {
    "uvicorn": {3},
    "uvicorn --workers 4": {0},
    # The second of two workers that fail at once meets a master that is about to exit with 3, and then exits with 1.
    "gunicorn --workers": {1, 3},
    "gunicorn -k uvicorn_worker": {1, 3},
    "hypercorn --workers": {0},
    "granian --workers": {1},
}
"""Exit codes after a start that failed."""


@pytest.mark.parametrize("name", [*ENDING, "uvicorn --reload"])
async def test_replicas_that_start_at_once_apply_each_migration_once_and_serve_nothing_before(
    dsn: str, start: Start, name: str
) -> None:
    servers = start(WHOLE)
    async with gate(dsn, PATIENCE) as closed, AsyncExitStack() as stack:
        both = [await stack.enter_async_context(servers.one(name)) for _ in range(2)]
        async with hammered(both) as seen:
            await everybody_started(closed, name, 2)
            assert {answer.status for answer in seen} <= {503}
            await closed.open()
            for serving in both:
                assert (await serving.answers(200)).json["rows"] == 2
            await deserted(dsn)
        assert {answer.status for answer in seen} <= {200, 503}
        assert {answer.json["rows"] for answer in seen if answer.status == 200} <= {2}
    assert sorted(await column(dsn, "SELECT n FROM ledger")) == [2, 4]
    assert await states(dsn) == dict.fromkeys("1234", "applied")


@pytest.mark.parametrize("name", ENDING)
async def test_replicas_that_meet_a_failing_migration_run_it_once_and_end(
    dsn: str, start: Start, write: Write, name: str
) -> None:
    servers = start(BROKEN)
    async with gate(dsn, PATIENCE) as closed, AsyncExitStack() as stack:
        both = [await stack.enter_async_context(servers.one(name)) for _ in range(2)]
        async with hammered(both) as seen:
            await everybody_started(closed, name, 2)
            await closed.open()
            assert {await serving.ended() for serving in both} <= ENDING[name]
        assert {answer.status for answer in seen} <= {503}
    assert await ask(dsn, "SELECT last_value FROM runs") == 1
    assert await states(dsn) == {"1": "applied", "2": "failed"}

    write(FIXED)
    async with servers.one("uvicorn") as serving:
        assert (await serving.answers(200)).json["rows"] == 1


async def test_a_reloader_waits_for_the_fixed_file(dsn: str, start: Start, write: Write) -> None:
    broken = "async def up(connection):\n    await connection.execute('SELECT 1/0')\n"
    servers = start({"001_ledger.sql": "CREATE TABLE ledger (n int);", "002_b.py": broken})

    async def failed() -> None:
        with anyio.fail_after(PATIENCE):
            while "startup failed" not in serving.log.read_text():  # noqa: ASYNC110 - another process writes it
                await anyio.sleep(0.05)

    async with servers.one("uvicorn --reload") as serving:
        await failed()
        assert (serving.process.returncode, await serving.ask()) == (None, None)
        write({"002_b.py": broken.replace("1/0", "1")})
        assert (await serving.answers(200)).json["rows"] == 0
    assert await states(dsn) == {"1": "applied", "2": "applied"}
