"""PGlite behind its socket server: a PostgreSQL of one process, and one session that all of its clients share."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgratchet import Migrator, ServerError
from tests.processes import replicas, results
from tests.support import LOCK_KEY, PATIENCE, Write, connected, free_port, missing, without_tls

pytestmark = [pytest.mark.anyio, pytest.mark.third_party]

PACKAGES = Path(__file__).parents[2] / ".servers"
SERVE = """
import { PGlite } from "@electric-sql/pglite"
import { PGLiteSocketServer } from "@electric-sql/pglite-socket"
const db = await PGlite.create()
await new PGLiteSocketServer({ db, port: Number(process.argv[1]), maxConnections: Number(process.argv[2]) }).start()
console.log("ready")
"""
FILES = {
    "001_a.sql": "CREATE TABLE a (i int);\nINSERT INTO a VALUES (1);",
    "002_b.sql": "CREATE TABLE b (i int);",
    "003_c.py": "async def up(connection):\n    await connection.execute('CREATE TABLE c ()')\n",
    "004_d.sql": "CREATE INDEX CONCURRENTLY ON a (i);",
}


@pytest.fixture
def connections() -> int:
    return 10


@pytest.fixture
def shared(connections: int) -> Iterator[str]:
    """The DSN of a PGlite that takes so many connections."""
    if not (PACKAGES / "node_modules" / "@electric-sql").is_dir():
        missing("PGlite is not installed (make .servers/.installed)")
    port = free_port()
    command = ["node", "--input-type=module", "--eval", SERVE, str(port), str(connections)]
    with subprocess.Popen(command, cwd=PACKAGES, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield without_tls(f"postgresql://postgres@127.0.0.1:{port}/template1")
        finally:
            server.kill()


async def test_one_process_at_a_time_applies_everything_and_leaves_nothing(shared: str, write: Write) -> None:
    migrator = Migrator(shared, write(FILES))

    assert [step.version for step in await migrator.up()] == ["1", "2", "3", "4"]

    async with connected(shared) as client:
        assert await client.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
        assert await client.fetchval("SHOW lock_timeout") == "0"
    write({"005_e.sql": "CREATE TABLE e ();"})
    assert [step.version for step in await migrator.up()] == ["5"]
    await migrator.check()


async def test_a_second_process_gets_a_sentence_and_disturbs_nobody(shared: str, write: Write) -> None:
    migrator = Migrator(shared, write(FILES))
    async with connected(shared) as first:
        await first.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")

        with pytest.raises(ServerError, match="all clients of this server share one session"):
            await migrator.up()

        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert await first.fetchval(held) == 1
        await first.execute(f"SELECT pg_advisory_unlock({LOCK_KEY})")
    assert len(await migrator.up()) == 4


@pytest.mark.parametrize("connections", [1, 10])
async def test_processes_that_start_together_apply_everything_once_or_say_why_not(shared: str, write: Write) -> None:
    folder = write(FILES)

    async with replicas(4, shared, folder, budget=30) as started:
        ended = await results(started, PATIENCE * 4)

    applied = [version for code, report in ended if code == 0 for version in report["finished"]]
    assert sorted(applied) == ["1", "2", "3", "4"]
    said = [report["text"] for code, report in ended if code]
    assert all("all clients of this server share one session" in text for text in said)
    assert await Migrator(shared, folder).up() == ()
