import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from pgratchet import HistoryError, Migrator
from pgratchet.embedded import Server
from pgratchet.postgres.wire.message import Message
from pgratchet.postgres.wire.sending import Meanwhile, Wire
from tests.processes import replicas, results
from tests.support import (
    HISTORY,
    PASS_GATE,
    PATIENCE,
    Write,
    ask,
    column,
    connected,
    deserted,
    exists,
    failure_of,
    gate,
    history,
    sessions,
    states,
    tell,
    until,
    waiters,
)

pytestmark = pytest.mark.anyio

COUNT = 8
PYTHON = """
async def up(connection):
    await connection.execute("INSERT INTO ledger VALUES (5)")
"""


def history_of_files() -> Mapping[str, str]:
    """Return migrations that would all succeed twice, and would be seen to."""
    files = {f"{n:03}_m.sql": f"INSERT INTO ledger VALUES ({n}); SELECT pg_sleep(0.01);" for n in range(2, 13)}
    del files["005_m.sql"]
    return files | {
        "001_ledger.sql": "CREATE TABLE ledger (n int);",
        "005_m.py": PYTHON,
        "006_m.sql": "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON ledger (n);",
        "009_m.sql": "-- pgratchet: no-transaction\nINSERT INTO ledger VALUES (9);\nVACUUM ledger;\nANALYZE ledger;",
    }


async def race(dsn: str, folder: Path, table: str = HISTORY) -> list[tuple[int, Any]]:
    async with replicas(COUNT, dsn, folder, table) as racing:
        return await results(racing)


