from collections.abc import Sequence

import pytest

from pgratchet.core.errors import FilesError
from pgratchet.core.model import Direction, Kind, Mode, Options, Problem, Script, Source
from pgratchet.core.sql import scripts
from pgratchet.core.sql.dialects import misread_by_default
from pgratchet.core.sql.scripts import MOST_MARKERS, compile_script, digests, loads_another_library

PATH = "migrations/001_first.sql"
CONCURRENTLY = "CREATE INDEX CONCURRENTLY i ON t (a)"


def compiled(text: str, *, no_transaction: bool = False) -> Script:
    return compile_script(Source(PATH, text, Options(no_transaction=no_transaction)), Kind.SQL, Direction.UP)


def python(text: str, direction: Direction = Direction.UP, *, no_transaction: bool = False) -> Script:
    return compile_script(Source("m/1_x.py", text, Options(no_transaction=no_transaction)), Kind.PYTHON, direction)


def pieces(script: Script) -> list[str]:
    return [script.source.text[segment.start : segment.end] for segment in script.segments]


def problems_of(text: str, *, no_transaction: bool = False) -> tuple[Problem, ...]:
    with pytest.raises(FilesError) as caught:
        compiled(text, no_transaction=no_transaction)
    return caught.value.problems


def problem_of(text: str, *, no_transaction: bool = False) -> Problem:
    (problem,) = problems_of(text, no_transaction=no_transaction)
    assert problem.path == PATH
    return problem


def python_problem_of(text: str, direction: Direction = Direction.UP) -> Problem:
    with pytest.raises(FilesError) as caught:
        python(text, direction)
    (problem,) = caught.value.problems
    return problem


def numbered(count: int, statement: str = "SELECT {};\n") -> str:
    return "".join(statement.format(number) for number in range(1, count + 1))


def test_ordinary_statements_share_a_transaction() -> None:
    script = compiled("CREATE TABLE t (a int);\nINSERT INTO t VALUES (1);\n")

    assert script.mode is Mode.TRANSACTION
    assert script.statements == 2
    assert pieces(script) == ["CREATE TABLE t (a int)", "INSERT INTO t VALUES (1)"]
    assert [segment.first for segment in script.segments] == [1, 2]


@pytest.mark.parametrize("text", ["", "\n", "-- nothing", "/* nothing */", ";;"])
def test_a_file_without_statements_is_a_script_without_segments(text: str) -> None:
    script = compiled(text)

    assert (script.mode, script.statements, script.segments) == (Mode.TRANSACTION, 0, ())


def test_a_file_without_statements_may_ask_for_no_transaction() -> None:
    script = compiled("-- nothing", no_transaction=True)

    assert (script.mode, script.statements, script.segments) == (Mode.STATEMENTS, 0, ())


def test_the_last_statement_needs_no_semicolon() -> None:
    assert pieces(compiled("SELECT 1;\nSELECT 2 -- last")) == ["SELECT 1", "SELECT 2"]


@pytest.mark.parametrize(
    "text",
    [
        CONCURRENTLY,
        f"{CONCURRENTLY};\nDROP INDEX CONCURRENTLY j;",
        "VACUUM t;",
        "-- why\nALTER SYSTEM SET work_mem = '64MB';",
    ],
)
def test_a_file_whose_statements_all_refuse_a_transaction_runs_without_one(text: str) -> None:
    script = compiled(text)

    assert script.mode is Mode.STATEMENTS
    assert all(segment.refuses for segment in script.segments)


def test_a_mixed_file_is_refused_with_the_statement_and_both_cures() -> None:
    problem = problem_of(f"CREATE TABLE t (a int);\n\n{CONCURRENTLY};\nSELECT 1;\n")

    assert problem.line == 3
    assert "CREATE INDEX CONCURRENTLY" in problem.message
    assert "2 other statement" in problem.message
    assert "file of its own" in problem.cure
    assert "-- pgratchet: no-transaction" in problem.cure


