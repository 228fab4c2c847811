"""A table that is not there although the database has another history: its name may be a mistake."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from pgratchet import BehindError, ForeignTableError, MigrationFailedError, Migrator, Verdict, migrated
from tests.faults.proxy import proxy
from tests.support import HISTORY, Write, a_role, as_role, ask, exists, states, tell

pytestmark = pytest.mark.anyio

MISTYPED = "public.shcema_migrations"
FILES = {"001_a.sql": "CREATE TABLE a ();", "001_a.down.sql": "DROP TABLE a;"}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the sentences about other histories, and forget the log."""
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return [sentence for sentence in said if "of pgratchet" in sentence]


async def hook(migrator: Migrator) -> None:
    async with migrated(migrator, mode="check"):
        pass


async def dry_adoption(migrator: Migrator) -> None:
    await migrator.adopt("public.legacy", dry_run=True)


READING: dict[str, Callable[[Migrator], Awaitable[object]]] = {
    "status": Migrator.status,
    "plan": Migrator.plan,
    "check": Migrator.check,
    "hook": hook,
    "dry adoption": dry_adoption,
}


async def made(dsn: str, write: Write, table: str = HISTORY) -> Path:
    folder = write(FILES)
    await Migrator(dsn, folder, table=table).up()
    return folder


