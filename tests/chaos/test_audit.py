"""An audit that finds nothing proves something only if it would have found it: each kind of damage is done once."""

import multiprocessing
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from pgratchet import Migrator
from pgratchet.embedded import Server
from tests.chaos.audit import Report, abandoned, audit, judge_log, undone
from tests.chaos.history import FOUNDATION, File, History
from tests.chaos.plan import Manner, plan
from tests.chaos.trial import Trial
from tests.support import LOCK_KEY, Write, connected, tell

pytestmark = pytest.mark.anyio

MIXED = """-- pgratchet: no-transaction
INSERT INTO ledger (version, statement) VALUES (2, 1);
CREATE INDEX CONCURRENTLY i_2_2 ON few (n);
INSERT INTO ledger (version, statement) VALUES (2, 3);
"""
HISTORY = History(
    (
        File(1, "001_a.sql", "INSERT INTO ledger (version, statement) VALUES (1, 1); CREATE TABLE t_1 ();", (1,), 2),
        File(2, "002_b.sql", MIXED, (1, 3), 3),
    ),
    ("i_2_2",),
    ("t_1",),
)


async def applied(dsn: str, write: Write, history: History = HISTORY) -> list[Report]:
    await tell(dsn, FOUNDATION)
    finished = await Migrator(dsn, write(history.texts)).up()
    return [Report(0, 0, 0, tuple(step.version for step in finished))]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_nothing_is_found_where_nothing_was_done(dsn: str, write: Write, seed: int) -> None:
    history = plan(seed).history
    reports = await applied(dsn, write, history)
    assert await audit(dsn, history, reports, "") == []
    assert await abandoned(dsn) == []


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("INSERT INTO ledger (version, statement) VALUES (2, 3)", "statement 3 of version 2 took effect 2 times"),
        ("DELETE FROM ledger WHERE statement = 3", "statement 3 of version 2 took effect 0 times"),
        ("INSERT INTO ledger (version, statement) VALUES (7, 1)", "an effect that nobody planned: (7, 1)"),
        (
            "UPDATE ledger SET id = 99 WHERE version = 1",
            "the effects are out of order: [(2, 1), (2, 3), (1, 1)]",
        ),
        ("DELETE FROM schema_migrations WHERE version = '1'", "version 1 has no row"),
        (
            "UPDATE schema_migrations SET statements_done = 2 WHERE version = '2'",
            "version 2 is applied, with 2 of 3 statements: None",
        ),
        (
            "UPDATE schema_migrations SET state = 'running' WHERE version = '2'",
            "version 2 is running, with 3 of 3 statements: None",
        ),
        (
            "UPDATE schema_migrations SET statements_done = 4, statements_total = 4 WHERE version = '2'",
            "version 2 has 3 statements, not 4",
        ),
        (
            "INSERT INTO schema_migrations (version, name, kind, checksum, state) VALUES ('9', '', '', '', '')",
            "the history has a row of version 9",
        ),
        ("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'i_2_2'::regclass", "the index i_2_2 is invalid"),
        ("DROP INDEX i_2_2", "the index i_2_2 is missing"),
        ("CREATE INDEX other ON few (n)", "nobody wanted the index other"),
        ("DROP TABLE t_1", "the table t_1 is missing"),
    ],
)
async def test_damage_in_the_database_is_found(dsn: str, write: Write, damage: str, sentence: str) -> None:
    reports = await applied(dsn, write)
    await tell(dsn, damage)
    assert await audit(dsn, HISTORY, reports, "") == [sentence]


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (Report(1, 0, 0, ("2",)), "version 2 was finished 2 times"),
        (Report(1, 0, 0, ("3",)), "version 3 was finished, and is none"),
        (Report(1, 0, 1, (), "HistoryError", "in doubt"), "unexpected end: "),
        (Report(1, 0, 1, (), "MigrationFailedError", "syntax error"), "unexpected end: "),
        (Report(1, 0, 1), "unexpected end: "),
    ],
)
async def test_replicas_that_contradict_each_other_or_fail_are_found(
    dsn: str, write: Write, report: Report, sentence: str
) -> None:
    reports = await applied(dsn, write)
    (found,) = await audit(dsn, HISTORY, [*reports, report], "")
    assert found.startswith(sentence)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE schema_migrations SET state = 'running' WHERE version = '2'",
        "UPDATE schema_migrations SET state = 'failed' WHERE version = '2'",
        "DELETE FROM schema_migrations WHERE version = '2'",
    ],
)
async def test_a_replica_that_says_it_is_done_too_early_is_found(dsn: str, write: Write, damage: str) -> None:
    (report,) = await applied(dsn, write)
    assert await undone(dsn, [1, 2], report) == []
    await tell(dsn, damage)
    assert await undone(dsn, [1, 2], report) == ["replica 0 has ended well, and version 2 is not applied"]
    assert await undone(dsn, [1], report) == []  # an older image
    assert await undone(dsn, [1, 2], report._replace(code=1)) == []
    await tell(dsn, "DROP TABLE schema_migrations")
    assert await undone(dsn, [1], report) == ["replica 0 has ended well, and version 1 is not applied"]


async def test_a_trial_finds_replicas_that_do_nothing_and_say_they_are_done(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calm run does afterwards all that they have left, and is no excuse."""
    monkeypatch.setattr("tests.chaos.trial.start", lies)
    each = plan(1)
    outcome = await Trial(server, each, tmp_path / "trial").run()
    assert sorted(outcome.violations) == [
        f"replica {number} has ended well, and version {version} is not applied"
        for number, replica in enumerate(each.replicas)
        for version in range(1, replica.files + 1)
    ]


def lies(_options: dict[str, Any], _path: Path, _manner: Manner) -> BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    return process


async def test_sessions_and_locks_that_are_left_are_found(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.chaos.audit.GONE_SECONDS", 0.3)
    async with connected(dsn, application_name="pgratchet") as connection:
        await connection.execute(f"BEGIN; SELECT pg_advisory_xact_lock({LOCK_KEY})")
        session, lock = await abandoned(dsn)
    assert session.startswith("left on the server: session ")
    assert lock.startswith("left on the server: advisory lock of ")


def test_a_deadlock_is_found_unless_a_stranger_takes_part() -> None:
    log = (
        "2026 [7] LOG:  connection authorized: user=postgres database=d application_name=stranger\n"
        "2026 [1] ERROR:  deadlock detected\n"
        "2026 [1] DETAIL:  Process 1 waits for ShareLock on transaction 5; blocked by process 2.\n"
        "\tProcess 2 waits for ShareLock on transaction 6; blocked by process 1.\n"
    )
    assert judge_log(log) == ["a deadlock between pgratchet's sessions ['1', '2']"]
    assert judge_log(log.replace("[7]", "[2]")) == []