def test_a_mixed_file_with_the_directive_runs_statement_by_statement() -> None:
    script = compiled(f"CREATE TABLE t (a int);\n{CONCURRENTLY};\nSELECT 1;", no_transaction=True)

    assert script.mode is Mode.STATEMENTS
    assert [bool(segment.refuses) for segment in script.segments] == [False, True, False]
    assert [(segment.first, segment.statements) for segment in script.segments] == [(1, 1), (2, 1), (3, 1)]


def test_the_directive_alone_is_enough() -> None:
    assert compiled("SELECT 1;", no_transaction=True).mode is Mode.STATEMENTS


@pytest.mark.parametrize(
    ("opener", "closer"),
    [("BEGIN", "COMMIT"), ("begin work", "commit work"), ("START TRANSACTION", "END"), ("BEGIN TRANSACTION", "END")],
)
def test_the_outermost_transaction_is_absorbed(opener: str, closer: str) -> None:
    script = compiled(f"-- head\n{opener};\nSELECT 1;\nSELECT 2;\n{closer};\n-- end\n")

    assert script.mode is Mode.TRANSACTION
    assert pieces(script) == ["SELECT 1", "SELECT 2"]
    assert script.statements == 2
    assert script.begin == ""


def test_an_absorbed_transaction_may_be_empty() -> None:
    assert compiled("BEGIN; COMMIT;").statements == 0


@pytest.mark.parametrize(
    "opener",
    [
        "BEGIN",
        "START TRANSACTION",
        "begin work",
        "BEGIN /* ISOLATION */ WORK -- LEVEL\n",
        "START/**/TRANSACTION",
    ],
)
def test_options_of_the_absorbed_begin_move_to_the_head(opener: str) -> None:
    with_options = compiled(f"{opener} ISOLATION LEVEL SERIALIZABLE, READ ONLY;\nSELECT 1;\nCOMMIT;")
    without = compiled(f"{opener};\nSELECT 1;\nCOMMIT;")

    assert with_options.begin == "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY"
    assert without.begin == ""
    assert pieces(with_options) == pieces(without) == ["SELECT 1"]


def test_a_leading_set_transaction_moves_to_the_head() -> None:
    script = compiled("-- why\nSET TRANSACTION ISOLATION LEVEL REPEATABLE READ;\nSELECT 1;")

    assert script.begin == "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
    assert pieces(script) == ["SELECT 1"]
    assert script.segments[0].first == 1


def test_set_transaction_behind_the_absorbed_begin_moves_to_the_head() -> None:
    script = compiled("BEGIN; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; SET TRANSACTION DEFERRABLE; SELECT 1; END")

    assert script.begin.split("\n;") == [
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET TRANSACTION DEFERRABLE",
    ]
    assert pieces(script) == ["SELECT 1"]


def test_a_late_set_transaction_is_refused_with_its_line() -> None:
    problem = problem_of("SELECT 1;\nSET TRANSACTION ISOLATION LEVEL SERIALIZABLE;\n")

    assert problem.line == 2
    assert "first statement" in problem.cure


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("SELECT 1;\nCOMMIT;\n", [2]),
        ("BEGIN;\nSELECT 1;\n", [1]),
        ("SELECT 1;\nBEGIN;\nSELECT 2;\nCOMMIT;", [2, 4]),
        ("BEGIN;\nSELECT 1;\nCOMMIT;\nSELECT 2;", [1, 3]),
        ("BEGIN;\nSELECT 1;\nCOMMIT;\nBEGIN;\nSELECT 2;\nCOMMIT;", [3, 4]),
        ("BEGIN;\nBEGIN;\nCOMMIT;\nCOMMIT;", [2, 3]),
        ("BEGIN;\nSELECT 1;\nROLLBACK;", [1, 3]),
        ("SELECT 1;\nABORT;", [2]),
        ("BEGIN;\nSELECT 1;\nCOMMIT AND CHAIN;", [1, 3]),
        ("SELECT 1;\nPREPARE TRANSACTION 'x';", [2]),
    ],
)
def test_other_transaction_control_is_refused_with_its_lines(text: str, lines: Sequence[int]) -> None:
    problems = problems_of(text)

    assert [problem.line for problem in problems] == list(lines)
    assert all("remove it" in problem.cure for problem in problems)


