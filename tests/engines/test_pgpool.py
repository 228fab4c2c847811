"""Through pgpool-II: one server; and two, of which the standby lags, and pgpool-II sends reads to it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from pgratchet import BehindError, Lock, MigrationFailedError, Migrator, ServerError, Verdict
from pgratchet.embedded import Server
from tests.engines import herd
from tests.engines.herd import Measured
from tests.engines.pgpool import Between, pgpool
from tests.faults.pairs import pair
from tests.processes import replicas
from tests.support import PASS_GATE, PATIENCE, Write, ask, column, failure_of, gate, leave, states, tell, until

pytestmark = [pytest.mark.anyio, pytest.mark.third_party]

every_lock = pytest.mark.parametrize("lock", [None, Lock.SESSION, Lock.TRANSACTION])


KEPT = 5.0
"""Seconds for which the lock of a killed runner is watched; without pgpool-II it is free after half a second."""


@every_lock
async def test_a_herd_gets_through_before_one_server(
    server: Server, dsn: str, write: Write, record_property: Measured, lock: Lock | None
) -> None:
    index = lock is not Lock.TRANSACTION
    folder = write(herd.files(index=index))
    with pgpool([server], dsn) as between:
        codes = await herd.gets_through(folder, between.dsn, dsn, herd.kill, record_property, lock=lock)
        assert await Migrator(between.dsn, folder, lock=lock).up() == ()
    assert codes == [-9] + [0] * 7
    await herd.applied_once(dsn, folder, index=index)


async def test_the_lock_of_a_killed_runner_stays_until_its_statement_ends(
    server: Server, dsn: str, write: Write
) -> None:
    """The server looks for its client, which is pgpool-II, and that looks for its own client between two statements."""
    folder = write({"001_a.sql": PASS_GATE})
    with pgpool([server], dsn) as between:
        async with gate(dsn) as closed, replicas(1, between.dsn, folder) as (replica,):
            await replica.go()
            pid = await closed.reached()
            await herd.kill(replica)
            with anyio.move_on_after(KEPT) as watched:
                await until(lambda: ask(dsn, "SELECT pid FROM pg_stat_activity WHERE pid = $1 AND state = 'idle'", pid))
            assert watched.cancelled_caught
            await closed.open()
        with anyio.fail_after(KEPT):
            assert await Migrator(between.dsn, folder).up() == ()


@pytest.fixture(scope="module")
def servers(memory: Path | None) -> Iterator[tuple[Server, Server]]:
    with pair(memory, synchronous=False) as servers:
        yield servers


@pytest.fixture
async def primary(servers: tuple[Server, Server]) -> AsyncIterator[str]:
    primary, standby = servers
    await tell(primary.dsn, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    yield primary.dsn
    await tell(standby.dsn, "SELECT pg_wal_replay_resume()")
    await leave(primary.dsn)
    await leave(standby.dsn)


@pytest.fixture
def between(servers: tuple[Server, Server], primary: str) -> Iterator[Between]:
    # As releases before 4.2 had it: other functions are taken for reads, those that lock included.
    with pgpool(servers, primary, write_function_list="currval,lastval,nextval,setval") as between:
        yield between


async def lags(servers: tuple[Server, Server], between: Between) -> None:
    """Return when pgpool-II reads from the standby, which has all that the primary has now, and gets nothing newer."""
    primary, standby = servers
    at = await ask(primary.dsn, "SELECT pg_current_wal_flush_lsn()::text")
    await until(lambda: ask(standby.dsn, "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", at))
    await tell(standby.dsn, "SELECT pg_wal_replay_pause()")
    await until(lambda: ask(standby.dsn, "SELECT pg_get_wal_replay_pause_state() = 'paused'"))
    # Otherwise the tests would show nothing.
    assert await ask(between.dsn, "SELECT current_setting('port')::int") == standby.port


@every_lock
async def test_a_run_decides_by_what_the_primary_has(
    servers: tuple[Server, Server], primary: str, between: Between, write: Write, lock: Lock | None
) -> None:
    names = {f"{n:03}_m": f"TABLE m{n}" for n in (1, 2, 3)}
    folder = write({f"{name}.sql": f"CREATE {what} (n int);" for name, what in names.items()})
    write({f"{name}.down.sql": f"DROP {what};" for name, what in names.items()})
    migrator = Migrator(between.dsn, folder, lock=lock)
    await lags(servers, between)
    assert len(await migrator.up()) == 3
    assert [step.version for step in await migrator.down(to=1)] == ["3", "2"]
    with pytest.raises(BehindError):
        await migrator.check()
    assert [entry.state for entry in await migrator.status()] == ["applied", "pending", "pending"]
    assert [step.version for step in await migrator.up()] == ["2", "3"]
    await migrator.check()
    await migrator.wait()
    assert [step.version for step in await migrator.redo()] == ["3", "3"]
    assert await migrator.up() == ()
    assert await column(primary, "SELECT version FROM schema_migrations ORDER BY 1") == ["1", "2", "3"]


@every_lock
async def test_nothing_of_a_run_is_asked_of_the_standby(  # noqa: PLR0913, PLR0917 - three are the engine
    servers: tuple[Server, Server],
    primary: str,
    between: Between,
    write: Write,
    record_property: Measured,
    lock: Lock | None,
) -> None:
    bare = lock is Lock.SESSION
    folder = write(herd.files(index=bare))
    await lags(servers, between)
    codes = await herd.gets_through(folder, between.dsn, primary, herd.kill, record_property, lock=lock)
    assert codes == [-9] + [0] * 7
    migrator = Migrator(between.dsn, write({"021_m.sql": "INSERT INTO ledger VALUES (21); SELECT 1/0;"}), lock=lock)
    await failure_of(migrator)
    await migrator.repair(21, Verdict.APPLIED, "not needed")
    assert await migrator.up() == ()
    assert between.read_from(1) == []
    assert between.read_from(0) != []
    await herd.applied_once(primary, folder, index=bare)


@every_lock
async def test_a_failure_is_charged_to_the_file_that_failed(
    servers: tuple[Server, Server], primary: str, between: Between, write: Write, lock: Lock | None
) -> None:
    folder = write({f"{n:03}_m.sql": f"CREATE TABLE m{n} ();" for n in (1, 2, 3)})
    write({"003_m.sql": "CREATE TABLE m2 ();", "002_m.down.sql": "DROP TABLE m9;"})
    migrator = Migrator(between.dsn, folder, lock=lock)
    await lags(servers, between)
    failure = await failure_of(migrator)
    assert failure.failure.version == "3"
    assert [step.version for step in failure.finished] == ["1", "2"]
    with anyio.fail_after(PATIENCE), pytest.raises(MigrationFailedError, match="m9"):
        await migrator.down(to=1)
    assert await states(primary) == {"1": "applied", "2": "applied", "3": "failed"}
    write({"003_m.sql": "CREATE TABLE m3 ();"})
    assert [step.version for step in await migrator.up()] == ["3"]


async def test_a_file_that_runs_outside_a_transaction_needs_the_lock_of_a_session(
    primary: str, between: Between, write: Write
) -> None:
    folder = write(herd.files())
    with pytest.raises(ServerError, match=r"012_m\.sql.*direct_dsn"):
        await Migrator(between.dsn, folder).up()
    assert len(await Migrator(between.dsn, folder, direct_dsn=primary).up()) == herd.FILES
    await herd.applied_once(primary, folder)


async def test_an_adoption_takes_over_what_the_primary_has(
    servers: tuple[Server, Server], primary: str, between: Between, write: Write
) -> None:
    folder = write({"001_m.sql": "CREATE TABLE m1 ();", "002_m.sql": "CREATE TABLE m2 ();"})
    columns = "version int, description text, filename text, executed_at timestamptz, success bool, error_message text"
    row = "'m', '001_m.sql', now(), true, NULL"
    await tell(primary, f"CREATE TABLE migrations ({columns}); INSERT INTO migrations VALUES (1, {row})")
    await lags(servers, between)
    await tell(primary, f"INSERT INTO migrations VALUES (2, {row.replace('001', '002')})")
    migrator = Migrator(between.dsn, folder)
    for dry_run in (True, False):
        assert (await migrator.adopt("public.migrations", dry_run=dry_run)).adopted == ("1", "2")
    assert await states(primary) == {"1": "applied", "2": "applied"}
    assert await migrator.up() == ()
