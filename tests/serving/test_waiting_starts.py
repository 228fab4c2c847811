"""A start that waits when its server is told to end."""

import os
import signal
from contextlib import AsyncExitStack

import pytest

from pgratchet import Migrator
from tests.serving.conftest import Start
from tests.serving.processes import PATIENCE, SERVERS, Serving
from tests.support import deserted, free_port, runner_lock, until, waiters

pytestmark = pytest.mark.anyio

LEDGER = {"001_ledger.sql": "CREATE TABLE ledger (n int);"}
ENDS_WITHIN = 5.0
"""Seconds; it takes less than two where the machine is not busy."""
EXIT = {"uvicorn": {3}, "uvicorn --workers 2": {0}, "uvicorn --reload": {0}, "hypercorn": {1}}
EXIT |= {name: {1, 3} if name.startswith("gunicorn") else {0} for name in SERVERS if name not in EXIT}
CASES = [
    ("uvicorn", signal.SIGINT, "a server"),
    ("uvicorn", signal.SIGTERM, "the lock"),
    ("uvicorn", signal.SIGINT, "another runner"),
    ("uvicorn --workers 2", signal.SIGINT, "a server"),
    ("uvicorn --reload", signal.SIGTERM, "a server"),
    *(
        (name, number, "a server")
        for name in SERVERS
        for number in (signal.SIGINT, signal.SIGTERM)
        if not name.startswith("uvicorn") and name != "hypercorn --workers"
    ),
]


@pytest.mark.parametrize(("name", "number", "awaited"), CASES)
async def test_a_start_that_waits_ends_soon_when_its_server_is_told_to(
    dsn: str, start: Start, name: str, number: signal.Signals, awaited: str
) -> None:
    servers = start(LEDGER)
    async with AsyncExitStack() as stack:
        if awaited == "a server":
            servers.dsn = f"postgresql://somebody@127.0.0.1:{free_port()}/shop"
        elif awaited == "the lock":
            await stack.enter_async_context(runner_lock(dsn))
        mode = "wait" if awaited == "another runner" else "apply"
        serving = await stack.enter_async_context(servers.one(name, hook={"mode": mode}))
        await (all_wait_for_a_server(serving, name) if awaited == "a server" else waiters(dsn))
        serving.tell(number)
        assert await serving.ended(ENDS_WITHIN) in EXIT[name]
        await deserted(dsn)
    assert len(await Migrator(dsn, servers.folder).up()) == 1


@pytest.mark.parametrize("name", ["hypercorn --workers"])
async def test_ctrl_c_in_a_terminal_ends_workers_whose_parent_does_not_pass_it_on(
    dsn: str, start: Start, name: str
) -> None:
    servers = start(LEDGER)
    servers.dsn = f"postgresql://somebody@127.0.0.1:{free_port()}/shop"
    async with servers.one(name) as serving:
        await all_wait_for_a_server(serving, name)
        # A terminal sends it to each process of the group.
        os.killpg(serving.process.pid, signal.SIGINT)
        await serving.ended(ENDS_WITHIN)
    assert len(await Migrator(dsn, servers.folder).up()) == 1


async def all_wait_for_a_server(serving: Serving, name: str) -> None:
    """Return when each worker has failed to connect."""

    async def failed() -> bool:
        return serving.log.read_text().count("trying again") >= SERVERS[name].workers

    await until(failed, PATIENCE)