@pytest.mark.parametrize(
    "text",
    [
        "SAVEPOINT a; ROLLBACK TO SAVEPOINT a; RELEASE a;",
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$;",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END;",
        "SELECT 'COMMIT;'; -- COMMIT;\n/* BEGIN; */ SELECT 1;",
        "PREPARE q AS SELECT 1;",
    ],
)
def test_text_that_only_looks_like_transaction_control_is_fine(text: str) -> None:
    assert compiled(text).mode is Mode.TRANSACTION


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("SELECT 1;\nCOMMIT;\nVACUUM;", [2]),
        ("BEGIN;\nSELECT 1;\nSELECT 2;\nCOMMIT;", [1, 4]),
        ("BEGIN;\nCOMMIT;", [1, 2]),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE;\nSELECT 1;", [1]),
        ("START TRANSACTION;\nSET TRANSACTION DEFERRABLE;\nROLLBACK;", [1, 2, 3]),
    ],
)
def test_a_file_without_a_transaction_cannot_ask_for_one(text: str, lines: Sequence[int]) -> None:
    problems = problems_of(text, no_transaction=True)

    assert [problem.line for problem in problems] == list(lines)
    assert all("statement by statement" in problem.message for problem in problems)
    assert all("no-transaction" in problem.cure for problem in problems)


@pytest.mark.parametrize("text", ["BEGIN;\n{};\nCOMMIT;", "START TRANSACTION READ WRITE;\n{};\nEND"])
def test_a_transaction_around_one_statement_that_refuses_it_is_named(text: str) -> None:
    problem = problem_of(text.format(CONCURRENTLY))

    assert problem.line == 2
    assert problem.message == "CREATE INDEX CONCURRENTLY cannot run in a transaction"
    assert "around it" in problem.cure


def test_a_transaction_around_a_mixed_file_does_not_count_as_its_statements() -> None:
    problem = problem_of(f"BEGIN;\nSELECT 1;\n{CONCURRENTLY};\nCOMMIT;")

    assert problem.line == 3
    assert "1 other statement" in problem.message


def test_discarding_everything_is_refused_because_the_lock_would_go_with_it() -> None:
    problem = problem_of("VACUUM;\nDISCARD ALL;")
    assert (problem.line, problem.message) == (2, "DISCARD ALL would release the runner's lock")


def test_copy_from_stdin_is_refused_with_its_line() -> None:
    problem = problem_of("CREATE TABLE t (a int);\nCOPY t FROM STDIN;\n1\n2\n\\.\nSELECT 1;\n")

    assert problem.line == 2
    assert "COPY ... FROM STDIN" in problem.message
    assert "INSERT" in problem.cure


@pytest.mark.parametrize("text", ["COPY t FROM '/tmp/t.csv';", "COPY t TO STDOUT;", "COPY t FROM PROGRAM 'cat t';"])
def test_other_copies_are_fine(text: str) -> None:
    assert compiled(text).statements == 1


def test_psql_commands_are_refused_with_their_lines() -> None:
    problems = problems_of("\\set ON_ERROR_STOP on\nSELECT 1;\n\\i other.sql\nSELECT 2 \\gset\n")

    assert [(problem.line, problem.message) for problem in problems] == [
        (1, "psql command \\set"),
        (3, "psql command \\i"),
        (4, "psql command \\gset"),
    ]