async def test_processes_that_start_at_once_apply_each_migration_once(dsn: str, write: Write, server: Server) -> None:
    said_before = len(server.log.read_text(errors="replace"))

    outcome = await race(dsn, write(history_of_files()))

    assert [code for code, _ in outcome] == [0] * COUNT
    done = Counter(version for _, said in outcome for version in said["finished"])
    assert done == dict.fromkeys((str(n) for n in range(1, 13)), 1)
    assert sorted(await column(dsn, "SELECT n FROM ledger")) == [2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert await ask(dsn, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass")
    assert set((await states(dsn)).values()) == {"applied"}
    assert "deadlock" not in server.log.read_text(errors="replace")[said_before:]
    await deserted(dsn)


async def test_processes_that_meet_a_broken_migration_all_fail_and_run_it_once(dsn: str, write: Write) -> None:
    await tell(dsn, "CREATE SEQUENCE runs")
    folder = write({"001_a.sql": "CREATE TABLE a ();", "003_c.sql": "CREATE TABLE c ();"})
    write({"002_b.sql": "SELECT nextval('runs');" + PASS_GATE + "SELECT 1/0;"})
    async with gate(dsn) as closed, replicas(COUNT, dsn, folder) as racing, anyio.create_task_group() as tasks:
        outcome: list[tuple[int, Any]] = []

        async def collect() -> None:
            outcome.extend(await results(racing))

        tasks.start_soon(collect)
        await closed.reached()
        await all_connected(dsn, COUNT)
        await closed.open()
    assert [code for code, _ in outcome] == [1] * COUNT
    assert {said["error"] for _, said in outcome} == {"MigrationFailedError"}
    assert all("division by zero" in said["text"] for _, said in outcome)
    assert await ask(dsn, "SELECT last_value FROM runs") == 1
    assert await states(dsn) == {"1": "applied", "2": "failed"}

    write({"002_b.sql": "SELECT nextval('runs');"})
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["2", "3"]


async def all_connected(dsn: str, count: int) -> None:
    async def there() -> bool:
        return len(await sessions(dsn)) >= count

    await until(there)


@pytest.mark.parametrize("head", ["", "-- pgratchet: no-transaction\n"], ids=["transaction", "statements"])
async def test_runners_whose_lock_is_taken_away_apply_nothing_twice(dsn: str, write: Write, head: str) -> None:
    """An administrator, say, ends the holder's session while others wait for its lock."""
    await tell(dsn, "CREATE TABLE ledger (n int)")
    slow = f"{head}INSERT INTO ledger VALUES (2); {PASS_GATE} INSERT INTO ledger VALUES (22);"
    folder = write({"001_a.sql": "INSERT INTO ledger VALUES (1);", "002_b.sql": slow})
    async with gate(dsn) as closed, replicas(3, dsn, folder) as racing, anyio.create_task_group() as tasks:
        outcome: list[tuple[int, Any]] = []

        async def collect() -> None:
            outcome.extend(await results(racing))

        tasks.start_soon(collect)
        holder = await closed.reached()
        await waiters(dsn, 2)
        await tell(dsn, f"SELECT pg_terminate_backend({holder})")
        assert await closed.reached_by_another(holder)
        await closed.open()
    assert [code for code, _ in outcome] == [0, 0, 0]
    assert sorted(await column(dsn, "SELECT n FROM ledger")) == [1, 2, 22]
    assert set((await states(dsn)).values()) == {"applied"}


@pytest.fixture
def no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every runner believe that it holds the lock, as a pooler or a failover can."""

    async def yes(*_: object) -> bool:
        return True

    monkeypatch.setattr("pgratchet.postgres.ledger.lock.RunnerLock.try_acquire", yes)
    monkeypatch.setattr("pgratchet.postgres.ledger.lock.HELD", "true")
    monkeypatch.setattr("pgratchet.postgres.ledger.records.STILL_HELD", "true")


@pytest.mark.usefixtures("no_lock")
class TestWithoutALock:
    async def test_the_primary_key_has_each_migration_applied_once_without_a_lock(self, dsn: str, write: Write) -> None:
        await Migrator(dsn, write({"001_ledger.sql": "CREATE TABLE ledger (n int);"})).up()
        sql = "INSERT INTO ledger VALUES ({}); SELECT pg_sleep(0.01);"
        folder = write({f"{n:03}_m.sql": sql.format(n) for n in range(2, 8)})
        write({"008_m.py": PYTHON.replace("(5)", "(8)")})
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for _ in range(6):
                    tasks.start_soon(Migrator(dsn, folder).up)
        assert sorted(await column(dsn, "SELECT n FROM ledger")) == list(range(2, 9))
        assert set((await states(dsn)).values()) == {"applied"}

    @pytest.mark.parametrize("suffix", ["sql", "py"])
    async def test_a_runner_that_is_overtaken_reads_again_and_goes_on(
        self, dsn: str, write: Write, suffix: str
    ) -> None:
        await tell(dsn, "CREATE TABLE ledger (n int)")
        shared = PASS_GATE + "INSERT INTO ledger VALUES (2);"
        if suffix == "py":
            shared = f"async def up(connection):\n    await connection.execute({shared!r})\n"
        short = write({f"002_b.{suffix}": shared})
        full = short.parent / "full"
        await anyio.Path(full).mkdir()
        await anyio.Path(full / "001_a.sql").write_text("INSERT INTO ledger VALUES (1); SELECT 1; SELECT 2;")
        await anyio.Path(full / f"002_b.{suffix}").write_text(shared)
        await anyio.Path(full / "003_c.sql").write_text("INSERT INTO ledger VALUES (3);")
        async with gate(dsn) as closed, anyio.create_task_group() as tasks:
            tasks.start_soon(Migrator(dsn, short, lock_timeout=0).up)
            await closed.reached()
            tasks.start_soon(Migrator(dsn, full, lock_timeout=0).up)

            async def blocked() -> bool:
                waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
                return bool(await ask(dsn, waiting))

            await until(blocked)
            await closed.open()
        assert sorted(await column(dsn, "SELECT n FROM ledger")) == [1, 2, 3]
        assert set((await states(dsn)).values()) == {"applied"}

    async def test_a_file_that_runs_statement_by_statement_is_left_to_the_one_that_has_claimed_it(
        self, dsn: str, write: Write
    ) -> None:
        await tell(dsn, "CREATE TABLE ledger (n int)")
        sql = "-- pgratchet: no-transaction\nINSERT INTO ledger VALUES (1);\n" + PASS_GATE
        folder = write({"001_i.sql": sql})
        polls = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgratchet' AND query LIKE '%state_change%'"
        async with gate(dsn) as closed, anyio.create_task_group() as tasks:
            tasks.start_soon(Migrator(dsn, folder, lock_timeout=0).up)
            await closed.reached()
            tasks.start_soon(Migrator(dsn, folder).up)
            await until(lambda: column(dsn, polls))
            assert await column(dsn, "SELECT n FROM ledger") == [1]
            await closed.open()
        assert await column(dsn, "SELECT n FROM ledger") == [1]
        assert await states(dsn) == {"1": "applied"}


async def test_two_histories_race_without_hindering_each_other(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": PASS_GATE})
    async with gate(dsn) as closed, replicas(1, dsn, folder) as one, replicas(1, dsn, folder, "two.history") as two:
        outcome: list[tuple[int, Any]] = []

        async def collect() -> None:
            outcome.extend(await results(one + two))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect)

            async def both() -> bool:
                query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted"
                return bool(await ask(dsn, query) == 2)

            await until(both)
            await closed.open()
    assert [code for code, _ in outcome] == [0, 0]
    assert await states(dsn) == await states(dsn, "two.history") == {"1": "applied"}


async def test_a_database_that_is_being_migrated_by_an_older_image_is_left_to_it(dsn: str, write: Write) -> None:
    """A replica of the release before starts while the new one migrates: both are happy."""
    folder = write({"001_a.sql": "CREATE TABLE a ();"})
    await Migrator(dsn, folder).up()
    write({"002_b.sql": PASS_GATE})
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(Migrator(dsn, folder, lock_timeout=0).up)
        await closed.reached()
        old = write({"002_b.sql": PASS_GATE}).parent / "old"
        await anyio.Path(old).mkdir()
        await anyio.Path(old / "001_a.sql").write_text("CREATE TABLE a ();")
        with anyio.fail_after(5):
            assert await Migrator(dsn, old).up() == ()
            await Migrator(dsn, old).check()
        await closed.open()
    assert await exists(dsn, "a")
    assert len(await history(dsn)) == 2


TWO = {
    "001_a.sql": "CREATE TABLE a ();",
    "001_a.down.sql": "DROP TABLE a;",
    "002_b.sql": "CREATE TABLE IF NOT EXISTS busy (); ALTER TABLE busy ADD n int;",
    "002_b.down.sql": "ALTER TABLE busy DROP n;",
}


@asynccontextmanager
async def busy(dsn: str) -> AsyncIterator[None]:
    """Have a report hold up whatever changes the table `busy`, until the block is left."""
    async with connected(dsn) as report:
        await report.execute("BEGIN; LOCK TABLE busy IN ROW EXCLUSIVE MODE")
        yield


async def held_up(dsn: str) -> None:
    async def blocked() -> bool:
        return any(row["wait_event_type"] == "Lock" for row in await sessions(dsn))

    await until(blocked)


async def refused(work: Callable[[], Awaitable[object]], why: str) -> None:
    with anyio.fail_after(PATIENCE), pytest.raises(HistoryError, match=why):
        await work()


async def test_a_way_down_reverts_nothing_below_what_another_runner_applies_meanwhile(dsn: str, write: Write) -> None:
    folder = write(TWO)
    await Migrator(dsn, folder).up()
    write({"003_c.sql": "CREATE TABLE c ();"})
    new = Migrator(dsn, folder, lock="transaction", lock_timeout=0.2)
    async with anyio.create_task_group() as tasks, busy(dsn):
        tasks.start_soon(refused, new.down, "another runner has applied 3 meanwhile")
        await held_up(dsn)
        assert [step.version for step in await new.up()] == ["3"]
    assert await states(dsn) == {"1": "applied", "2": "applied", "3": "applied"}
    assert await new.up() == ()


async def test_a_redo_applies_nothing_above_what_another_runner_reverts_meanwhile(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write(TWO), lock="transaction", lock_timeout=0.2)
    await migrator.up()
    write({"002_b.down.sql": "SELECT 1;", "002_b.sql": TWO["002_b.sql"].replace("ADD n", "ADD IF NOT EXISTS n")})
    await tell(dsn, f"DELETE FROM {HISTORY} WHERE version = '2'")
    await migrator.up()
    async with anyio.create_task_group() as tasks, busy(dsn):
        tasks.start_soon(refused, migrator.redo, "another runner has reverted 1 meanwhile")
        await held_up(dsn)
        assert [step.version for step in await migrator.down()] == ["1"]
    assert await states(dsn) == {}
    assert [step.version for step in await migrator.up()] == ["1", "2"]


async def test_another_runners_failure_is_not_that_of_a_run_with_something_else_to_do(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "SELECT 1;", "001_a.down.sql": "SELECT 1;", "003_c.sql": PASS_GATE + "SELECT 1/0;"})
    failing = Migrator(dsn, folder, lock_timeout=0)
    for verb in (Migrator.down, partial(Migrator.up, to=2)):
        async with gate(dsn) as closed, anyio.create_task_group() as tasks:
            tasks.start_soon(failure_of, failing)
            await closed.reached()
            write({"002_b.sql": "SELECT 2;"})
            tasks.start_soon(verb, Migrator(dsn, folder))
            await waiters(dsn)
            await closed.open()
        (folder / "002_b.sql").unlink()
    assert await states(dsn) == {"1": "applied", "2": "applied", "3": "failed"}


async def test_a_snapshot_that_lasts_for_a_file_is_not_older_than_its_turn(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(TWO)
    await Migrator(dsn, folder).up()
    write({"003_c.sql": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; CREATE TABLE c ();"})
    migrator = Migrator(dsn, folder, lock="transaction")
    send = Wire.send

    async def either() -> bool:
        return any(row["wait_event_type"] == "Lock" for row in await sessions(dsn)) or len(await states(dsn)) < 2

    async def interrupted(self: Wire, message: Message, meanwhile: Meanwhile | None = None) -> None:
        text = message.text
        place = text.find("SELECT CAST(CASE WHEN pg_catalog.pg_try_advisory_xact_lock")
        if "REPEATABLE READ" in text:
            monkeypatch.undo()
            await self.connection.execute(text[:place] + "SELECT 1")
            tasks.start_soon(migrator.down)
            await until(either)
            message = Message(text[place:], tuple(part._replace(at=part.at - place) for part in message.parts))
        await send(self, message, meanwhile)

    monkeypatch.setattr(Wire, "send", interrupted)
    async with anyio.create_task_group() as tasks:
        await migrator.up()
    assert await states(dsn) == {"1": "applied", "2": "applied", "3": "applied"}


def in_order(steps: Iterable[int]) -> list[int]:
    """Return what is applied after these steps, n for up and -n for down, each of which has to be the next one."""
    applied: list[int] = []
    for step in steps:
        if step > 0:
            assert step == len(applied) + 1, (step, applied)
            applied.append(step)
        else:
            assert applied.pop() == -step
    return applied


@pytest.mark.parametrize("lock", ["session", "transaction"])
async def test_ways_up_and_down_that_race_keep_the_order(
    dsn: str, write: Write, lock: Literal["session", "transaction"]
) -> None:
    folder = write(
        {f"{n}_m.sql": f"INSERT INTO ledger VALUES (DEFAULT, {n});" for n in range(1, 5)}
        | {f"{n}_m.down.sql": f"INSERT INTO ledger VALUES (DEFAULT, {-n});" for n in range(1, 5)}
    )
    await tell(dsn, "CREATE TABLE ledger (id serial, step int)")
    choice = random.Random(f"order {lock}")  # noqa: S311 - a seed, no secret

    async def run() -> None:
        migrator = Migrator(dsn, folder, lock=lock)
        verbs: list[Callable[[], Awaitable[object]]] = [
            *(migrator.up, migrator.down, migrator.redo),
            *(partial(migrator.redo, 2), partial(migrator.down, to=1)),
        ]
        # Another one was there first.
        with suppress(HistoryError):
            await choice.choice(verbs)()

    for _ in range(12):
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(run)
    applied = in_order(await column(dsn, "SELECT step FROM ledger ORDER BY id"))
    assert await states(dsn) == {str(version): "applied" for version in applied}
    await Migrator(dsn, folder).up()
    assert in_order(await column(dsn, "SELECT step FROM ledger ORDER BY id")) == [1, 2, 3, 4]
