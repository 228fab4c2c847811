"""A file that `new` made and nobody has written is no migration yet."""

import logging
from pathlib import Path

import pytest

from pgratchet import FilesError, Kind, Migrator, new
from tests.support import ask, exists, states, tell

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "versions"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("change", [str, str.rstrip, lambda text: "\ufeff" + text.replace("\n", "\r\n") + "\r\n  "])
async def test_a_file_as_new_made_it_is_refused_and_applied_once_it_is_written(
    dsn: str, folder: Path, kind: Kind, change: type[str]
) -> None:
    path = new(folder, "Add users", kind)[0]
    path.write_bytes(change(path.read_text()).encode())
    for verb in (Migrator.plan, Migrator.up, Migrator.rehearse):
        with pytest.raises(FilesError) as caught:
            await verb(Migrator(dsn, folder))
        (problem,) = caught.value.problems
        assert problem.path == str(path)
        assert "pgratchet: empty" in problem.cure
    assert set(await states(dsn)) == set()

    if kind is Kind.SQL:
        path.write_text(path.read_text() + "\nCREATE TABLE users ();")
    else:
        path.write_text("async def up(connection):\n    await connection.execute('CREATE TABLE users ()')\n")
    await Migrator(dsn, folder).up()
    assert await exists(dsn, "users")


@pytest.mark.parametrize("kind", Kind)
async def test_a_file_that_says_that_it_is_empty_is_applied_without_a_warning(
    dsn: str, folder: Path, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    path = new(folder, "Nothing", kind)[0]
    mark = "--" if kind is Kind.SQL else "#"
    path.write_text(f"{mark} pgratchet: empty\n" + path.read_text())
    assert (await Migrator(dsn, folder).plan()).warnings == ()
    await Migrator(dsn, folder).up()
    assert await states(dsn) == {"1": "applied"}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("text", ["", "-- only a comment\n", "BEGIN; COMMIT;", ";;"])
async def test_another_file_without_a_statement_is_applied_with_a_warning(
    dsn: str, folder: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "001_a.sql").write_text(text)
    migrator = Migrator(dsn, folder)
    (warning,) = (await migrator.plan()).warnings
    assert "001_a.sql: it has no statement" in warning
    await migrator.up()
    assert await states(dsn) == {"1": "applied"}
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [warning]


async def test_a_way_down_as_new_made_it_is_none(dsn: str, folder: Path) -> None:
    up, down = new(folder, "Add users")
    up.write_text(up.read_text() + "CREATE TABLE users ();")
    migrator = Migrator(dsn, folder)
    await migrator.up()
    with pytest.raises(FilesError, match="there is no way down from it"):
        await migrator.down()
    assert await states(dsn) == {"1": "applied"}
    down.write_text(down.read_text() + "DROP TABLE users;")
    await migrator.down()
    assert not await exists(dsn, "users")


async def test_a_file_that_says_that_it_is_empty_must_be(dsn: str, folder: Path) -> None:
    (folder / "001_a.sql").write_text("-- pgratchet: empty\nCREATE TABLE a ();")
    with pytest.raises(FilesError, match="it says that it is empty, and has statements"):
        await Migrator(dsn, folder).up()
    (folder / "001_a.sql").write_text("-- pgratchet: empty=yes\n")
    with pytest.raises(FilesError, match="empty takes no value"):
        await Migrator(dsn, folder).up()


async def test_a_file_as_new_made_it_that_is_applied_since_an_older_release_stays_applied(
    dsn: str, folder: Path
) -> None:
    path = new(folder, "Add users")[0]
    text = path.read_text()
    path.write_text("SELECT 1;")
    await Migrator(dsn, folder).up()
    path.write_text(text)
    (entry,) = await Migrator(dsn, folder).status()
    assert entry.migration is not None
    await tell(dsn, f"UPDATE schema_migrations SET checksum = '{entry.migration.checksum}'")
    assert await Migrator(dsn, folder).up() == ()
    assert await ask(dsn, "SELECT count(*) FROM schema_migrations") == 1