@pytest.mark.every_major
@pytest.mark.parametrize("verb", READING)
async def test_reading_a_mistyped_table_names_the_history_that_is_there(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    folder = await made(dsn, write)
    await tell(
        dsn,
        "CREATE TABLE legacy (version int, description text, filename text, executed_at timestamptz, success bool, "
        "error_message text)",
    )
    with suppress(BehindError):
        await READING[verb](Migrator(dsn, folder, table=MISTYPED))
    (warning,) = warnings(caplog)
    assert warning == (
        f"there is no table {MISTYPED}: nothing counts as applied; this database has another history of pgratchet, "
        f"{HISTORY}: if the name is a mistake, correct table"
    )
    assert not await exists(dsn, MISTYPED)


async def test_waiting_names_the_history_that_is_there_once(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = await made(dsn, write)
    migrator = Migrator(dsn, folder, table=MISTYPED)
    async with anyio.create_task_group() as group:
        group.start_soon(migrator.wait)
        while not any(HISTORY in record.getMessage() for record in caplog.records):  # noqa: ASYNC110 - no event tells
            await anyio.sleep(0.02)
        await tell(dsn, "DROP TABLE a")
        await Migrator(dsn, folder, table=MISTYPED).up()
    reading, making = warnings(caplog)
    assert "nothing counts as applied" in reading
    assert "makes a second history" in making


@pytest.mark.parametrize("lock", ["session", "transaction", "none"])
async def test_a_run_says_first_that_it_makes_a_second_history(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, lock: str
) -> None:
    folder = await made(dsn, write)
    caplog.set_level(logging.INFO, "pgratchet")
    caplog.clear()
    with pytest.raises(MigrationFailedError, match="already exists"):
        await Migrator(dsn, folder, table=MISTYPED, lock=lock).up()  # type: ignore[arg-type]  # a parameter is a str
    said = [record.getMessage() for record in caplog.records]
    (at,) = (at for at, sentence in enumerate(said) if "makes a second history" in sentence)
    assert HISTORY in said[at]
    assert at < said.index("up 1 a")
    caplog.clear()

    await tell(dsn, "DROP TABLE a")
    assert len(await Migrator(dsn, folder, table=MISTYPED).up()) == 1
    assert warnings(caplog) == []


@pytest.mark.parametrize("verb", ["down", "redo", "rehearse", "repair", "adopt"])
async def test_each_other_way_to_make_a_second_history_says_so_first(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    folder = await made(dsn, write)
    await tell(
        dsn,
        "DROP TABLE a; "
        "CREATE TABLE legacy (version int, description text, filename text, executed_at timestamptz, success bool, "
        "error_message text); INSERT INTO legacy VALUES (1, 'a', '001_a.sql', now(), true, NULL)",
    )
    migrator = Migrator(dsn, folder, table=MISTYPED)
    match verb:
        case "repair":
            await migrator.repair("1", Verdict.APPLIED, "it is there")
        case "adopt":
            await migrator.adopt("public.legacy")
        case _:
            await getattr(migrator, verb)()
    (warning,) = warnings(caplog)
    assert "makes a second history" in warning
    assert HISTORY in warning


async def test_no_word_of_other_histories_where_the_own_table_is_there(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write({"001_a.sql": "CREATE TABLE IF NOT EXISTS a ();"})
    tenants = [Migrator(dsn, folder, table=f"tenant{number}.schema_migrations") for number in range(8)]
    for tenant in tenants:
        await tenant.up()
    *_, last = warnings(caplog)
    assert (
        "other histories of pgratchet, " + ", ".join(f"tenant{number}.schema_migrations" for number in range(5)) in last
    )
    assert "tenant5" not in last
    assert "2 more" in last

    async with proxy(dsn) as between:
        for tenant in [Migrator(between.dsn, folder, table=f"tenant{number}.schema_migrations") for number in range(8)]:
            before = between.flights
            assert await tenant.up() == ()
            assert between.flights - before <= 2
            before = between.flights
            await tenant.check()
            assert between.flights - before <= 2
    assert warnings(caplog) == []


async def test_a_role_without_rights_is_told(dsn: str, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    folder = await made(dsn, write, "hidden.schema_migrations")
    async with a_role(dsn) as role:
        assert not await ask(dsn, f"SELECT has_schema_privilege('{role}', 'hidden', 'USAGE')")
        with pytest.raises(BehindError):
            await Migrator(as_role(dsn, role), folder).check()
    (warning,) = warnings(caplog)
    assert "hidden.schema_migrations" in warning


async def test_only_tables_with_the_columns_of_a_history_count(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = await made(dsn, write)
    copy = f"(LIKE {HISTORY} INCLUDING ALL)"
    await tell(
        dsn,
        f"CREATE VIEW seen AS SELECT * FROM {HISTORY}; "
        f"CREATE MATERIALIZED VIEW kept AS SELECT * FROM {HISTORY}; "
        f"CREATE TABLE fewer {copy}; ALTER TABLE fewer DROP COLUMN statements_done; "
        "CREATE SCHEMA parted; "
        f"CREATE TABLE parted.h (LIKE {HISTORY}) PARTITION BY LIST (version); "
        "CREATE TABLE parted.one PARTITION OF parted.h DEFAULT; "
        f"DROP TABLE {HISTORY} CASCADE",
    )
    await Migrator(dsn, folder, table=MISTYPED).status()
    (warning,) = warnings(caplog)
    assert "another history of pgratchet, parted.h: " in warning


@pytest.mark.parametrize("verb", ["status", "check", "up"])
async def test_the_table_of_another_tool_comes_with_the_name_of_the_history_that_is_there(
    dsn: str, write: Write, verb: str
) -> None:
    folder = write(FILES)
    await tell(
        dsn,
        f"CREATE TABLE {HISTORY} (version int, description text, filename text, executed_at timestamptz, success bool, "
        f"error_message text); INSERT INTO {HISTORY} VALUES (1, 'a', '001_a.sql', now(), true, NULL)",
    )
    with pytest.raises(ForeignTableError, match="'pgratchet adopt' takes its history over into"):
        await getattr(Migrator(dsn, folder), verb)()
    await Migrator(dsn, folder).adopt(HISTORY)
    with pytest.raises(ForeignTableError) as forgotten:
        await getattr(Migrator(dsn, folder), verb)()
    assert (
        "this database has another history of pgratchet, public.pgratchet_migrations: if that is the right one"
        in str(forgotten.value)
    )
    await Migrator(dsn, folder, table="public.pgratchet_migrations").check()


async def test_a_name_of_a_strange_table_cannot_control_the_terminal(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = await made(dsn, write)
    await tell(dsn, f'ALTER TABLE {HISTORY} RENAME TO "\x1b[2J\nrm"')
    await Migrator(dsn, folder).status()
    (warning,) = warnings(caplog)
    assert warning.isprintable()
    assert await states(dsn, 'public."\x1b[2J\nrm"') == {"1": "applied"}
