from collections.abc import Iterable

import asyncpg
import pytest

from pgratchet.core.model import Direction, Failure, Kind, Migration, Mode, Segment, Source, Step
from pgratchet.core.sql import scripts
from pgratchet.core.sql.scripts import CHUNK, compile_script
from pgratchet.postgres.ledger.records import Claim
from pgratchet.postgres.wire import message
from pgratchet.postgres.wire.failures import Spot, from_server, is_of_plpgsql, owner, spot
from pgratchet.postgres.wire.message import END, MOST_STEPS, Frame, Message, Part, compose, mark, part_at, share

HEAD = "BEGIN;INSERT INTO history;"
TAIL = "UPDATE history;COMMIT;"
MARK = mark("here")


def claim(text: str, version: str = "1") -> Claim:
    source = Source(f"m/{version}_x.sql", text)
    migration = Migration(version, (int(version),), "x", Kind.SQL, "sum", source)
    return Claim(Step(migration, Direction.UP, compile_script(source, Kind.SQL, Direction.UP)), f"token{version}")


def step_of_size(length: int) -> Step:
    return claim("-" * length).step


def sizes(*steps: Step, event_triggers: bool = False) -> list[int]:
    return [len(group) for group in share(steps, event_triggers=event_triggers)]


def composed(texts: Iterable[str], *, markers: bool = True) -> list[Message]:
    frames = [Frame(claim(text, str(number)), HEAD, TAIL) for number, text in enumerate(texts, 1)]
    return list(compose(frames, "here" if markers else None))


def message_of(*texts: str, markers: bool = True) -> Message:
    (sent,) = composed(texts, markers=markers)
    return sent


def server_error(position: int | None = None, **fields: str) -> asyncpg.PostgresError:
    error = asyncpg.UndefinedTableError(fields.pop("message", "no such table"))
    error.position = None if position is None else str(position)
    for name, value in fields.items():
        setattr(error, name, value)
    return error


def position_of(sent: Message, needle: str) -> int:
    """Return where in a message something stands, as the server counts."""
    return sent.text.index(needle) + 1


def failure_at(text: str, needle: str, *, markers: bool = True) -> Failure:
    sent = message_of(text, markers=markers)
    error = server_error(position_of(sent, needle))
    return from_server(sent.parts[0].claim, error, spot(sent, error, None))


def test_a_script_stands_between_its_head_and_its_tail() -> None:
    assert message_of("SELECT 1;").text == f"{HEAD}SELECT 1\n;{TAIL}"


def test_an_empty_script_is_head_and_tail() -> None:
    sent = message_of("-- nothing")

    assert sent == Message(HEAD + TAIL, ())


def test_a_marker_follows_each_of_several_segments() -> None:
    assert message_of("SELECT 1; -- one\nSELECT 2").text == f"{HEAD}SELECT 1\n;{MARK}SELECT 2\n;{MARK}{TAIL}"


@pytest.mark.parametrize(("text", "markers"), [("SELECT 1;", True), ("SELECT 1; SELECT 2;", False)])
def test_there_are_no_markers_for_one_segment_or_without_plpgsql(text: str, *, markers: bool) -> None:
    sent = message_of(text, markers=markers)

    assert MARK not in sent.text
    assert not any(part.marked for part in sent.parts)


@pytest.mark.parametrize("count", [200, 201, 202, 1000])
def test_a_script_has_few_markers(count: int) -> None:
    sent = message_of("SELECT 1;\n" * count)

    assert sent.text.count(MARK) == len(sent.parts) <= 201
    assert sum(part.segment.statements for part in sent.parts) == count


def test_several_scripts_share_a_message_each_in_its_own_frame() -> None:
    sent = message_of("SELECT 1;", "", "SELECT 2; SELECT 3;")

    assert sent.text == (f"{HEAD}SELECT 1\n;{TAIL}{HEAD}{TAIL}{HEAD}SELECT 2\n;{MARK}SELECT 3\n;{MARK}{TAIL}")
    assert [part.claim.token for part in sent.parts] == ["token1", "token3", "token3"]


def test_each_part_knows_where_it_stands() -> None:
    sent = message_of("-- ä\nSELECT '😀';\n", "SELECT 1;\n/* é */ SELECT 2;\nSELECT 3")

    for part in sent.parts:
        text = part.claim.step.script.source.text
        length = part.segment.end - part.segment.start
        assert sent.text[part.at : part.at + length] == text[part.segment.start : part.segment.end]