def test_the_restrict_commands_of_pg_dump_are_skipped() -> None:
    script = compiled("\\restrict abc\nSELECT 1;\nSELECT 2;\n\\unrestrict abc\n")

    assert pieces(script) == ["SELECT 1", "SELECT 2"]


def test_a_skipped_command_changes_no_position() -> None:
    text = "\\restrict ä\n" + numbered(300) + "\\restrict abc\n" + numbered(300)
    script = compiled(text)

    assert script.statements == 600
    assert not any("\\" in piece for piece in pieces(script))
    assert len(script.source.text) == len(text)
    assert [text[segment.start : segment.start + 6] for segment in script.segments] == ["SELECT"] * len(script.segments)
    assert problem_of("\\restrict abc\nSELECT 1;\n\\i x").line == 3


@pytest.mark.parametrize("comment", ["-- C:\\temp", "/* \\i x */", "/*\n\\restrict\n*/"])
def test_backslashes_in_comments_do_not_cut_a_script_smaller(comment: str) -> None:
    assert len(compiled(numbered(500, f"SELECT {{}}; {comment}\n")).segments) <= MOST_MARKERS + 1


@pytest.mark.parametrize("text", ["SELECT 1;\nSELECT 'a", "\n/* never closed", "\nSELECT $x$ a $y$", '\nSELECT "a'])
def test_a_quote_that_is_never_closed_is_refused_with_its_line(text: str) -> None:
    problem = problem_of(text)

    assert problem.line == 2
    assert "unterminated" in problem.message


def test_all_problems_of_a_script_are_told_at_once_in_order() -> None:
    problems = problems_of(f"SELECT 1;\n{CONCURRENTLY};\nCOMMIT;\n\\i x\nCOPY t FROM STDIN;\n1\n\\.\nSELECT 'a")

    assert [problem.line for problem in problems] == [2, 3, 4, 5, 8]


@pytest.mark.parametrize("count", [1, 2, 200, 201, 202, 402, 403, 1005, 1006])
def test_a_long_script_is_cut_into_few_segments(count: int) -> None:
    script = compiled(numbered(count))

    assert len(script.segments) <= MOST_MARKERS + 1
    assert sum(segment.statements for segment in script.segments) == script.statements == count
    firsts = [1]
    for segment in script.segments:
        firsts.append(firsts[-1] + segment.statements)
    assert [segment.first for segment in script.segments] == firsts[:-1]


def test_a_script_without_a_transaction_is_cut_at_every_statement() -> None:
    script = compiled(numbered(500), no_transaction=True)

    assert [(segment.first, segment.statements) for segment in script.segments] == [
        (number, 1) for number in range(1, 501)
    ]


@pytest.fixture
def chunk(monkeypatch: pytest.MonkeyPatch) -> int:
    """The size of chunks, made small, as a large script would be slow to make."""
    monkeypatch.setattr(scripts, "CHUNK", 1000)
    return 1000


