import json
import logging
import sys
from contextlib import suppress
from importlib.resources import files as resources
from pathlib import Path

import anyio
import pytest

from pgratchet import (
    BehindError,
    Direction,
    FilesError,
    HistoryError,
    MigrationFailedError,
    Migrator,
    ServerError,
    State,
    UsageError,
)
from tests.support import HISTORY, Write, ask, column, exists, failure_of, history, missing, states, tell

pytestmark = pytest.mark.anyio


def three(**changes: str) -> dict[str, str]:
    """Return three migrations that log, in both directions, what they do to the table `log`."""
    files: dict[str, str] = {}
    for n in (1, 2, 3):
        files[f"00{n}_m.sql"] = f"CREATE TABLE t{n} (); INSERT INTO log (what) VALUES ('up {n}');"
        files[f"00{n}_m.down.sql"] = f"DROP TABLE t{n}; INSERT INTO log (what) VALUES ('down {n}');"
    return files | changes


async def logged(dsn: str) -> list[str]:
    return await column(dsn, "SELECT what FROM log ORDER BY id")


@pytest.fixture
async def migrator(dsn: str, write: Write) -> Migrator:
    await tell(dsn, "CREATE TABLE log (id serial, what text)")
    return Migrator(dsn, write(three()))


class TestUp:
    async def test_up_applies_in_the_order_of_numbers(self, dsn: str, write: Write) -> None:
        await tell(dsn, "CREATE TABLE log (id serial, what text)")
        numbers = [10, 9, 100, 8, 11]
        files = {f"{n}_m.sql": f"INSERT INTO log (what) VALUES ('{n}');" for n in numbers}
        finished = await Migrator(dsn, write(files)).up()
        assert [step.version for step in finished] == ["8", "9", "10", "11", "100"]
        assert await logged(dsn) == ["8", "9", "10", "11", "100"]

    @pytest.mark.parametrize("to", [2, "2", "002"])
    async def test_up_stops_where_it_is_told_to(self, dsn: str, migrator: Migrator, to: str | int) -> None:
        assert [step.version for step in await migrator.up(to=to)] == ["1", "2"]
        assert await migrator.up(to=to) == ()
        assert await states(dsn) == {"1": "applied", "2": "applied"}
        assert [step.version for step in await migrator.up()] == ["3"]

    @pytest.mark.parametrize("to", ["nope", "-1", 99])
    async def test_up_refuses_a_version_that_does_not_exist(self, dsn: str, migrator: Migrator, to: str | int) -> None:
        with pytest.raises(UsageError):
            await migrator.up(to=to)
        assert not await exists(dsn, "t1")

    async def test_up_with_nothing_pending_writes_nothing(self, dsn: str, migrator: Migrator) -> None:
        await migrator.up()
        before = await history(dsn)
        assert await migrator.up() == ()
        assert await history(dsn) == before

    async def test_up_of_an_empty_folder_makes_no_table(self, dsn: str, write: Write) -> None:
        assert await Migrator(dsn, write({"README.md": "nothing yet"}), allow_empty=True).up() == ()
        assert not await exists(dsn, HISTORY)

    async def test_up_reads_files_that_are_packed(
        self, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "packed_migrations_of_a_test"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "001_a.sql").write_text("CREATE TABLE a ();")
        monkeypatch.syspath_prepend(str(tmp_path))
        await Migrator(dsn, resources(package.name)).up()
        assert await exists(dsn, "a")
        sys.modules.pop(package.name, None)

    async def test_up_reads_the_files_again_at_each_call(self, dsn: str, write: Write, migrator: Migrator) -> None:
        await migrator.up()
        write({"004_m.sql": "SELECT 1;"})
        assert [step.version for step in await migrator.up()] == ["4"]
        assert set((await states(dsn)).values()) == {"applied"}

    async def test_up_with_a_bad_file_anywhere_runs_nothing(self, dsn: str, write: Write) -> None:
        folder = write({"001_a.sql": "CREATE TABLE a ();", "003_c.sql": "SELECT 'open;", "002_b.sql": "COMMIT;"})
        with pytest.raises(FilesError) as caught:
            await Migrator(dsn, folder).up()
        assert [problem.path for problem in caught.value.problems] == [
            str(folder / "002_b.sql"),
            str(folder / "003_c.sql"),
        ]
        assert not await exists(dsn, "a")

    async def test_up_runs_each_of_many_small_migrations_in_a_transaction_of_its_own(
        self, dsn: str, write: Write
    ) -> None:
        await tell(dsn, "CREATE TABLE ids (id xid DEFAULT pg_current_xact_id()::xid)")
        finished = await Migrator(
            dsn, write({f"{n:04}_m.sql": "INSERT INTO ids DEFAULT VALUES;" for n in range(300)})
        ).up()
        assert len(finished) == 300
        assert await ask(dsn, "SELECT count(DISTINCT id::text) FROM ids") == 300
        assert all(step.seconds is not None and step.seconds >= 0 for step in finished)


