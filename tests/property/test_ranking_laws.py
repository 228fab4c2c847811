from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from pgratchet.core.model import HistoryRow, Kind, Migration, Rank, RecordState, Source, State
from pgratchet.core.plan import planning
from pgratchet.core.printing import LEAST_RANGE

quick = settings(max_examples=60)
START = datetime(2026, 1, 1, tzinfo=UTC)
DOTTED = st.lists(st.integers(0, 20), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))
NAMES = st.text("abc", min_size=1, max_size=4)
HASHES = st.binary(min_size=4, max_size=4).map(bytes.hex)


def dotted(version: str) -> Rank:
    return tuple(map(int, version.split(".")))


def unranked(_: str) -> None:
    """Know a version by its file alone, as a layout of names or hashes does."""


def migration(version: str, rank: Rank) -> Migration:
    return Migration(version, rank, "x", Kind.SQL, "sum", Source(f"{version}.sql", ""))


def row(version: str, at: int) -> HistoryRow:
    moment = START + timedelta(minutes=at)
    nothing = dict.fromkeys(("cursor", "applied_by", "backend_pid", "token", "compatible_with", "error"))
    return HistoryRow(
        version, "x", "sql", "sum", RecordState.APPLIED, 0, 0, started_at=moment, finished_at=moment, **nothing
    )


@quick
@given(st.lists(DOTTED, unique=True, max_size=8), st.data())
def test_dotted_versions_are_ordered_and_late_by_their_ranks(versions: list[str], data: st.DataObject) -> None:
    applied = data.draw(st.sets(st.sampled_from(versions))) if versions else set()
    gone = data.draw(st.sets(st.sampled_from(sorted(applied)))) if applied else set()
    files = [migration(version, dotted(version)) for version in versions if version not in gone]

    entries = planning.compare(files, [row(version, 0) for version in applied], dotted)

    newest = max(map(dotted, applied), default=())
    assert [entry.version for entry in entries] == sorted(versions, key=dotted)
    assert {entry.version for entry in entries if entry.state is State.LATE} == {
        version for version in versions if version not in applied and dotted(version) < newest
    }


@quick
@given(st.lists(NAMES | HASHES, unique=True, max_size=8), st.data())
def test_a_row_without_rank_stands_where_it_was_applied_and_makes_no_file_late(
    versions: list[str], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(versions)))
    applied, pending = versions[:count], versions[count:]
    gone = data.draw(st.sets(st.sampled_from(applied))) if applied else set()
    files = [migration(version, (rank,)) for rank, version in enumerate(versions) if version not in gone]
    history = data.draw(st.permutations([row(version, at) for at, version in enumerate(applied)]))

    entries = planning.compare(files, history, unranked)

    assert [entry.version for entry in entries] == versions
    assert [entry.version for entry in planning.pending(entries)] == pending
    assert State.LATE not in {entry.state for entry in entries}
    assert len(planning.refuse_disagreement(entries, unranked)) == (len(gone) if len(gone) < LEAST_RANGE else 1)


@quick
@given(st.lists(NAMES, unique=True, min_size=1, max_size=8), st.data())
def test_up_and_down_to_a_name_go_by_its_place(versions: list[str], data: st.DataObject) -> None:
    to = data.draw(st.sampled_from(versions))
    files = [migration(version, (rank,)) for rank, version in enumerate(versions)]
    rows = [row(version, at) for at, version in enumerate(versions)]
    place = versions.index(to) + 1

    assert planning.missing(planning.compare(files, [], unranked), to) == tuple(versions[:place])
    assert planning.choose_down(planning.compare(files, rows, unranked), to=to) == tuple(reversed(versions[place:]))