def test_a_large_script_is_cut_by_size(chunk: int) -> None:
    script = compiled(numbered(45, "INSERT INTO t VALUES ({}, '" + "x" * (chunk // 10) + "');\n"))

    lengths = [segment.end - segment.start for segment in script.segments]
    assert script.statements == sum(segment.statements for segment in script.segments) == 45
    assert len(script.segments) == 6
    assert all(chunk <= length < chunk * 1.2 for length in lengths[:-1])


def test_problems_of_a_large_script_are_told_too(chunk: int) -> None:
    problems = problems_of("\\i x\nSELECT '" + "x" * (4 * chunk) + "';\nCOMMIT;\nSELECT 'a")

    assert [problem.line for problem in problems] == [1, 3, 4]


def test_a_large_script_is_absorbed_and_counted_like_any_other(chunk: int) -> None:
    script = compiled("\\restrict a\nBEGIN;\nSELECT '" + "x" * (4 * chunk) + "';\nSELECT 2;\nCOMMIT;")

    assert script.statements == 2
    assert [segment.first for segment in script.segments] == [1, 2]


def test_digests_stand_for_everything_up_to_a_statement() -> None:
    first = list(digests(compiled("SELECT 1; SELECT 2; SELECT 3;", no_transaction=True)))
    second = list(digests(compiled("-- other\nSELECT 1;\n\nSELECT 2; SELECT 4;", no_transaction=True)))

    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert len(set(first)) == 3


@pytest.mark.parametrize("no_transaction", [False, True])
@pytest.mark.parametrize(
    "setting",
    [
        "SET standard_conforming_strings = off",
        "set local Standard_Conforming_Strings to 'false'",
        "SELECT pg_catalog.set_config('standard_conforming_strings', 'off', false)",
    ],
)
@pytest.mark.parametrize("string", [r"'it\'s; text'", r"'C:\\dir'"])
def test_a_setting_that_changes_backslashes_is_refused_with_its_line(
    setting: str, string: str, *, no_transaction: bool
) -> None:
    with pytest.raises(FilesError) as caught:
        compiled(f"SELECT 1;\n{setting};\nSELECT 2, {string};\nSELECT 3;", no_transaction=no_transaction)

    (problem,) = caught.value.problems
    assert (problem.line, "standard_conforming_strings = off" in problem.message) == (2, True)


def test_problems_before_a_setting_that_changes_backslashes_are_told_too() -> None:
    text = "COMMIT;\nSET standard_conforming_strings = off;\nSELECT 'it\\'s; text';\n"

    with pytest.raises(FilesError) as caught:
        compiled(text)

    assert [problem.line for problem in caught.value.problems] == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "SET standard_conforming_strings = off; SELECT E'a\\n', $$\\$$, 'plain';",
        "SET standard_conforming_strings = on; SELECT '\\';",
        "SELECT '\\'; SET standard_conforming_strings = off;",
        "CREATE FUNCTION f() RETURNS int SET standard_conforming_strings = off RETURN 1; SELECT '\\';",
        "SET client_encoding = 'UTF8'; SET NAMES 'utf-8'; SET client_encoding TO DEFAULT; SELECT 'é';",
        "SELECT 'é'; SET client_encoding = 'LATIN1'; SELECT 'e';",
    ],
)
@pytest.mark.parametrize("no_transaction", [False, True])
def test_a_setting_that_changes_nothing_behind_it_is_accepted(text: str, *, no_transaction: bool) -> None:
    assert compiled(text, no_transaction=no_transaction).statements > 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("SELECT 1;\nSELECT 'it\\'s';", 2),
        ("SELECT\n'ends with \\';", 2),
        ("SELECT 'a\\\\', 'b\\\\\\'';", 1),
        ("SET standard_conforming_strings = on;\n\nSELECT 'C:\\dir';", 3),
        ("SELECT 'C:\\\\dir\\n', E'it\\'s', $$'\\'$$, 'it''s \\\\';", None),
        ("SELECT 'plain';", None),
    ],
)
def test_a_string_that_a_default_changes_is_found(text: str, line: int | None) -> None:
    problem = misread_by_default(Source(PATH, text), at_once=True)

    assert (problem and problem.line) == line


def test_a_file_that_runs_statement_by_statement_may_switch_the_default_on_again() -> None:
    text = "SET standard_conforming_strings = on;\nSELECT 'C:\\dir', 'it is a \\';"

    assert misread_by_default(Source(PATH, text), at_once=False) is None


def test_a_setting_that_forbids_escaped_quotes_behind_it_is_refused_with_its_line() -> None:
    text = "SELECT E'it\\'s';\nSET backslash_quote = off;\nSELECT E'it\\'s';"

    with pytest.raises(FilesError) as caught:
        compiled(text)

    assert [problem.line for problem in caught.value.problems] == [2]
    assert compiled(text, no_transaction=True).statements == 3
    assert compiled(text.replace("\\'s';", "''s';")).statements == 3


