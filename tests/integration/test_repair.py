import re
from pathlib import Path
from typing import Any

import anyio
import pytest

from pgratchet import HistoryError, Migrator, State, UsageError, Verdict
from pgratchet.postgres.link.sql import Table
from tests.support import (
    GATE,
    HEAD,
    PASS_GATE,
    Write,
    ask,
    column,
    deserted,
    exists,
    failure_of,
    gate,
    history,
    runner_lock,
    states,
    tell,
    until,
    waiters,
)

pytestmark = pytest.mark.anyio

PROCEDURE = (
    "CREATE TABLE ledger (n int); CREATE PROCEDURE work() LANGUAGE plpgsql AS "
    f"$$ BEGIN INSERT INTO ledger VALUES (2); COMMIT; PERFORM pg_advisory_xact_lock_shared({GATE}); END $$"
)
WORK = HEAD + "INSERT INTO ledger VALUES (1); CALL work(); INSERT INTO ledger VALUES (3);"


async def in_doubt(dsn: str, write: Write) -> Migrator:
    """Leave a CALL in doubt that has committed half of its work."""
    await tell(dsn, PROCEDURE)
    write({"002_b.sql": "", "002_b.down.sql": ""})
    migrator = Migrator(dsn, write({"001_work.sql": WORK, "001_work.down.sql": "TRUNCATE ledger"}))
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(migrator.up)
        await closed.reached()
        tasks.cancel_scope.cancel()
    await deserted(dsn)
    await refused(migrator)
    return migrator


async def refused(migrator: Migrator) -> None:
    with pytest.raises(HistoryError, match=r"statement 2 of 3 \(CALL work\(\)\)"):
        await migrator.up()


@pytest.mark.parametrize(
    ("verdict", "state", "ledger"),
    [
        (Verdict.SKIP, State.INTERRUPTED, [1, 2, 3]),
        (Verdict.AGAIN, State.INTERRUPTED, [1, 2, 2, 3]),
        (Verdict.NOT_APPLIED, State.PENDING, [1, 2, 1, 2, 3]),
        (Verdict.APPLIED, State.APPLIED, [1, 2]),
    ],
)
async def test_each_verdict_settles_a_statement_in_doubt(
    dsn: str, write: Write, verdict: Verdict, state: State, ledger: list[int]
) -> None:
    migrator = await in_doubt(dsn, write)

    entry = await migrator.repair("001", verdict, "  I looked at it ")

    assert (entry.version, entry.state) == ("1", state)
    reason = (await history(dsn))["1"]["reason"]
    me = await ask(dsn, "SELECT current_user::text")
    assert reason.startswith(f"I looked at it ({verdict}, 20")
    assert f", {me}@" in reason
    assert reason.endswith(" pgratchet)")
    await migrator.up()
    assert await column(dsn, "SELECT n FROM ledger") == ledger
    assert await states(dsn) == {"1": "applied", "2": "applied"}
    row = (await history(dsn))["1"]
    assert (row["reason"], row["error"], row["statements_done"]) == (reason, None, 3)
    assert [entry.row and entry.row.reason for entry in await migrator.status()] == [reason, None]
    await migrator.down(to=0)
    assert await states(dsn) == {}


async def test_a_reason_outlives_a_failure(dsn: str, write: Write) -> None:
    migrator = await in_doubt(dsn, write)
    await migrator.repair(1, Verdict.NOT_APPLIED, "cleaned up")
    reason = (await history(dsn))["1"]["reason"]
    folder = write({"001_work.sql": "SELECT nope"})
    for _ in range(2):
        await failure_of(Migrator(dsn, folder))
        assert ((await history(dsn))["1"]["state"], (await history(dsn))["1"]["reason"]) == ("failed", reason)
    write({"001_work.sql": HEAD + "INSERT INTO ledger VALUES (1); SELECT nope"})
    await failure_of(Migrator(dsn, folder))
    assert ((await history(dsn))["1"]["statements_done"], (await history(dsn))["1"]["reason"]) == (1, reason)
    write({"001_work.sql": HEAD + "INSERT INTO ledger VALUES (1); SELECT 1"})
    await Migrator(dsn, folder).up()
    assert ((await history(dsn))["1"]["state"], (await history(dsn))["1"]["reason"]) == ("applied", reason)