class TestDown:
    @pytest.mark.parametrize(
        ("arguments", "reverted"),
        [
            ({}, ["3"]),
            ({"steps": 2}, ["3", "2"]),
            ({"steps": 3}, ["3", "2", "1"]),
            ({"steps": 99}, ["3", "2", "1"]),
            ({"to": 1}, ["3", "2"]),
            ({"to": "0"}, ["3", "2", "1"]),
            ({"to": 3}, []),
        ],
    )
    async def test_down_goes_backwards(
        self, dsn: str, migrator: Migrator, arguments: dict[str, int], reverted: list[str]
    ) -> None:
        await migrator.up()
        finished = await migrator.down(**arguments)
        assert [step.version for step in finished] == reverted
        assert {step.direction for step in finished} <= {Direction.DOWN}
        assert (await logged(dsn))[3:] == [f"down {version}" for version in reverted]
        left = [version for version in "123" if version not in reverted]
        assert await states(dsn) == dict.fromkeys(left, "applied")
        assert [version for version in "123" if await exists(dsn, f"t{version}")] == left
        assert [step.version for step in await migrator.up()] == sorted(reverted)

    @pytest.mark.parametrize("arguments", [{"to": 1, "steps": 1}, {"to": 99}, {"to": "x"}])
    async def test_down_refuses_arguments_that_mean_nothing(
        self, dsn: str, migrator: Migrator, arguments: dict[str, int]
    ) -> None:
        await migrator.up()
        with pytest.raises(UsageError):
            await migrator.down(**arguments)
        assert len(await states(dsn)) == 3

    async def test_down_on_an_empty_database_does_nothing(self, migrator: Migrator) -> None:
        assert await migrator.down() == ()

    async def test_down_is_refused_while_the_database_is_ahead_of_the_files(self, dsn: str, migrator: Migrator) -> None:
        await migrator.up()
        folder = Path(str(migrator.migrations))
        for name in ("003_m.sql", "003_m.down.sql"):
            (folder / name).unlink()
        for verb in (migrator.down, migrator.redo):
            with pytest.raises(HistoryError) as caught:
                await verb()
            assert caught.value.versions == ("3",)
        assert len(await states(dsn)) == 3

    async def test_down_reverts_nothing_where_a_down_file_is_missing(self, dsn: str, migrator: Migrator) -> None:
        await migrator.up()
        folder = Path(str(migrator.migrations))
        (folder / "002_m.down.sql").unlink()
        with pytest.raises(FilesError) as caught:
            await migrator.down(to=0)
        assert [problem.path for problem in caught.value.problems] == [str(folder / "002_m.sql")]
        assert len(await states(dsn)) == 3
        assert [step.version for step in await migrator.down(to=2)] == ["3"]

    async def test_a_down_that_fails_is_rolled_back_and_may_be_tried_again(
        self, dsn: str, write: Write, migrator: Migrator
    ) -> None:
        await migrator.up()
        write({"002_m.down.sql": "DROP TABLE t2;\nSELECT 1/0;"})
        with pytest.raises(MigrationFailedError) as caught:
            await migrator.down(to=0)
        failure = caught.value.failure
        assert (failure.version, failure.direction, failure.line) == ("2", "down", 2)
        assert [step.version for step in caught.value.finished] == ["3"]
        assert await states(dsn) == {"1": "applied", "2": "applied"}
        assert "division" in (await history(dsn))["2"]["error"]
        assert await exists(dsn, "t2")
        write(three())
        assert [step.version for step in await migrator.down(to=0)] == ["2", "1"]
        assert await states(dsn) == {}

    async def test_down_claims_its_own_row_first_and_no_other(self, dsn: str, write: Write, migrator: Migrator) -> None:
        look = "CREATE TABLE seen AS SELECT version, state FROM schema_migrations;"
        write({"003_m.down.sql": look})
        await migrator.up()
        await migrator.down()
        assert await column(dsn, "SELECT state FROM seen WHERE version = '3'") != ["applied"]
        assert await column(dsn, "SELECT state FROM seen WHERE version <> '3'") == ["applied", "applied"]

    async def test_a_down_file_cannot_delete_its_row(self, dsn: str, write: Write, migrator: Migrator) -> None:
        write({"003_m.down.sql": "DELETE FROM schema_migrations WHERE version = '3'; DROP TABLE t3;"})
        await migrator.up()
        with pytest.raises(MigrationFailedError):
            await migrator.down()
        assert (await states(dsn))["3"] == "applied"
        assert await exists(dsn, "t3")
        write(three())
        await migrator.down()

    async def test_down_past_a_failed_version_forgets_nothing_that_is_applied(self, dsn: str, write: Write) -> None:
        await tell(dsn, "CREATE TABLE log (id serial, what text)")
        folder = write(three(**{"003_m.sql": "SELECT 1/0;"}))
        migrator = Migrator(dsn, folder)
        await failure_of(migrator)
        assert [step.version for step in await migrator.down()] == ["2"]
        assert await exists(dsn, "t1")