@pytest.mark.parametrize(
    "setting", ["SET client_encoding = 'LATIN1'", "SET NAMES 'EUC_JP'", "set client_encoding to win1252"]
)
def test_another_encoding_is_refused_where_it_would_change_the_text(setting: str) -> None:
    text = f"{setting};\nSELECT 'é';"

    assert compiled(text).statements == 2
    with pytest.raises(FilesError, match="client_encoding"):
        compiled(text, no_transaction=True)


def test_digests_ignore_line_endings() -> None:
    text = "SELECT 'a\nb';\nSELECT -- c\n 2;\n"
    windows = text.replace("\n", "\r\n")

    assert list(digests(compiled(windows, no_transaction=True))) == list(digests(compiled(text, no_transaction=True)))


def test_digests_know_where_a_statement_ends() -> None:
    one = list(digests(compiled("SELECT 12; SELECT 3", no_transaction=True)))
    other = list(digests(compiled("SELECT 12S; ELECT 3", no_transaction=True)))

    assert one[-1] != other[-1]


def test_a_python_migration_is_one_statement_in_a_transaction() -> None:
    script = python("async def up(connection):\n    await connection.execute('SELECT 1')\n")

    assert (script.mode, script.statements, script.segments) == (Mode.TRANSACTION, 1, ())


def test_a_plain_function_is_refused_with_its_line() -> None:
    problem = python_problem_of('"""Seeds."""\n\n\ndef up(connection):\n    pass\n')

    assert problem.line == 4
    assert "async def up(connection)" in problem.cure


def test_a_syntax_error_is_refused_with_its_line() -> None:
    problem = python_problem_of("async def up(connection):\n    return (\n")

    assert problem.line == 2


@pytest.mark.parametrize("text", ["", "async def down(connection): ...\n", "class A:\n    async def up(self): ...\n"])
def test_a_python_migration_without_up_is_refused(text: str) -> None:
    problem = python_problem_of(text)

    assert problem.message == "no function 'up'"
    assert problem.cure == "write 'async def up(connection)'"


def test_a_python_migration_without_down_is_refused_only_on_the_way_down() -> None:
    text = "async def up(connection): ...\n"

    assert python(text)
    assert python_problem_of(text, Direction.DOWN).message == "no function 'down'"


@pytest.mark.parametrize(
    ("sql", "loads"),
    [
        ("ALTER EXTENSION timescaledb UPDATE;", True),
        ("alter\n-- now\nextension/**/x update to '2';", True),
        ("SELECT 1; DO $$BEGIN EXECUTE 'ALTER EXTENSION ' || 'x' || ' UPDATE'; END$$;", True),
        ("ALTER EXTENSION x ADD TABLE t; UPDATE t SET a = 1;", False),
        ("ALTER DATABASE app SET search_path TO hello;", False),
        ("ALTER TABLE extension ADD update int;", False),
    ],
)
def test_a_script_that_may_load_another_library_is_known_by_its_text(sql: str, loads: bool) -> None:  # noqa: FBT001 - a case
    script = compile_script(Source("x.sql", sql), Kind.SQL, Direction.UP)
    assert loads_another_library(script) is loads


def test_a_python_migration_cannot_do_without_a_transaction() -> None:
    with pytest.raises(FilesError, match="always runs in a transaction"):
        python("async def up(connection): ...\n", no_transaction=True)


@pytest.mark.parametrize("quote", ["'", "$$"])
def test_a_line_in_a_string_is_sent_as_it_is_written(quote: str) -> None:
    statement = f"SELECT {quote}\n\\restrict a\n{quote}"

    assert pieces(compiled(statement)) == [statement]


def test_a_transaction_around_several_statements_that_refuse_it_is_named() -> None:
    assert "other" not in problem_of(f"BEGIN;\n{CONCURRENTLY};\nVACUUM;\nCOMMIT;").message