async def test_a_repair_of_a_way_down_counts_the_statement_too(dsn: str, write: Write) -> None:
    await tell(dsn, PROCEDURE)
    migrator = Migrator(dsn, write({"001_work.sql": "SELECT 1", "001_work.down.sql": WORK}))
    await migrator.up()
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(migrator.down)
        await closed.reached()
        tasks.cancel_scope.cancel()
    await deserted(dsn)
    with pytest.raises(HistoryError, match=r"statement 2 of 3 \(CALL work\(\)\)"):
        await migrator.down()
    entry = await migrator.repair(1, Verdict.SKIP, "it is there")
    assert entry.row is not None
    assert (entry.row.state, entry.row.statements_done) == ("reverting", 2)
    await migrator.down()
    assert await column(dsn, "SELECT n FROM ledger") == [1, 2, 3]
    assert await states(dsn) == {}


async def test_a_repair_settles_a_transaction_that_escaped(dsn: str, write: Write) -> None:
    await tell(dsn, "CREATE TABLE ledger (n int)")
    escapes = "async def up(c):\n    await c.execute('INSERT INTO ledger VALUES (1); COMMIT')\n"
    folder = write({"001_a.py": escapes})
    await failure_of(Migrator(dsn, folder))
    assert await states(dsn) == {"1": "running"}
    for verdict in (Verdict.AGAIN, Verdict.SKIP):
        with pytest.raises(HistoryError, match="one transaction"):
            await Migrator(dsn, folder).repair(1, verdict, "why")
    with pytest.raises(HistoryError, match="pgratchet repair 1"):
        await Migrator(dsn, folder).up()
    await Migrator(dsn, folder).repair(1, Verdict.NOT_APPLIED, "deleted it")
    write({"001_a.py": escapes.replace("; COMMIT", "")})
    await Migrator(dsn, folder).up()
    assert await states(dsn) == {"1": "applied"}


async def test_a_repair_records_what_was_done_by_hand(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "CREATE TABLE b ();"})
    await tell(dsn, "CREATE TABLE a ()")
    entry = await Migrator(dsn, folder).repair(1, Verdict.APPLIED, "by hand")
    assert entry.state is State.APPLIED
    row = (await history(dsn))["1"]
    assert (row["name"], row["kind"], row["state"]) == ("a", "sql", "applied")
    assert row["finished_at"] is not None
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["2"]
    await Migrator(dsn, folder).check()


async def test_a_repair_accepts_the_edited_file_of_an_applied_version(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "SELECT 1;"})
    await Migrator(dsn, folder).up()
    before = await history(dsn)
    write({"001_a.sql": "-- a table\nCREATE TABLE a ();", "003_c.sql": "SELECT 1;"})
    with pytest.raises(HistoryError, match="pgratchet repair 1 --accept --reason"):
        await Migrator(dsn, folder).up()

    entry = await Migrator(dsn, folder).repair(1, Verdict.ACCEPT, "only a comment")
    assert entry.state is State.APPLIED
    assert entry.migration is not None
    after = await history(dsn)
    assert after["1"]["reason"].startswith("only a comment (accept, ")
    changed = {name for name in dict(before["1"]) if after["1"][name] != before["1"][name]}
    assert changed == {"checksum", "reason"}
    assert after["1"]["checksum"] == entry.migration.checksum
    assert after["2"] == before["2"]
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["3"]
    await Migrator(dsn, folder).check()


async def test_a_repair_accepts_only_an_edited_file_of_an_applied_version(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "SELECT 1;"})
    await Migrator(dsn, folder).up(1)
    for version, why in ((1, "nothing differs"), (2, "not applied")):
        with pytest.raises(HistoryError, match=why):
            await Migrator(dsn, folder).repair(version, Verdict.ACCEPT, "why")
    with pytest.raises(UsageError, match="no version 7"):
        await Migrator(dsn, folder).repair(7, Verdict.ACCEPT, "why")
    (folder / "001_a.sql").unlink()
    with pytest.raises(HistoryError, match="no file here"):
        await Migrator(dsn, folder).repair(1, Verdict.ACCEPT, "why")
    write({"001_a.sql": "SELECT nothing;"})
    await Migrator(dsn, folder).repair(1, Verdict.NOT_APPLIED, "undone")
    await failure_of(Migrator(dsn, folder))
    with pytest.raises(HistoryError, match="not applied"):
        await Migrator(dsn, folder).repair(1, Verdict.ACCEPT, "why")
    write({"001_a.sql": "CREATE TABLE IF NOT EXISTS a ();"})
    await Migrator(dsn, folder).up()
    assert await states(dsn) == {"1": "applied", "2": "applied"}


async def test_a_repair_puts_back_a_version_that_was_applied_below_newer_ones(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "SELECT 1;"})
    await Migrator(dsn, folder).up()
    await tell(dsn, "DROP TABLE a")
    entry = await Migrator(dsn, folder).repair(1, Verdict.NOT_APPLIED, "somebody dropped it")
    assert entry.state is State.PENDING
    write({"001_a.sql": "CREATE TABLE a (n int);"})
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]
    assert await exists(dsn, "a")


