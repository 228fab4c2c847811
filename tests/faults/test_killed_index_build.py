"""Files that run statement by statement, cut off at every place where they can be: each statement takes effect once."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
import asyncpg
import pytest

from pgratchet import HistoryError, Migrator, State, Verdict
from pgratchet.postgres.steps import indexes
from pgratchet.postgres.steps.indexes import Index
from pgratchet.postgres.wire.message import Message
from pgratchet.postgres.wire.sending import Meanwhile, Wire
from tests.processes import replicas
from tests.support import (
    HEAD,
    PASS_GATE,
    Gate,
    Write,
    ask,
    column,
    connected,
    deserted,
    exists,
    failure_of,
    gate,
    history,
    states,
    tell,
    until,
)

pytestmark = pytest.mark.anyio

BEFORE = """
CREATE TABLE ledger (n int);
CREATE TABLE t AS SELECT n FROM generate_series(1, 100) n;
CREATE TABLE old AS SELECT 1 AS n; CREATE INDEX old_i ON old (n);
CREATE TABLE parent (n int) PARTITION BY LIST (n);
CREATE TABLE child PARTITION OF parent FOR VALUES IN (1);
CREATE TABLE parts (n int) PARTITION BY LIST (n); CREATE INDEX parts_i ON parts (n);
CREATE TABLE part PARTITION OF parts FOR VALUES IN (1);
"""
STATEMENTS = (
    "INSERT INTO ledger VALUES (1)",
    "SET work_mem = '1234kB'",
    "CREATE INDEX CONCURRENTLY i ON t (n)",
    "INSERT INTO ledger SELECT 2 WHERE current_setting('work_mem') = '1234kB'",
    "DROP INDEX CONCURRENTLY old_i",
    "INSERT INTO ledger VALUES (3)",
    "VACUUM t",
    "REINDEX TABLE parts",
    "ALTER TABLE parent DETACH PARTITION child CONCURRENTLY",
    "REINDEX INDEX CONCURRENTLY i",
    "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS j ON t (n)",
    "INSERT INTO ledger SELECT 4 WHERE current_setting('work_mem') = '1234kB'",
)
BLOCKED_BY = {
    3: "INSERT INTO t VALUES (0)",
    5: "INSERT INTO old VALUES (0)",
    7: "LOCK TABLE t IN SHARE MODE",
    8: "INSERT INTO part VALUES (1)",
    9: "SELECT FROM parent",
    10: "INSERT INTO t VALUES (0)",
    11: "INSERT INTO t VALUES (0)",
}
"""What a transaction does that the statement of that number, of those that run bare, has to wait for."""

APPLIED = {"1": "applied"}
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)"


def script(statements: tuple[str, ...] = STATEMENTS) -> str:
    return HEAD + ";\n".join(statements) + ";\n"


def with_gate_before(number: int) -> str:
    """Return the script with a gate that is a statement of its own."""
    return script((*STATEMENTS[: number - 1], PASS_GATE.strip().rstrip(";"), *STATEMENTS[number - 1 :]))


async def stuck(dsn: str) -> int:
    """Return the process id of a runner that waits for a lock, when there is one."""
    query = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        "AND wait_event <> 'advisory' AND application_name LIKE 'pgratchet since%'"
    )

    async def waits() -> int:
        return int(await ask(dsn, query) or 0)

    return await until(waits)


@asynccontextmanager
async def inside(dsn: str, number: int, closed: Gate, state: str = "running") -> AsyncIterator[int]:
    """Let a runner into the bare statement of that number, and no further while the block lasts."""
    await closed.reached()
    async with connected(dsn) as connection:
        await connection.execute(f"BEGIN; {BLOCKED_BY[number]}")
        await closed.open()
        pid = await stuck(dsn)
        row = (await history(dsn))["1"]
        assert (row["state"], row["statements_done"], row["backend_pid"]) == (state, number, pid)
        assert ">" in row["cursor"]
        yield pid


async def has_all_of_it_once(dsn: str, recorded: Mapping[str, str] = APPLIED) -> None:
    assert await column(dsn, "SELECT n FROM ledger") == [1, 2, 3, 4]
    assert [await ask(dsn, VALID, name) for name in ("i", "j")] == [True, True]
    assert not await exists(dsn, "old_i")
    assert await ask(dsn, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'parent'::regclass") == 0
    # What an interrupted REINDEX leaves behind is reported, not dropped.
    invalid = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
    assert [name for name in await column(dsn, invalid) if "_cc" not in name] == []
    assert await states(dsn) == recorded


@pytest.mark.parametrize("number", range(1, len(STATEMENTS) + 2))
async def test_the_next_run_goes_on_after_a_kill_between_any_two_statements(
    dsn: str, write: Write, number: int
) -> None:
    await tell(dsn, BEFORE)
    folder = write({"001_a.sql": with_gate_before(number)})
    async with gate(dsn) as closed, replicas(1, dsn, folder) as (replica,):
        await replica.go()
        await closed.reached()
        replica.process.kill()
        await deserted(dsn)
    row = (await history(dsn))["1"]
    assert (row["state"], row["statements_done"]) == ("running", number - 1)
    with anyio.fail_after(20):
        assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]
        assert await Migrator(dsn, folder).up() == ()
    await has_all_of_it_once(dsn)


@pytest.mark.parametrize("number", BLOCKED_BY)
async def test_the_next_run_settles_the_bare_statement_that_a_kill_has_cut_off(
    dsn: str, write: Write, number: int
) -> None:
    await tell(dsn, BEFORE)
    folder = write({"001_a.sql": with_gate_before(number)})
    async with gate(dsn) as closed, replicas(1, dsn, folder) as (replica,):
        await replica.go()
        async with inside(dsn, number, closed):
            replica.process.kill()
            await deserted(dsn)
    with anyio.fail_after(20):
        await Migrator(dsn, folder).up()
    await has_all_of_it_once(dsn)


@pytest.mark.parametrize("number", BLOCKED_BY)
async def test_a_run_settles_the_bare_statement_whose_session_alone_was_killed(
    dsn: str, write: Write, number: int
) -> None:
    await tell(dsn, BEFORE)
    migrator = Migrator(dsn, write({"001_a.sql": with_gate_before(number)}))
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(migrator.up)
        async with inside(dsn, number, closed) as first:
            await tell(dsn, f"SELECT pg_terminate_backend({first})")

            async def taken_over() -> bool:
                return bool((await history(dsn))["1"]["backend_pid"] != first)

            await until(taken_over)
    await has_all_of_it_once(dsn)


@pytest.mark.parametrize("number", BLOCKED_BY)
async def test_the_next_way_down_settles_the_bare_statement_that_a_kill_has_cut_off(
    dsn: str, write: Write, number: int
) -> None:
    await tell(dsn, BEFORE)
    migrator = Migrator(dsn, write({"001_a.sql": "SELECT 1;", "001_a.down.sql": with_gate_before(number)}))
    await migrator.up()
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(migrator.down)
        async with inside(dsn, number, closed, "reverting"):
            tasks.cancel_scope.cancel()
    await deserted(dsn)
    with anyio.fail_after(20):
        assert [(step.version, step.direction) for step in await migrator.down()] == [("1", "down")]
    await has_all_of_it_once(dsn, {})


async def test_a_cut_off_statement_that_only_the_server_knows_to_refuse_a_transaction_is_never_tried_in_one_again(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tell(dsn, BEFORE)
    number = STATEMENTS.index("REINDEX TABLE parts") + 1
    migrator = Migrator(dsn, write({"001_a.sql": with_gate_before(number)}))
    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(migrator.up)
        async with inside(dsn, number, closed):
            tasks.cancel_scope.cancel()
    await deserted(dsn)
    sent: list[str] = []
    send = Wire.send

    async def listen(wire: Wire, message: Message, meanwhile: Meanwhile | None = None) -> None:
        sent.append(message.text)
        await send(wire, message, meanwhile)

    monkeypatch.setattr(Wire, "send", listen)
    await migrator.up()
    assert [text for text in sent if "REINDEX TABLE parts" in text] == ["REINDEX TABLE parts"]
    await has_all_of_it_once(dsn)


LOST_SESSIONS = {
    "search path": (
        "SELECT set_config('search_path', 'app, ' || current_setting('search_path'), false)",
        "search_path",
    ),
    "setting of a DO": ("DO $$BEGIN PERFORM set_config('search_path', 'app', false); END$$", "search_path = app"),
    "role of a DO": ("DO $$BEGIN EXECUTE 'SET ROLE ' || current_user; END$$", "role = "),
    "temporary table": ("CREATE TEMP TABLE ledger AS SELECT 9 AS n", "table pg_temp.ledger"),
    "temporary function": ("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "function pg_temp"),
}
"""Statements that make something of their session that no other statement says how to make again."""


@pytest.mark.parametrize("case", LOST_SESSIONS)
async def test_a_run_whose_lost_session_cannot_be_made_again_stops_before_anything_else(
    dsn: str, write: Write, case: str
) -> None:
    makes, fact = LOST_SESSIONS[case]
    await tell(dsn, f"{BEFORE}; INSERT INTO ledger VALUES (0); CREATE SCHEMA app; CREATE TABLE app.t (n int)")
    migrator = Migrator(
        dsn, write({"001_a.sql": f"{HEAD}{makes};\nCREATE INDEX CONCURRENTLY i ON t (n);\nDELETE FROM ledger;"})
    )

    async def run() -> None:
        with pytest.raises(HistoryError, match=r"001_a.sql:3: statement 2 of 3 \(CREATE INDEX") as caught:
            await migrator.up()
        assert caught.value.versions == ("1",)
        assert fact in str(caught.value)

    async with connected(dsn) as old, anyio.create_task_group() as tasks:
        tasks.cancel_scope.deadline = anyio.current_time() + 10
        await old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        tasks.start_soon(run)
        await tell(dsn, f"SELECT pg_terminate_backend({await stuck(dsn)})")
    (entry,) = await migrator.status()
    assert (entry.state is State.IN_DOUBT) == ("temporary" in case)
    await run()
    assert await column(dsn, "SELECT n FROM public.ledger") == [0]
    built = "SELECT count(*) FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE relname = 'i' AND indisvalid"
    assert await ask(dsn, built) == 0
    await migrator.repair(1, Verdict.APPLIED, "the rest is in a file of its own")
    write({"002_b.sql": f"{HEAD}SET search_path = app; DROP INDEX IF EXISTS i; CREATE INDEX i ON t (n);"})
    assert [step.version for step in await migrator.up()] == ["2"]


async def test_a_run_cancelled_while_it_inspects_its_new_index_leaves_that_to_the_next_run(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build has succeeded by then: to take it for failed would have the next run build it over again, in vain."""
    await tell(dsn, BEFORE)
    folder = write({"001_a.sql": f"{HEAD}CREATE INDEX CONCURRENTLY i ON t (n); INSERT INTO ledger VALUES (2);"})
    settled = indexes.settled

    async def cancelled(wire: Wire, table: str, name: str | None, ours: Callable[[Index], bool]) -> list[Index]:
        found = await settled(wire, table, name, ours)
        if found:
            raise asyncpg.QueryCanceledError("canceling statement due to user request")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(indexes, "settled", cancelled)
        await failure_of(Migrator(dsn, folder))
    assert await exists(dsn, "i")
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]
    assert await column(dsn, "SELECT n FROM ledger") == [2]
