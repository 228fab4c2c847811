"""The same herd on every engine: eight replicas, twenty files, an index built concurrently, and harm in the middle."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import asyncpg

from pgratchet import Migrator
from tests.processes import Replica, replicas
from tests.support import PASS_GATE, ask, column, gate, states, until

COUNT = 8
FILES = 20
STOP = 8
"""The file in which the first replica stands still while harm is done."""

INDEX = 12
PATIENCE = 100.0
LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
POLLS = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%try_advisory%' AND pid <> pg_backend_pid()"

Harm = Callable[[Replica], Awaitable[None]]


def files(*, index: bool = True) -> dict[str, str]:
    """Return twenty files, each of which would leave a second row if it ran twice."""
    texts = {f"{n:03}_m.sql": f"INSERT INTO ledger VALUES ({n});" for n in range(1, FILES + 1)}
    texts["001_m.sql"] = "CREATE TABLE ledger (n int); INSERT INTO ledger VALUES (1);"
    texts[f"{STOP:03}_m.sql"] = f"INSERT INTO ledger VALUES ({STOP});" + PASS_GATE
    if index:
        texts[f"{INDEX:03}_m.sql"] = "CREATE INDEX CONCURRENTLY i ON ledger (n);"
    return texts


async def survives(folder: Path, dsn: str, direct: str, harm: Harm, **options: Any) -> list[int | None]:
    """Start eight replicas, harm them while the first is in the middle of its work, and return their exit codes.

    The replicas connect to `dsn`; `direct` leads to the server that is the primary when they begin.
    """
    async with (
        replicas(COUNT, dsn, folder, **options) as herd,
        anyio.create_task_group() as tasks,
        gate(direct, PATIENCE) as closed,
    ):
        for replica in herd:
            await replica.go()
            if replica is herd[0]:
                await closed.reached(PATIENCE)
        await until(lambda: ask(direct, POLLS))
        await harm(herd[0])
        with suppress(*LOST):
            await closed.open()
        for replica in herd:
            tasks.start_soon(replica.process.wait)
    return [replica.process.returncode for replica in herd]


async def applied_once(dsn: str, folder: Path, *, index: bool = True, **options: Any) -> None:
    """Return if each file took effect once, and the next run finds nothing to do."""
    assert await column(dsn, "SELECT n FROM ledger ORDER BY n") == [
        n for n in range(1, FILES + 1) if n != INDEX or not index
    ]
    assert set((await states(dsn)).values()) == {"applied"}
    if index:
        assert await column(dsn, "SELECT indisvalid FROM pg_index WHERE indrelid = 'ledger'::regclass") == [True]
    assert await Migrator(dsn, folder, **options).up() == ()