class TestRedo:
    @pytest.mark.parametrize("steps", [1, 2, 3])
    async def test_redo_reverts_and_applies_again(self, dsn: str, migrator: Migrator, steps: int) -> None:
        await migrator.up()
        finished = await migrator.redo(steps)
        versions = [str(n) for n in range(4 - steps, 4)]
        expected = [("down", version) for version in reversed(versions)] + [("up", version) for version in versions]
        assert [(step.direction, step.version) for step in finished] == expected
        assert (await logged(dsn))[3:] == [" ".join(each) for each in expected]
        assert await states(dsn) == dict.fromkeys("123", "applied")

    async def test_redo_applies_nothing_that_was_not_applied(self, dsn: str, migrator: Migrator) -> None:
        await migrator.up(to=2)
        await migrator.redo()
        assert await states(dsn) == {"1": "applied", "2": "applied"}

    async def test_redo_of_nothing_does_nothing(self, migrator: Migrator) -> None:
        assert await migrator.redo() == ()

    async def test_redo_refuses_an_edited_file(self, write: Write, migrator: Migrator) -> None:
        await migrator.up()
        write({"003_m.sql": "CREATE TABLE t3 (edited int);"})
        for verb in (migrator.up, migrator.redo):
            with pytest.raises(HistoryError):
                await verb()


class TestLooking:
    async def test_check_says_what_is_missing(self, dsn: str, write: Write, migrator: Migrator) -> None:
        with pytest.raises(BehindError) as caught:
            await migrator.check()
        assert caught.value.versions == ("1", "2", "3")
        await migrator.up(to=2)
        with pytest.raises(BehindError) as caught:
            await migrator.check()
        assert caught.value.versions == ("3",)
        write({"003_m.sql": "SELECT 1/0;"})
        await failure_of(migrator)
        with pytest.raises(BehindError):
            await migrator.check()
        write(three())
        await migrator.up()
        await migrator.check()
        assert len(await states(dsn)) == 3

    async def test_plan_shows_steps_and_changes_nothing(self, dsn: str, migrator: Migrator) -> None:
        plan = await migrator.plan()
        assert [(step.migration.version, step.direction) for step in plan.steps] == [
            ("1", "up"),
            ("2", "up"),
            ("3", "up"),
        ]
        assert [step.migration.version for step in (await migrator.plan(to=1)).steps] == ["1"]
        assert not await exists(dsn, HISTORY)
        await migrator.up(to=2)
        assert [step.migration.version for step in (await migrator.plan()).steps] == ["3"]

    async def test_status_shows_disagreements_as_states(self, dsn: str, write: Write, migrator: Migrator) -> None:
        assert [entry.state for entry in await migrator.status()] == [State.PENDING] * 3
        await migrator.up()
        folder = write(
            {"003_m.sql": "SELECT 3;", "002_m.down.sql": "", "004_m.sql": "SELECT 4;", "006_m.sql": "SELECT 1/0;"}
        )
        (folder / "001_m.sql").unlink()
        (folder / "001_m.down.sql").unlink()
        await tell(
            dsn,
            "INSERT INTO schema_migrations (version, name, kind, checksum, state) VALUES ('5','m','sql','','applied')",
        )
        found = {entry.version: entry.state for entry in await migrator.status()}
        assert found == {"1": "unknown", "2": "applied", "3": "changed", "4": "late", "5": "unknown", "6": "pending"}

    async def test_a_look_needs_no_right_to_write(self, dsn: str, migrator: Migrator) -> None:
        await migrator.up(to=2)
        before = await ask(dsn, "SELECT pg_current_xact_id()::text")
        await migrator.status()
        await migrator.plan()
        assert int(await ask(dsn, "SELECT pg_current_xact_id()::text")) == int(before) + 1