@pytest.mark.parametrize("markers", [True, False])
def test_a_position_belongs_to_the_part_that_holds_it(*, markers: bool) -> None:
    sent = message_of("SELECT 1; SELECT (", markers=markers)

    owners = [part_at(sent, position) for position in range(1, len(sent.text) + 1)]

    for part in sent.parts:
        text = "".join(character for character, owner in zip(sent.text, owners, strict=True) if owner is part)
        assert text == f"SELECT {'1' if part is sent.parts[0] else '('}{END}"
    outside = "".join(character for character, owner in zip(sent.text, owners, strict=True) if owner is None)
    assert outside == (f"{HEAD}{MARK}{MARK}{TAIL}" if markers else f"{HEAD}{TAIL}")


@pytest.mark.parametrize("position", [0, -1, 10**9])
def test_a_position_outside_all_parts_belongs_to_none(position: int) -> None:
    assert part_at(message_of("SELECT 1"), position) is None


@pytest.fixture
def chunk(monkeypatch: pytest.MonkeyPatch) -> int:
    """The size of chunks, made small, as a large script would be slow to make."""
    size = 1000
    monkeypatch.setattr(scripts, "CHUNK", size)
    monkeypatch.setattr(message, "CHUNK", size)
    return size


def test_a_large_script_goes_out_in_chunks(chunk: int) -> None:
    statement = "INSERT INTO t VALUES ('" + "x" * (chunk // 2) + "');\n"

    messages = composed([statement * 20])

    assert len(messages) > 2
    assert all(len(each.text) <= 5 * chunk for each in messages)
    assert messages[0].text.startswith(HEAD)
    assert messages[-1].text.endswith(TAIL)
    whole = "".join(each.text for each in messages)
    assert (whole.count(HEAD), whole.count(TAIL), whole.count("INSERT INTO t")) == (1, 1, 20)


def test_positions_in_a_later_chunk_count_from_its_beginning(chunk: int) -> None:
    statement = "INSERT INTO t VALUES ('" + "x" * (chunk // 2) + "');\n"
    last = composed([statement * 20 + "SELECT wrong;"])[-1]

    part = part_at(last, position_of(last, "wrong"))

    assert part is last.parts[-1]
    assert spot(last, server_error(position_of(last, "wrong")), None).statement == 21


def test_small_scripts_share_messages_up_to_a_number_and_a_size() -> None:
    small = [claim("CREATE TABLE t ();", str(number)).step for number in range(MOST_STEPS * 2 + 1)]
    groups = list(share(small, event_triggers=False))

    assert [len(group) for group in groups] == [MOST_STEPS, MOST_STEPS, 1]
    assert [claim.step for group in groups for claim in group] == small


def test_large_scripts_do_not_share() -> None:
    half, whole = step_of_size(CHUNK // 2), step_of_size(CHUNK + 1)

    assert sizes(half, half, half) == [2, 1]
    assert sizes(*[half] * 6) == [2, 2, 2]
    assert sizes(half, whole, half) == [1, 1, 1]


def test_only_transactions_of_sql_share_and_only_on_the_way_up() -> None:
    step = claim("CREATE TABLE a ();").step

    for alone in (
        step._replace(direction=Direction.DOWN),
        step._replace(migration=step.migration._replace(kind=Kind.PYTHON)),
        step._replace(script=step.script._replace(mode=Mode.STATEMENTS)),
    ):
        assert sizes(step, step, alone, alone, step, step) == [2, 1, 1, 2]


def test_no_scripts_make_no_group() -> None:
    assert list(share([], event_triggers=False)) == []


TABLE, ROWS = claim("CREATE TABLE t ();").step, claim("INSERT INTO t DEFAULT VALUES;").step


def test_a_script_that_may_read_the_clock_begins_a_message() -> None:
    assert sizes(TABLE, TABLE, ROWS, TABLE, ROWS, ROWS, TABLE) == [2, 2, 1, 2]


def test_no_script_shares_where_event_triggers_are_enabled() -> None:
    assert sizes(TABLE, TABLE, event_triggers=True) == [1, 1]


@pytest.mark.parametrize("markers", [True, False])
def test_a_position_is_told_as_line_column_and_statement(*, markers: bool) -> None:
    text = "-- head\nSELECT 1;\n\nSELECT 'ä😀',\n       wrong FROM t;\nSELECT 3;\n"

    failure = failure_at(text, "wrong", markers=markers)

    assert (failure.path, failure.line, failure.column) == ("m/1_x.sql", 5, 8)
    assert (failure.statement, failure.statements) == (2, 3)


def test_the_lines_around_the_place_are_shown() -> None:
    failure = failure_at("SELECT 1;\nSELECT 2;\nSELECT 3;\nSELECT wrong;\nSELECT 5;\nSELECT 6;\nSELECT 7;\n", "wrong")

    assert failure.excerpt == (
        (2, "SELECT 2;"),
        (3, "SELECT 3;"),
        (4, "SELECT wrong;"),
        (5, "SELECT 5;"),
        (6, "SELECT 6;"),
    )


def test_lines_before_the_first_are_not_shown() -> None:
    assert failure_at("SELECT wrong;", "wrong").excerpt == ((1, "SELECT wrong;"),)


@pytest.mark.parametrize("number", [1, 3, 5, 6, 1000])
def test_a_position_in_a_run_of_statements_is_told_as_its_statement(number: int) -> None:
    text = "".join(f"SELECT {'wrong' if each == number else 'right'}; -- ;\n" for each in range(1, 1001))

    failure = failure_at(text, "wrong")

    assert (failure.line, failure.column, failure.statement) == (number, 8, number)


@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("behind", range(len(END)))
def test_an_error_right_behind_a_statement_is_its_own(behind: int, *, markers: bool) -> None:
    sent = message_of("SELECT 1;\nSELECT (;\nSELECT 3;", markers=markers)
    error = server_error(sent.parts[1].at + len("SELECT (") + behind + 1)

    assert owner(sent, error) is sent.parts[1]
    assert spot(sent, error, None) == Spot(offset=18, statement=2)


@pytest.mark.parametrize("number", [1, 2, 401, 402])
def test_an_error_at_the_semicolon_of_a_statement_in_a_run_is_its_own(number: int) -> None:
    text = "".join(f"SELECT {'wrong(' if each == number else 'right'};\n" for each in range(1, 403))
    sent = message_of(text)
    error = server_error(sent.text.index(";", sent.text.index("wrong(")) + 1)

    assert spot(sent, error, None).statement == number


def test_an_error_without_a_position_is_where_execution_had_come_to() -> None:
    sent = message_of("SELECT 1;\nSELECT 1/0;\n")

    assert owner(sent, server_error()) is None
    assert spot(sent, server_error(), sent.parts[1]) == Spot(offset=10, statement=2)


def test_a_run_of_statements_does_not_say_which_one_failed() -> None:
    reached = Part(0, claim(""), Segment(start=40, end=90, first=5, statements=3))

    assert spot(message_of("SELECT 1"), server_error(), reached) == Spot(offset=40)


def test_an_error_of_our_own_has_no_place_in_the_file() -> None:
    sent = message_of("SELECT 1;")

    failure = from_server(sent.parts[0].claim, server_error(3), spot(sent, server_error(3), None))

    assert (failure.line, failure.column, failure.statement, failure.excerpt) == (None, None, None, ())


def test_a_failure_has_all_that_the_server_says() -> None:
    error = server_error(detail="a detail", hint="a hint", context="PL/pgSQL function f()")

    failure = from_server(claim("SELECT 1;", "7"), error, Spot())

    assert (failure.version, failure.name, failure.direction) == ("7", "x", Direction.UP)
    assert (failure.message, failure.sqlstate) == ("no such table", "42P01")
    assert (failure.detail, failure.hint, failure.context) == ("a detail", "a hint", "PL/pgSQL function f()")


@pytest.mark.parametrize(
    ("sqlstate", "message", "expected"),
    [
        ("42501", "permission denied for language plpgsql", True),
        ("42704", "Sprache »plpgsql« existiert nicht", True),
        ("58P01", 'could not access file "$libdir/plpgsql": No such file or directory', True),
        ("XX000", 'could not load library "/lib/plpgsql.so": undefined symbol: x', True),
        ("42501", "permission denied for table t", False),
        ("2BP01", "cannot drop extension plpgsql because other objects depend on it", False),
    ],
)
def test_the_error_of_a_marker_is_told_from_others(sqlstate: str, message: str, *, expected: bool) -> None:
    error = server_error(message=message, sqlstate=sqlstate)

    assert is_of_plpgsql(error) is expected
    error.position = "7"
    assert not is_of_plpgsql(error)
