from collections.abc import Sequence

import pytest

from pgratchet.core.errors import HistoryError
from pgratchet.core.model import Entry, RecordState
from pgratchet.core.plan import planning
from pgratchet.files.layouts.own import own
from tests.unit.test_planning import compare, entries, judge, migration, row


def with_floor(
    on_disk: Sequence[int], floor: str, state: RecordState = RecordState.APPLIED, done: int = 1
) -> tuple[Entry, ...]:
    """Return entries of files and of one more version, 9, that only the database knows, with its floor."""
    history = [*map(row, on_disk), row(9, state, compatible_with=floor, statements_done=done)]
    return compare(map(migration, on_disk), history)


def test_nothing_is_wrong_with_files_and_history_that_agree() -> None:
    assert judge(entries([1, 2, 3], [1, 2]), strict=True) == ()


def test_an_edited_migration_is_refused_with_its_file_and_time() -> None:
    compared = compare([migration(1, checksum="edited"), migration(2)], [row(1)])

    with pytest.raises(HistoryError) as caught:
        judge(compared, allow_late=True)

    assert caught.value.versions == ("1",)
    assert "m/001_name.sql was edited after it had been applied on 2026-03-01 12:30:45" in str(caught.value)
    assert "new migration" in str(caught.value)


def test_an_awaited_migration_whose_other_file_was_applied_is_older_and_not_edited() -> None:
    compared = compare([migration(1, checksum="old"), migration(2)], [row(1)])

    with pytest.raises(HistoryError) as caught:
        planning.refuse_disagreement(compared, own.rank, awaited={"1", "2"})

    assert caught.value.versions == ("1",)
    assert str(caught.value) == (
        "m/001_name.sql is not the file that was applied on 2026-03-01 12:30:45+0000 by alice@host app while this run "
        "waited; the files here are older than those of the run that did it: start the release that has these"
    )


def test_an_awaited_migration_below_one_that_was_applied_without_it_is_of_an_older_release() -> None:
    with pytest.raises(HistoryError, match="applied without it while this run waited; the files here are older"):
        planning.refuse_disagreement(entries([1, 2], [1, 3]), own.rank, awaited={"2"})


def test_a_late_migration_is_refused() -> None:
    with pytest.raises(HistoryError) as caught:
        judge(entries([1, 2, 3], [1, 3]))

    assert caught.value.versions == ("2",)
    assert "m/002_name.sql" in str(caught.value)


def test_a_late_migration_is_fine_where_allowed() -> None:
    assert judge(entries([1, 2, 3], [1, 3]), allow_late=True, strict=True) == ()


def test_an_unknown_version_is_a_warning() -> None:
    (warning,) = judge(entries([1], [1, 2]))

    assert "2 name2" in warning
    assert "no file" in warning


def test_an_unknown_version_is_refused_under_strict() -> None:
    with pytest.raises(HistoryError) as caught:
        judge(entries([1], [1, 2]), strict=True)

    assert caught.value.versions == ("2",)


def test_all_disagreements_are_reported_at_once() -> None:
    compared = compare([migration(1, checksum="edited"), migration(2), migration(3)], [row(1), row(3), row(4), row(5)])

    with pytest.raises(HistoryError) as caught:
        judge(compared, strict=True)

    assert caught.value.versions == ("1", "2", "4", "5")
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize("state", [RecordState.RUNNING, RecordState.REVERTING, RecordState.FAILED])
def test_a_half_done_version_is_no_disagreement(state: RecordState) -> None:
    assert judge(compare([migration(1)], [row(1, state)]), strict=True) == ()


@pytest.mark.parametrize("state", [state for state in RecordState if state is not RecordState.PENDING])
@pytest.mark.parametrize("allowing", [{}, {"allow_late": True}, {"strict": True}])
def test_an_image_below_the_floor_of_an_unknown_version_is_refused(
    state: RecordState, allowing: dict[str, bool]
) -> None:
    with pytest.raises(HistoryError) as caught:
        judge(with_floor([1, 2, 5], "7", state), **allowing)

    assert caught.value.versions == ("9",)
    for part in ("9 name9", "compatible-with=7", "newest file here is 5", "deploy a release", "revert 9"):
        assert part in str(caught.value)


@pytest.mark.parametrize("on_disk", [[7], [1, 8], [1, 7, 10]])
def test_an_image_that_knows_the_floor_may_start(on_disk: list[int]) -> None:
    (warning,) = judge(with_floor(on_disk, "7"), allow_late=True)

    assert "9 name9" in warning


def test_an_image_without_files_lies_below_every_floor() -> None:
    with pytest.raises(HistoryError, match="no files here"):
        judge(with_floor([], "0"))


def test_a_floor_that_somebody_has_written_by_hand_and_nobody_can_read_forbids() -> None:
    with pytest.raises(HistoryError, match="v2"):
        judge(with_floor([1], "v2"))


def test_a_floor_of_a_version_that_has_its_file_here_forbids_nothing() -> None:
    history = [row(1), row(2, compatible_with="7")]

    assert judge(compare(map(migration, (1, 2)), history), strict=True) == ()


def test_a_failure_that_left_nothing_has_no_floor() -> None:
    assert judge(with_floor([1], "9", RecordState.FAILED, done=0)) == ()
    assert judge(with_floor([1], "9", RecordState.PENDING, done=0)) == ()


def test_status_shows_a_version_with_a_higher_floor_like_any_other() -> None:
    assert [entry.state for entry in with_floor([1], "9")] == ["applied", "unknown"]
