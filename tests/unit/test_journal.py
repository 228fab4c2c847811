import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pgratchet.core.model import Direction, Finished
from pgratchet.runs.journal import append

FIRST = Finished("1", "größe", Direction.UP, 3, 0.25)
SECOND = Finished("2", 'a\n"b"', Direction.DOWN, 1, 1.5)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_finished_step_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / ".migration_history"

    append(path, [FIRST, SECOND])

    first, second = lines(path)
    assert (first["version"], first["name"], first["direction"]) == ("1", "größe", "up")
    assert (first["statements"], first["seconds"]) == (3, 0.25)
    assert (second["name"], second["direction"]) == ('a\n"b"', "down")


def test_a_line_says_when(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    before = datetime.now(UTC).replace(microsecond=0)

    append(path, [FIRST])

    assert before <= datetime.fromisoformat(str(lines(path)[0]["at"])) <= datetime.now(UTC)


def test_later_lines_come_behind_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "journal"

    append(path, [FIRST])
    append(path, [SECOND])

    assert [line["version"] for line in lines(path)] == ["1", "2"]


def test_nothing_done_leaves_no_file(tmp_path: Path) -> None:
    append(tmp_path / "journal", [])

    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize("name", [".", "missing/journal"])
def test_a_journal_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    append(tmp_path / name, [FIRST])

    (record,) = caplog.records
    assert (record.name, record.levelname) == ("pgratchet", "WARNING")
    assert record.args is not None
    assert tmp_path / name in record.args
