import errno
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pgratchet.core.errors import UsageError
from pgratchet.files.directory import read, write

Write = Callable[[Mapping[str, str | bytes]], Path]


def names(folder: Path | str) -> list[str]:
    return [file.name for file in read(folder)]


def test_files_come_by_name_with_their_path_and_bytes(write: Write) -> None:
    folder = write({"2_b.sql": b"b\r\n", "1_a.sql": b"\xff"})

    first, second = read(folder)
    assert (first.name, first.path, first.content) == ("1_a.sql", str(folder / "1_a.sql"), b"\xff")
    assert (second.name, second.content) == ("2_b.sql", b"b\r\n")


def test_a_path_may_be_a_string(write: Write) -> None:
    assert names(str(write({"1_a.sql": ""}))) == ["1_a.sql"]


def test_a_file_that_is_no_migration_is_ignored(write: Write) -> None:
    folder = write(
        {
            "1_a.sql": "",
            "1_a.down.sql": "",
            "2_b.py": "",
            "README.md": "",
            "__init__.py": "",
            "_draft.sql": "",
            ".hidden.sql": "",
            "1_a.sql~": "",
            "1_a.sql.orig": "",
            "old/3_c.sql": "",
            "__pycache__/2_b.cpython-311.pyc": "",
        }
    )

    assert names(folder) == ["1_a.down.sql", "1_a.sql", "2_b.py"]


def test_the_directory_reads_files_with_bad_names_for_the_layout_to_refuse(write: Write) -> None:
    found = names(write({"setup.py": "", "1 a.sql": "", "1_a.SQL": "", "2_b.Py": ""}))

    assert found == ["1 a.sql", "1_a.SQL", "2_b.Py", "setup.py"]


def test_links_to_files_are_followed(write: Write) -> None:
    folder = write({"shared/a.txt": "SELECT 1;"})
    (folder / "1_a.sql").symlink_to("shared/a.txt")

    assert [file.content for file in read(folder)] == [b"SELECT 1;"]


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1_a.sql").symlink_to("nowhere")

    with pytest.raises(UsageError, match=r"1_a\.sql.*: No such file"):
        names(tmp_path)


def test_an_empty_folder_has_no_files(tmp_path: Path) -> None:
    assert names(tmp_path) == []


def test_a_missing_folder_is_named_with_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UsageError) as caught:
        names("migrations/nowhere")

    assert "'migrations/nowhere'" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_absolute_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere") as caught:
        names(tmp_path / "nowhere")

    assert "relative" not in str(caught.value)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.sql").touch()

    with pytest.raises(UsageError, match=r"a\.sql"):
        names(tmp_path / "a.sql")


def test_a_file_that_may_not_be_read_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write({"1_a.sql": ""})

    def refuse(path: str, _: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(UsageError, match=r"1_a\.sql.*: Permission denied"):
        names(folder)


def test_migrations_may_be_packed_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w") as archive:
        archive.writestr("package/versions/2_b.sql", "SELECT 2;")
        archive.writestr("package/versions/1_a.sql", "SELECT 1;")
        archive.writestr("package/versions/_skipped.sql", "")
        archive.writestr("package/versions/old/0_z.sql", "")

    files = list(read(zipfile.Path(tmp_path / "wheel.zip", "package/versions/")))

    assert [(file.name, file.content) for file in files] == [("1_a.sql", b"SELECT 1;"), ("2_b.sql", b"SELECT 2;")]
    assert files[0].path.endswith("package/versions/1_a.sql")


@pytest.mark.parametrize(
    "folder",
    [
        "package/versions",
        "package/versions/",
    ],
)
def test_a_missing_folder_of_an_archive_is_named(tmp_path: Path, folder: str) -> None:
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w") as archive:
        archive.writestr("package/__init__.py", "")

    with pytest.raises(UsageError, match=r"versions.*: No such file"):
        list(read(zipfile.Path(tmp_path / "wheel.zip", folder)))


def test_new_files_are_written_into_a_new_folder(tmp_path: Path) -> None:
    paths = write(tmp_path / "new" / "versions", lambda _: {"1_a.sql": "-- ä\n", "1_a.down.sql": ""})

    assert [path.name for path in paths] == ["1_a.sql", "1_a.down.sql"]
    assert paths[0].read_bytes() == "-- ä\n".encode()


def test_no_existing_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "1_a.down.sql").write_text("mine")

    with pytest.raises(UsageError, match="is there already"):
        write(tmp_path, lambda _: {"1_a.sql": "", "1_a.down.sql": ""})

    assert [path.name for path in tmp_path.iterdir()] == ["1_a.down.sql"]
    assert (tmp_path / "1_a.down.sql").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(UsageError, match="file"):
        write(tmp_path / "file" / "versions", lambda _: {"1_a.sql": ""})
