from pathlib import Path

import pytest

from pgratchet.core.errors import UsageError
from pgratchet.core.model import Kind
from pgratchet.files.directory import read
from pgratchet.files.layouts.own import own
from pgratchet.migrator import new


def names(paths: tuple[Path, ...]) -> list[str]:
    return [path.name for path in paths]


def test_the_first_migration_is_number_one(tmp_path: Path) -> None:
    assert names(new(tmp_path / "versions", "Add users")) == ["001_add_users.sql", "001_add_users.down.sql"]


def test_the_next_number_is_as_wide_as_the_last(tmp_path: Path) -> None:
    (tmp_path / "0009_old.sql").touch()

    assert names(new(tmp_path, "next one")) == ["0010_next_one.sql", "0010_next_one.down.sql"]


def test_timestamps_are_followed_by_a_timestamp(tmp_path: Path) -> None:
    (tmp_path / "20240102030405_old.sql").touch()

    path = new(tmp_path, "later")[0]

    assert len(path.name.partition("_")[0]) == 14
    assert int(path.name.partition("_")[0]) > 20240102030405


def test_the_files_of_a_new_migration_can_be_read(tmp_path: Path) -> None:
    new(tmp_path, "Tables")
    new(tmp_path, "Data!", Kind.PYTHON)

    migrations = own.parse(read(tmp_path)).migrations

    assert [(each.version, each.name, each.kind) for each in migrations] == [
        ("1", "tables", Kind.SQL),
        ("2", "data", Kind.PYTHON),
    ]


def test_the_head_names_migration_version_and_date(tmp_path: Path) -> None:
    path = new(tmp_path, "Add users")[0]

    lines = path.read_text(encoding="utf-8").splitlines()

    assert lines[:2] == ["-- Migration: Add users", "-- Version: 001"]
    assert lines[2].startswith("-- Date: ")


def test_a_description_without_letters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no letter"):
        new(tmp_path, "!!!")

    assert not list(tmp_path.iterdir())
