"""A replica that is told to end says what became of it, in either manner."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

from pgratchet import Migrator
from pgratchet.cli.interruption import InterruptedBySignalError
from tests.chaos.plan import Manner
from tests.chaos.replica import CancellationLostError, run_as_a_server, start
from tests.support import PASS_GATE, Write, deserted, gate, states

pytestmark = pytest.mark.anyio

PYTHON = f"""
async def up(connection):
    async with connection.transaction():
        await connection.execute({PASS_GATE!r})
"""


@pytest.mark.parametrize("manner", Manner)
@pytest.mark.parametrize("lost", [False, True], ids=["alone", "with its session"])
async def test_sigterm_ends_a_replica_in_the_midst_of_its_work(
    dsn: str, write: Write, tmp_path: Path, manner: Manner, *, lost: bool
) -> None:
    folder, path = write({"001_a.py": PYTHON}), tmp_path / "replica"
    async with gate(dsn) as closed:
        process = start({"dsn": dsn, "migrations": folder}, path, manner)
        try:
            pid = await closed.reached()
            process.terminate()
            if lost:
                await closed.connection.execute(f"SELECT pg_terminate_backend({pid})")
            await anyio.wait_readable(process.sentinel)
        finally:
            process.kill()
            process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    assert said(path)["error"] == "InterruptedBySignalError"
    assert said(path)["finished"] == []
    await deserted(dsn)
    assert len(await Migrator(dsn, folder).up()) == 1
    assert await states(dsn) == {"1": "applied"}


def said(path: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(path.with_suffix(".out").read_text())
    return answer


async def tell_us_to_end() -> str:
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(60)
    return "done"


async def swallow() -> str:
    try:
        return await tell_us_to_end()
    except asyncio.CancelledError:
        return "went on"


def test_a_cancellation_that_is_lost_is_told() -> None:
    with pytest.raises(CancellationLostError, match="went on"):
        run_as_a_server(swallow)
    with pytest.raises(InterruptedBySignalError):
        run_as_a_server(tell_us_to_end)
