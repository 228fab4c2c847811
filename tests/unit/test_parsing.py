import hashlib

import pytest

from pgratchet.core.model import File, Kind, Options, Problem, Source
from pgratchet.core.printing import line_of
from pgratchet.files.layouts.own import own
from pgratchet.files.parsing import BYTE_ORDER_MARK, Content, read

PATH = "migrations/007_add_users.sql"


def content_of(content: str | bytes, kind: Kind = Kind.SQL) -> Content:
    body = content.encode() if isinstance(content, str) else content
    return read(File("007_add_users.sql", PATH, body), kind, "7", own)


def read_sql(content: str | bytes) -> Content:
    """Return what is read of a file that nothing is wrong with."""
    found = content_of(content)
    assert found.problems == ()
    return found


def read_python(content: str) -> Content:
    found = content_of(content, Kind.PYTHON)
    assert found.problems == ()
    return found


def problem_of(content: str | bytes, kind: Kind = Kind.SQL) -> Problem:
    (problem,) = content_of(content, kind).problems
    return problem


def test_a_checksum_is_sha256_of_the_content() -> None:
    assert read_sql("SELECT 1;\n").checksum == hashlib.sha256(b"SELECT 1;\n").hexdigest()


@pytest.mark.parametrize(
    "content",
    [b"SELECT 1;\r\nSELECT 2;\r\n", BYTE_ORDER_MARK + b"SELECT 1;\nSELECT 2;\n", b"SELECT 1;\r\nSELECT 2;\n"],
    ids=["CRLF", "BOM", "mixed"],
)
def test_line_endings_and_a_byte_order_mark_do_not_change_the_checksum(content: bytes) -> None:
    assert read_sql(content).checksum == read_sql("SELECT 1;\nSELECT 2;\n").checksum


def test_sql_keeps_its_line_endings_and_python_reads_all_as_lf() -> None:
    text = "x\r\ny\r\n"

    assert read_sql(BYTE_ORDER_MARK + text.encode()).source.text == text
    assert content_of(text, Kind.PYTHON).source.text == "x\ny\n"


@pytest.mark.parametrize("content", ["SELECT 2;\n", "SELECT 1; \n", "SELECT 1;", "-- a\nSELECT 1;\n"])
def test_any_other_change_is_another_checksum(content: str) -> None:
    assert read_sql(content).checksum != read_sql("SELECT 1;\n").checksum


def test_a_carriage_return_alone_is_kept() -> None:
    assert read_sql("SELECT 'a\rb';").source.text == "SELECT 'a\rb';"


@pytest.mark.parametrize("content", ["", "\n\n", "-- nothing here", "/* nothing\nhere */", "SELECT 1"])
def test_empty_and_unfinished_files_are_fine(content: str) -> None:
    assert read_sql(content).source.text == content


def test_text_beyond_ascii_is_read_as_utf8() -> None:
    assert read_sql("-- Größe 😀".encode()).source.text == "-- Größe 😀"


def test_a_file_that_is_not_utf8_is_refused_with_its_line_and_byte() -> None:
    problem = problem_of(b"-- fine\r\n-- Gr\xf6\xdfe\n")

    assert (problem.path, problem.line) == (PATH, 2)
    assert "0xf6" in problem.message
    assert "UTF-8" in problem.cure


def test_a_nul_byte_is_refused_with_its_line() -> None:
    problem = problem_of(b"SELECT 1;\n\nSELECT '\0';")

    assert problem.line == 3
    assert "NUL" in problem.message


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-be"])
def test_wide_encodings_are_refused(encoding: str) -> None:
    problem = problem_of("SELECT 1;".encode(encoding))

    assert problem.line == 1
    assert "NUL" in problem.message


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_a_wide_encoding_with_a_byte_order_mark_is_named(encoding: str) -> None:
    problem = problem_of("\ufeffSELECT 1;".encode(encoding))

    assert (problem.path, problem.line) == (PATH, 1)
    assert "UTF-16" in problem.message
    assert "UTF-8" in problem.cure


@pytest.mark.parametrize(
    "body",
    [
        b"-- pgratchet: no-transactions\n-- Version: 8\nSELECT '\xff';",
        b"-- pgratchet: no-transactions\n-- Version: 8\nSELECT '\0';",
        "\ufeff-- pgratchet: no-transactions\n-- Version: 8\n".encode("utf-16-le"),
    ],
    ids=["not UTF-8", "NUL", "UTF-16"],
)
def test_a_file_that_is_no_text_has_one_problem_and_a_checksum(body: bytes) -> None:
    found = content_of(body)

    assert found.source == Source(PATH, "")
    assert found.checksum == hashlib.sha256(body).hexdigest()
    assert len(found.problems) == 1


