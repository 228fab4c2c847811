"""The server alone crashes: what was reported as finished is there afterwards, and the history tells the truth."""

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from pgratchet import Migrator, embedded
from tests.support import PASS_GATE, Write, column, connected, gate, states, tell

pytestmark = pytest.mark.anyio

INSERT = "INSERT INTO ledger VALUES ({});"
CARELESS = {
    "001_sql.sql": INSERT.format(1),
    "002_sql.sql": "SET synchronous_commit = off;" + INSERT.format(2),
    "003_python.py": f"async def up(connection):\n    await connection.execute('{INSERT.format(3)}')\n",
    "004_statements.sql": "-- pgratchet: no-transaction\n" + INSERT.format(4) + "SELECT 1;",
}


@pytest.fixture
def lazy(memory: Path | None) -> Iterator[embedded.Server]:
    """A server that writes its log only when a COMMIT asks for it, and where none does by default."""
    settings = {"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}
    with embedded.server(tcp=True, folder=memory, settings=settings) as server:
        yield server


async def crash(server: embedded.Server) -> None:
    await anyio.to_thread.run_sync(server.restart, "immediate")


async def recorded(dsn: str) -> list[str]:
    """Return the versions that the history calls applied, which are exactly those that had an effect."""
    applied = [version for version, state in (await states(dsn)).items() if state == "applied"]
    assert sorted(await column(dsn, "SELECT n::text FROM ledger")) == applied
    return applied


@pytest.mark.parametrize("last", list(CARELESS))
async def test_reported_migrations_survive_a_crash_whatever_synchronous_commit_is(
    lazy: embedded.Server, write: Write, last: str
) -> None:
    await ledger(lazy.dsn)
    folder = write({name: text for name, text in CARELESS.items() if name <= last})
    async with connected(lazy.dsn) as witness:  # its end is no COMMIT that would write the log
        finished = [step.version for step in await Migrator(lazy.dsn, folder).up()]
        assert await witness.fetchval("SHOW synchronous_commit") == "off"
        await crash(lazy)
    assert await recorded(lazy.dsn) == finished
    write(CARELESS)
    assert len(await Migrator(lazy.dsn, folder).up()) == len(CARELESS) - len(finished)


async def test_reverted_migrations_stay_reverted_after_a_crash(lazy: embedded.Server, write: Write) -> None:
    await ledger(lazy.dsn)
    migrator = Migrator(lazy.dsn, write({"001_a.sql": INSERT.format(1), "001_a.down.sql": "DELETE FROM ledger;"}))
    await migrator.up()
    assert await migrator.down()
    await crash(lazy)
    assert await recorded(lazy.dsn) == []
    assert await migrator.up()


async def test_a_run_keeps_a_stronger_setting_of_synchronous_commit(dsn: str, write: Write) -> None:
    await tell(dsn, "CREATE TABLE seen (mode text)")
    name = dsn.rpartition("/")[2].partition("?")[0]
    await tell(dsn, f"ALTER DATABASE {name} SET synchronous_commit = remote_apply")
    await Migrator(dsn, write({"001_a.sql": "SELECT 1;"})).up()
    await tell(
        dsn,
        "CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
        "INSERT INTO public.seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END$$;"
        "CREATE CONSTRAINT TRIGGER look AFTER UPDATE ON schema_migrations DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION look()",
    )
    await Migrator(dsn, write({"002_b.sql": "SELECT 2;", "003_c.sql": "CREATE TABLE c ();"})).up()
    assert await column(dsn, "SELECT mode FROM seen") == ["off", "remote_apply"]


async def test_a_crash_loses_history_and_effects_together_or_neither(lazy: embedded.Server, write: Write) -> None:
    """Crashed in the middle of a message of several, of which nothing was reported yet."""
    await ledger(lazy.dsn)
    files = {f"{n:03}_m.sql": INSERT.format(n) for n in range(1, 10)}
    folder = write(files | {"006_m.sql": INSERT.format(6) + PASS_GATE})
    finished: list[str] = []

    async def run() -> None:
        finished.extend(step.version for step in await Migrator(lazy.dsn, folder, lock_timeout=0).up())

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks, gate(lazy.dsn) as closed:
            tasks.start_soon(run)
            await closed.reached()
            await crash(lazy)
    assert finished == [str(n) for n in range(1, 10)]
    assert await recorded(lazy.dsn) == finished


async def ledger(dsn: str) -> None:
    await tell(dsn, "SET synchronous_commit = on; CREATE TABLE ledger (n int)")
