from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from pgratchet import Migrator
from tests.faults.proxy import Proxy, proxy
from tests.faults.traps import Harm, Way

pytestmark = pytest.mark.anyio

LOCK = b"pg_try_advisory_lock"
"""What every run that means to apply something sends."""

BEFORE_THE_FIRST = 5
"""Round trips of a run before its first message: look, lock, facts, making the history, look again."""

Write = Callable[[Mapping[str, str | bytes]], Path]


@pytest.fixture
async def between(dsn: str) -> AsyncIterator[Proxy]:
    async with proxy(dsn) as it:
        yield it


def tables(number: int) -> dict[str, str]:
    return {f"{index:04}_table.sql": f"CREATE TABLE t{index} (id int);" for index in range(1, number + 1)}


def comments(number: int) -> dict[str, str]:
    return {f"{index:04}_nothing.sql": f"-- number {index}\n" for index in range(1, number + 1)}


async def test_nothing_pending_costs_one_connection_two_round_trips_and_no_lock(
    dsn: str, between: Proxy, write: Write
) -> None:
    folder = write(comments(1000))
    assert len(await Migrator(dsn, folder).up()) == 1000

    locking = between.trap(Way.TO_SERVER, LOCK, Harm.NONE)
    assert await Migrator(between.dsn, folder).up() == ()

    assert between.connections == 1
    assert 1 <= between.flights <= 2
    assert not locking.sprung.is_set()


async def test_migrations_share_round_trips(between: Proxy, write: Write) -> None:
    folder = write(tables(100))
    locking = between.trap(Way.TO_SERVER, LOCK, Harm.NONE)

    assert len(await Migrator(between.dsn, folder).up()) == 100

    assert between.connections == 1
    assert between.flights <= BEFORE_THE_FIRST + 2
    assert locking.sprung.is_set()


async def test_another_migration_takes_no_round_trip_of_its_own(between: Proxy, write: Write) -> None:
    await Migrator(between.dsn, write(tables(1))).up()
    first = between.flights

    assert len(await Migrator(between.dsn, write(tables(10))).up()) == 9

    assert first == BEFORE_THE_FIRST + 1
    assert between.flights - first <= BEFORE_THE_FIRST


async def test_a_migration_that_writes_rows_takes_one_round_trip(between: Proxy, write: Write) -> None:
    rows = {f"{index:04}_rows.sql": f"INSERT INTO t1 DEFAULT VALUES; -- {index}" for index in range(2, 101)}

    assert len(await Migrator(between.dsn, write(tables(1) | rows)).up()) == 100

    assert between.flights <= BEFORE_THE_FIRST + 100