def test_a_file_with_problems_in_its_head_keeps_its_text_and_the_rest_of_its_options() -> None:
    text = "-- pgratchet: no-transactions\n-- pgratchet: lock-timeout=1s\nSELECT 1;"
    found = content_of(text)

    assert len(found.problems) == 1
    assert found.source == Source(PATH, text, Options(lock_timeout=1.0))


def test_a_file_without_directives_has_no_options() -> None:
    assert read_sql("-- about pgratchet, and its users\nSELECT 1;").source.options == Options()


@pytest.mark.parametrize(
    ("directive", "expected"),
    [
        ("no-transaction", Options(no_transaction=True)),
        ("lock-timeout=5s", Options(lock_timeout=5.0)),
        ("lock-timeout=250ms", Options(lock_timeout=0.25)),
        ("lock-timeout=0", Options(lock_timeout=0.0)),
        ("lock-timeout = 1.5 min", Options(lock_timeout=90.0)),
        ("lock-timeout=2m", Options(lock_timeout=120.0)),
        ("statement-timeout=2h", Options(statement_timeout=7200.0)),
        ("compatible-with=0005", Options(compatible_with="5")),
    ],
)
def test_a_directive_in_the_head_is_an_option(directive: str, expected: Options) -> None:
    assert read_sql(f"-- pgratchet: {directive}\nSELECT 1;").source.options == expected


@pytest.mark.parametrize(("floor", "fine"), [("0", True), ("7", True), ("007", True), ("8", False), ("10", False)])
def test_a_floor_above_the_files_own_version_is_refused(floor: str, *, fine: bool) -> None:
    text = f"-- Migration: x\n-- pgratchet: compatible-with={floor}\nSELECT 1;"

    problems = [(problem.line, problem.message) for problem in content_of(text).problems]

    refusal = (2, f"compatible-with={floor} lies above the file's own version 7")
    assert problems == ([] if fine else [refusal])


@pytest.mark.parametrize(
    "line",
    [
        "--pgratchet:no-transaction",
        "  --  pgratchet :  no-transaction  ",
        "-- pgratchet: no-transaction\r",
        "\ufeff-- pgratchet: no-transaction",
        "-- Pgratchet: no-transaction",
        "-- PGRATCHET: no-transaction",
    ],
)
def test_blanks_around_a_directive_and_the_case_of_its_mark_do_not_matter(line: str) -> None:
    assert read_sql(f"{line}\nSELECT 1;").source.options.no_transaction


def test_the_head_reaches_to_the_first_statement() -> None:
    head = (
        "\n-- Migration: users\n/* by hand\n*/\n\n-- pgratchet: lock-timeout=1s\n-- pgratchet: statement-timeout=2s\n"
    )

    assert read_sql(head + "SELECT 1;").source.options == Options(lock_timeout=1.0, statement_timeout=2.0)


def test_a_file_that_is_all_head_has_its_directives() -> None:
    assert read_sql("-- pgratchet: no-transaction").source.options.no_transaction


def test_python_has_its_directives_behind_a_hash() -> None:
    content = read_python("# pgratchet: statement-timeout=3s\nasync def up(connection): ...\n")

    assert content.source.options == Options(statement_timeout=3.0)


def test_sql_comments_are_no_directives_in_python() -> None:
    assert not read_python("""# about\nTEXT = '-- pgratchet: no-transaction'\n""").source.options.no_transaction


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("no-transactions", "no-transaction"),
        ("no_transaction", "no-transaction"),
        ("notransaction", "no-transaction"),
        ("lock_timeout=1s", "lock-timeout"),
        ("statment-timeout=1s", "statement-timeout"),
        ("compatible=3", "compatible-with"),
    ],
)
def test_a_misspelt_directive_is_refused_and_the_right_one_suggested(written: str, meant: str) -> None:
    problem = problem_of(f"-- Migration: users\n-- pgratchet: {written}\nSELECT 1;")

    assert (problem.path, problem.line) == (PATH, 2)
    assert "unknown directive" in problem.message
    assert problem.cure == f"did you mean '{meant}'?"


@pytest.mark.parametrize("written", ["xyzzy", "", "=", "fast=true"])
def test_an_unknown_directive_is_refused_with_those_that_exist(written: str) -> None:
    problem = problem_of(f"-- pgratchet: {written}\nSELECT 1;")

    assert "unknown directive" in problem.message
    for known in ("no-transaction", "lock-timeout", "statement-timeout", "compatible-with"):
        assert known in problem.cure


