"""The same herd on every engine: eight replicas, twenty files, an index built concurrently, and harm in the middle."""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg

from pgratchet import Migrator
from tests.processes import Replica, replicas
from tests.support import PASS_GATE, ask, column, gate, states, until

COUNT = 8
FILES = 20
STOP = 8
"""The file in which the first replica stands still while harm is done."""

INDEX = 12
PATIENCE = 150.0
"""Seconds for a herd; pg_auto_failover alone takes almost a minute to give up a primary."""

LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
    "AND wait_event_type IS DISTINCT FROM 'Lock' AND query ~ 'try_advisory|version OPERATOR'"
)
"""The number of sessions that wait for the runner's lock. Behind a pooler they may have no name."""

Harm = Callable[[Replica], Awaitable[None]]
Measured = Callable[[str, object], None]


def files(*, index: bool = True) -> dict[str, str]:
    """Return twenty files, each of which would leave a second row if it ran twice."""
    texts = {f"{n:03}_m.sql": f"INSERT INTO ledger VALUES ({n});" for n in range(1, FILES + 1)}
    texts["001_m.sql"] = "CREATE TABLE ledger (n int); INSERT INTO ledger VALUES (1);"
    texts[f"{STOP:03}_m.sql"] = f"INSERT INTO ledger VALUES ({STOP});" + PASS_GATE
    if index:
        texts[f"{INDEX:03}_m.sql"] = "CREATE INDEX CONCURRENTLY i ON ledger (n);"
    return texts


async def kill(replica: Replica) -> None:
    replica.process.kill()


async def gets_through(  # noqa: PLR0913 - who, where, what, and how
    folder: Path, dsn: str, direct: str, harm: Harm, measured: Measured, *, waiting: int = COUNT - 1, **options: Any
) -> list[int]:
    """Start eight replicas, harm them while the first is in the middle of its work, and return their exit codes.

    The replicas connect to `dsn`; `direct` leads to the server that is the primary when they begin. The harm comes when
    so many sessions wait. `measured` gets the seconds from the harm to the end of the last replica.
    """
    async with replicas(COUNT, dsn, folder, **options) as herd, gate(direct, PATIENCE) as closed:
        for replica in herd:
            await replica.go()
            if replica is herd[0]:
                await closed.reached(PATIENCE)
        await until(partial(_wait, direct, waiting), PATIENCE)
        began = time.monotonic()
        await harm(herd[0])
        with suppress(*LOST):
            await closed.open()
        codes = [await replica.process.wait() for replica in herd]
        measured("from the harm to the last end", time.monotonic() - began)
    return codes


async def _wait(dsn: str, count: int) -> bool:
    return bool(await ask(dsn, WAITING) >= count)


async def applied_once(dsn: str, folder: Path, *, index: bool = True, **options: Any) -> None:
    """Return if each file took effect once, and the next run finds nothing to do."""
    assert await column(dsn, "SELECT n FROM ledger ORDER BY n") == [
        n for n in range(1, FILES + 1) if n != INDEX or not index
    ]
    assert set((await states(dsn)).values()) == {"applied"}
    if index:
        assert await column(dsn, "SELECT indisvalid FROM pg_index WHERE indrelid = 'ledger'::regclass") == [True]
    assert await Migrator(dsn, folder, **options).up() == ()
