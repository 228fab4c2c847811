"""A folder without migrations is a mistake until somebody says that it is meant."""

import zipfile
from collections.abc import Awaitable, Callable
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pgratchet import Condition, FilesError, Migrator, Verdict, migrated, new
from pgratchet.cli import program
from tests.support import HISTORY, Write, exists

pytestmark = pytest.mark.anyio

PROMISING: dict[str, Callable[[Migrator], Awaitable[object]]] = {
    "up": Migrator.up,
    "up to a version": lambda migrator: migrator.up(0),
    "down": Migrator.down,
    "down to nothing": lambda migrator: migrator.down(0),
    "redo": Migrator.redo,
    "wait": Migrator.wait,
    "check": Migrator.check,
    "rehearse": Migrator.rehearse,
    "adopt": lambda migrator: migrator.adopt("public.old"),
    "a dry adopt": lambda migrator: migrator.adopt("public.old", dry_run=True),
}

EMPTY = {
    "nothing at all": {},
    "other files": {"README.md": "soon", "__init__.py": ""},
    "hidden files": {".001_a.sql": "SELECT 1;", "_002_b.sql": "SELECT 1;"},
}


async def enter(lifespan: Any) -> None:
    async with lifespan:
        pass


@pytest.mark.parametrize("content", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("run", PROMISING.values(), ids=PROMISING)
async def test_a_run_without_any_migration_is_refused(
    dsn: str, write: Write, run: Callable[[Migrator], Awaitable[object]], content: dict[str, str]
) -> None:
    folder = write(content)
    with pytest.raises(FilesError) as caught:
        await run(Migrator(dsn, folder))
    (problem,) = caught.value.problems
    assert (problem.path, problem.message) == (str(folder), "there is no migration in this folder")
    assert "allow_empty" in problem.cure
    assert not await exists(dsn, HISTORY)


@pytest.mark.parametrize("mode", ["apply", "wait", "check"])
async def test_the_hook_of_an_empty_folder_ends_the_start_and_the_readiness_is_failed(
    dsn: str, write: Write, mode: Any
) -> None:
    migrator = Migrator(dsn, write({}))
    lifespan = migrated(migrator, mode=mode)
    with migrator.serving():
        with pytest.raises(FilesError, match="there is no migration"):
            await enter(lifespan)
        assert migrator.readiness.state is Condition.FAILED
        assert not migrator.readiness.ready

        write({"001_a.sql": "CREATE TABLE a ();"})
        await Migrator(dsn, write({})).up()
        await enter(lifespan)
        assert migrator.readiness.ready


async def test_an_empty_folder_that_is_allowed_is_a_list_of_nothing(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({}), allow_empty=True)
    async with migrated(migrator):
        assert migrator.readiness.ready
    await migrator.check()
    await migrator.wait()
    assert await migrator.up() == await migrator.down() == await migrator.rehearse() == ()


async def test_looking_at_an_empty_folder_goes_on_with_a_warning(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write({"sql/001_a.sql": ""})
    migrator = Migrator(dsn, folder)
    assert await migrator.status() == ()
    assert (await migrator.plan()).steps == ()
    assert [str(folder / "sql") in record.message for record in caplog.records] == [True, True]
    assert [path.name for path in new(folder, "first")] == ["001_first.sql", "001_first.down.sql"]


async def test_a_repair_judges_a_row_also_from_an_empty_folder(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();"})
    await Migrator(dsn, folder).up()
    (folder / "001_a.sql").unlink()
    entry = await Migrator(dsn, folder).repair(1, Verdict.NOT_APPLIED, "the table was dropped by hand")
    assert entry.row is not None
    assert entry.row.state == "pending"


@pytest.mark.parametrize("below", ["versions", "db/postgres", "a/b/c"])
async def test_folders_below_an_empty_one_that_have_migrations_are_named(dsn: str, write: Write, below: str) -> None:
    folder = write({f"{below}/001_a.sql": "CREATE TABLE a ();", "other/x.txt": "", ".git/001_a.sql": ""})
    with pytest.raises(FilesError) as caught:
        await Migrator(dsn, folder).up()
    assert caught.value.problems[0].message.endswith(f"; there are some in {folder / below}")


async def test_only_the_first_of_many_folders_below_an_empty_one_are_named(dsn: str, write: Write) -> None:
    folder = write({f"{name}/001_a.sql": "" for name in "abcde"})
    with pytest.raises(FilesError, match=r"there are some in \S+/a, \S+/b, \S+/c and 2 more; "):
        await Migrator(dsn, folder).check()


async def test_an_empty_relative_folder_is_told_with_its_beginning(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write({})
    monkeypatch.chdir(folder.parent)
    with pytest.raises(FilesError, match=f"^{folder.name}: .* relative to {folder.parent}; "):
        await Migrator(dsn, folder.name).check()


async def test_a_package_without_its_files_is_refused(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "a_package_without_its_files"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FilesError, match="there is no migration"):
        await Migrator(dsn, resources(package.name)).up()


async def test_a_packed_folder_above_its_files_is_refused_with_their_folder(dsn: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w") as packed:
        packed.writestr("package/migrations/001_a.sql", "CREATE TABLE a ();")
    where = zipfile.Path(tmp_path / "wheel.zip", "package/")
    with pytest.raises(FilesError, match=r"there are some in \S+wheel\.zip/package/migrations/?;"):
        await Migrator(dsn, where).check()


@pytest.mark.parametrize("command", ["up", "down", "redo", "check", "wait", "plan", "adopt"])
def test_each_command_takes_allow_empty(dsn: str, write: Write, command: str) -> None:
    given = ["--dsn", dsn, "--dir", str(write({}))]
    refused = CliRunner().invoke(program.app, [command, *given])
    assert refused.exit_code == (0 if command == "plan" else 4)
    assert command == "plan" or "there is no migration in this folder" in refused.stderr
    allowed = CliRunner().invoke(program.app, [command, *given, "--allow-empty"])
    assert "there is no migration" not in allowed.stderr
    assert allowed.exit_code == 0 or "public.schema_migrations" in allowed.stderr  # no foreign table to adopt