@pytest.mark.parametrize(
    "directive",
    [
        "no-transaction=yes",
        "no-transaction=",
        "lock-timeout",
        "lock-timeout=",
        "lock-timeout=soon",
        "lock-timeout=-1s",
        "lock-timeout=5 parsecs",
        "statement-timeout=1e3",
        "compatible-with",
        "compatible-with=",
        "compatible-with=v2",
        "compatible-with=-1",
    ],
)
def test_a_directive_with_a_wrong_value_is_refused(directive: str) -> None:
    problem = problem_of(f"-- pgratchet: {directive}\n")

    assert problem.line == 1
    assert directive.partition("=")[0] in problem.message
    assert "unknown" not in problem.message


def test_a_directive_without_its_colon_is_refused() -> None:
    problem = problem_of("-- pgratchet no-transaction\nSELECT 1;")

    assert "colon" in problem.message
    assert "pgratchet:" in problem.cure


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("SELECT 1;\n\n-- pgratchet: no-transaction\nSELECT 2;\n", 3),
        ("VACUUM; SELECT 1; -- pgratchet: no-transaction", 1),
        ("SELECT 1; /*\n-- pgratchet: no-transaction */", 2),
        ("SELECT 1\n-- pgratchet: no-transaction", 2),
        ("SELECT '\n-- pgratchet: no-transaction\n", 2),
    ],
)
def test_a_directive_below_the_head_is_refused_with_its_line(text: str, line: int) -> None:
    problem = problem_of(text)

    assert (problem.path, problem.line) == (PATH, line)
    assert "head" in problem.cure


@pytest.mark.parametrize(
    "text",
    [
        "SELECT '\n-- pgratchet: no-transaction\n';",
        "DO $$\n-- pgratchet: no-transaction\n$$;",
        "CREATE TABLE t (\n    -- pgratchet: is what made it\n    a int);",
        "CREATE FUNCTION f() BEGIN ATOMIC SELECT 1;\n-- pgratchet: no-transaction\nEND;",
    ],
)
def test_a_directive_inside_a_statement_is_its_text(text: str) -> None:
    assert read_sql(text).source.options == Options()


def test_a_comment_inside_a_comment_ends_the_head() -> None:
    text = "/* off: /* really */\n-- pgratchet: no-transaction\n*/\n-- pgratchet: lock-timeout=1s\nSELECT 1;"
    found = content_of(text)

    assert found.source.options == Options()
    assert [problem.line for problem in found.problems] == [2, 4]


def test_a_directive_below_the_head_of_a_python_file_is_refused_with_its_line() -> None:
    text = "# pgratchet: lock-timeout=1s\nimport os\n\nX = 1  # pgratchet: statement-timeout=1s\n"

    assert problem_of(text, Kind.PYTHON).line == 4


def test_prose_about_pgratchet_below_the_head_is_fine() -> None:
    assert read_sql("SELECT 1;\n-- pgratchet runs this in a transaction\n").source.options == Options()


@pytest.mark.parametrize("version", ["7", "007", "0000007"])
def test_a_version_in_the_head_that_agrees_with_the_name_is_fine(version: str) -> None:
    assert read_sql(f"-- Migration: users\n-- Version: {version}\n-- Date: 2026-01-01\n")


@pytest.mark.parametrize("version", ["8", "70", "v7", "7.0", "\u0667", "1" * 5000])
def test_a_version_in_the_head_that_contradicts_the_name_is_refused(version: str) -> None:
    problem = problem_of(f"-- Migration: users\n-- Version: {version}\nSELECT 1;")

    assert (problem.path, problem.line) == (PATH, 2)
    assert version in problem.message
    assert "7" in problem.message


def test_a_version_below_the_head_is_somebody_elses() -> None:
    assert read_sql("SELECT 1;\n-- Version: 8\n")


def test_all_problems_of_a_file_are_told_at_once() -> None:
    found = content_of(
        "-- Version: 9\n-- pgratchet: no-transactions\n-- pgratchet: lock-timeout=x\nSELECT 1;\n"
        "-- pgratchet: no-transaction\n"
    )

    assert sorted(problem.line or 0 for problem in found.problems) == [1, 2, 3, 5]


def test_lines_count_from_one() -> None:
    text = "a\nb\n"

    assert [line_of(text, offset) for offset in range(len(text) + 1)] == [1, 1, 2, 2, 3]


def test_a_number_too_long_for_a_version_is_refused() -> None:
    assert problem_of("-- pgratchet: compatible-with=" + "1" * 19).line == 1


def test_a_directive_in_capitals_below_the_head_is_refused() -> None:
    assert problem_of("SELECT 1;\n-- PGRATCHET: no-transaction").line == 2