async def test_a_repair_settles_a_version_whose_file_is_gone(dsn: str, write: Write) -> None:
    migrator = await in_doubt(dsn, write)
    assert isinstance(migrator.migrations, Path)
    for name in ("001_work.sql", "001_work.down.sql"):
        (migrator.migrations / name).unlink()
    entry = await migrator.repair(1, Verdict.SKIP, "it is there")
    assert (entry.state, entry.migration) == (State.INTERRUPTED, None)
    entry = await migrator.repair(1, Verdict.NOT_APPLIED, "never mind")
    assert (entry.state, entry.migration) == (State.PENDING, None)
    assert [entry.version for entry in await migrator.status()] == ["2"]
    assert [step.version for step in await migrator.up()] == ["2"]


@pytest.mark.parametrize("reason", ["", " \n"])
async def test_a_repair_needs_a_reason(dsn: str, write: Write, reason: str) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "SELECT 1;"}))
    with pytest.raises(UsageError, match="reason"):
        await migrator.repair(1, Verdict.APPLIED, reason)
    assert [entry.state for entry in await migrator.status()] == [State.PENDING]


@pytest.mark.parametrize("version", ["2", 2, "one", "", "-1"])
async def test_a_repair_needs_a_version(dsn: str, write: Write, version: str | int) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "SELECT 1;"}))
    with pytest.raises(UsageError, match="no version"):
        await migrator.repair(version, Verdict.APPLIED, "why")
    assert [step.version for step in await migrator.up()] == ["1"]


async def test_a_repair_waits_for_the_lock_and_is_refused_while_somebody_works_without_it(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write({"001_a.sql": HEAD + PASS_GATE + "SELECT 2;"})
    migrator = Migrator(dsn, folder, lock_timeout=0)
    # A runner with another lock: as if its own had been taken away.
    other = Migrator(dsn, folder, lock_timeout=0)
    history = other._settings.history._replace(table=Elsewhere("public", "schema_migrations"))
    other._settings = other._settings._replace(history=history)
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(other.up)
        pid = await closed.reached()
        with pytest.raises(HistoryError, match=f"a session is at work on 1 a: pid {pid}"):
            await migrator.repair(1, Verdict.APPLIED, "why")
        await closed.open()
    assert await states(dsn) == {"1": "applied"}
    async with runner_lock(dsn) as holder, anyio.create_task_group() as tasks:
        tasks.start_soon(migrator.repair, 1, Verdict.NOT_APPLIED, "why")

        async def has_told() -> bool:
            return any(re.match(r"waiting since .* for somebody else \(role", line) for line in caplog.messages)

        await until(has_told)
        assert await states(dsn) == {"1": "applied"}
        holder.terminate()
    assert await states(dsn) == {"1": "pending"}
    await migrator.up()


class Elsewhere(Table):
    """The same table, behind another lock."""

    @property
    def lock_key(self) -> int:
        return 42


async def test_a_repair_is_no_failure_to_waiters(dsn: str, write: Write) -> None:
    migrator = await in_doubt(dsn, write)
    async with runner_lock(dsn) as holder, anyio.create_task_group() as tasks:
        tasks.start_soon(migrator.up)
        tasks.start_soon(migrator.wait)
        await waiters(dsn, 2)
        # What a repair leaves behind, which would have to wait for the same lock.
        await holder.execute(
            "UPDATE schema_migrations SET state = 'pending', statements_done = 0, cursor = NULL, finished_at = now()"
        )
        asked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%version OPERATOR%' AND query_start > $1"
        moment = await ask(dsn, "SELECT now()")

        async def both_have_seen_it() -> bool:
            return int(await ask(dsn, asked, moment)) >= 2

        await until(both_have_seen_it)
        holder.terminate()
    assert await states(dsn) == {"1": "applied", "2": "applied"}
    assert await column(dsn, "SELECT n FROM ledger") == [1, 2, 1, 2, 3]


@pytest.mark.parametrize("verdict", ["Applied", "", "postgresql://app:hunter2@db/app", None])
async def test_an_invalid_verdict_is_refused_and_not_repeated(dsn: str, write: Write, verdict: Any) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "SELECT 1"}))
    with pytest.raises(UsageError, match="one of applied, not-applied, again, skip, accept") as refused:
        await migrator.repair(1, verdict, "by hand")
    assert "hunter2" not in str(refused.value)
    assert (await migrator.repair(1, Verdict.APPLIED, "by hand")).version == "1"