class TestTheJournal:
    async def test_the_journal_gets_a_line_for_each_finished_step(self, dsn: str, write: Write, tmp_path: Path) -> None:
        journal = tmp_path / "journal"
        folder = write({"001_a.sql": "SELECT 1;", "001_a.down.sql": "", "002_b.sql": "SELECT 1/0;"})
        migrator = Migrator(dsn, folder, journal=journal)
        await failure_of(migrator)
        await migrator.down(to=0)
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        assert [(line["version"], line["direction"]) for line in lines] == [("1", "up"), ("1", "down")]

    async def test_a_journal_that_cannot_be_written_is_a_warning(
        self, dsn: str, write: Write, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "pgratchet"):
            await Migrator(dsn, write({"001_a.sql": "SELECT 1;"}), journal="/nowhere/at/all").up()
        assert any("/nowhere/at/all" in record.getMessage() for record in caplog.records)
        assert await states(dsn) == {"1": "applied"}


async def test_a_migrator_is_given_either_a_dsn_or_a_factory(dsn: str) -> None:
    async def connect() -> None: ...

    with pytest.raises(UsageError):
        Migrator(dsn, "x", connect=connect)  # type: ignore[arg-type]  # never called
    with pytest.raises(UsageError):
        Migrator()


async def test_a_migrator_may_be_used_many_times_at_once(dsn: str, migrator: Migrator) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(migrator.up)
    assert await logged(dsn) == ["up 1", "up 2", "up 3"]


async def test_a_folder_that_is_not_there_is_named(dsn: str) -> None:
    with pytest.raises(UsageError, match="nowhere/at/all"):
        await Migrator(dsn, "nowhere/at/all").up()


async def test_extensions_can_be_created_and_used(dsn: str, write: Write) -> None:
    if not await ask(dsn, "SELECT count(*) FROM pg_available_extensions WHERE name = 'citext'"):
        missing("the server has no contrib modules")
    await Migrator(
        dsn, write({"001_e.sql": "CREATE EXTENSION citext;", "002_t.sql": "CREATE TABLE t (c citext);"})
    ).up()
    assert await exists(dsn, "t")


async def test_a_dropped_history_is_made_again_and_a_missing_database_is_an_error(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "SELECT 1;"}))
    await migrator.up()
    await tell(dsn, "DROP TABLE schema_migrations")
    assert len(await migrator.up()) == 1
    with pytest.raises(ServerError):
        await Migrator(dsn + "x", migrator.migrations).up()


async def test_a_gap_is_told_until_the_file_behind_it_is_applied(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    migrator = Migrator(dsn, write({f"{number}_a.sql": "SELECT 1;" for number in (1, 2, 4)}))

    async def told(verb: str) -> list[str]:
        caplog.clear()
        with suppress(BehindError):
            await getattr(migrator, verb)()
        return [text.partition("a gap in the numbers: ")[2][:6] for text in caplog.messages if "a gap" in text]

    assert [await told(verb) for verb in ("check", "plan", "up")] == [["3; add"]] * 3
    assert [await told(verb) for verb in ("up", "check", "wait", "plan", "status", "rehearse")] == [[]] * 6
    write({f"{number}_a.sql": "SELECT 1;" for number in (7, 8, 11)} | {"11_a.down.sql": "SELECT 1;"})
    assert [await told(verb) for verb in ("check", "up")] == [["5 to 6", "9 to 1"]] * 2
    assert [await told(verb) for verb in ("up", "redo", "down")] == [[], [], []]
    # The file behind the last gap is to be applied again.
    assert [await told(verb) for verb in ("check", "up", "up")] == [["9 to 1"], ["9 to 1"], []]
    with pytest.raises(FilesError, match="a gap in the numbers: 3;"):
        await Migrator(dsn, migrator.migrations, strict=True).check()
