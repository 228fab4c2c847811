import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pgratchet.core.errors import ScriptError
from pgratchet.core.sql.statements import StatementKind, head, mentions, scan, skip, tokens

CASES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("split_cases.json").read_text("utf-8"))


def texts(sql: str) -> list[str]:
    return [sql[piece.start : piece.end] for piece in scan(sql)]


def words(sql: str, limit: int = 16) -> tuple[str, ...]:
    (statement,) = scan(sql)
    return head(sql, statement.start, statement.end, limit)


@pytest.mark.parametrize("at", [0, 1, (1 << 20) - 3, 1 << 20, 3 << 20])
def test_a_word_is_found_in_any_case_and_at_any_place(at: int) -> None:
    text = "x" * at + "client_Encoding" + "x" * 99

    assert mentions(text, "OTHER", "CLIENT_ENCODING")
    assert not mentions(text, "OTHER")
    assert not mentions("", "OTHER")


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_a_script_is_cut_as_psql_cuts_it(case: dict[str, Any]) -> None:
    sql = case["sql"]
    if case["error"]:
        with pytest.raises(ScriptError, match=case["error"]):
            list(scan(sql))
        return

    found = [
        {
            "kind": piece.kind,
            "text": sql[piece.start : piece.end],
            "start": piece.start,
            "end": piece.end,
            "byte_start": len(sql[: piece.start].encode()),
            "byte_end": len(sql[: piece.end].encode()),
            "line": piece.line,
        }
        for piece in scan(sql)
    ]

    assert found == case["expect"]


@pytest.mark.parametrize(
    ("sql", "message", "offset"),
    [
        ("select 1; select 'a''b", "unterminated quoted string", 17),
        ("select date'abc", "unterminated quoted string", 11),
        ("select E'a\\'", "unterminated quoted string", 8),
        ("select E'a\\", "unterminated quoted string", 8),
        ("select E'a'\n 'b\\'", "unterminated quoted string", 8),
        ('select 1 as "a; select 2', "unterminated quoted identifier", 12),
        ('select """', "unterminated quoted identifier", 7),
        ("select 1 /* a /* b */", "unterminated /* comment", 9),
        ("/* a", "unterminated /* comment", 0),
        ("do $a$ begin end $b$ $A$", "unterminated dollar-quoted string $a$", 3),
        ("create function f() begin atomic select 'x", "unterminated quoted string", 40),
        ("alter /* x", "unterminated /* comment", 6),
    ],
)
def test_a_quote_that_is_never_closed_is_an_error_at_its_beginning(sql: str, message: str, offset: int) -> None:
    with pytest.raises(ScriptError) as caught:
        list(scan(sql))

    assert (str(caught.value), caught.value.offset) == (message, offset)


def test_statements_before_an_error_are_read_first() -> None:
    pieces = scan("select 1; select 'x")

    assert next(pieces)[1:3] == (0, 8)
    with pytest.raises(ScriptError):
        next(pieces)


@pytest.mark.parametrize(
    "sql",
    [
        "select 'a;b'",
        "select 'a;''b;'",
        "select E'a\\';b'",
        "select E'a;\\''\n -- c\n 'b\\';c'",
        "select U&'a\\;b'",
        'select "a;""b;" from t',
        'select U&"a\\;b" from t',
        "select $$a;b$$",
        "select $é$;$$;$é$",
        "select $a$;$b$a$",
        "select $$a$$||$b$;$b$",
        "select 1$$;$$",
        "select 'x'$$;$$",
        "select $1$$;$$",
        "select -- ;\n 1",
        "select /* ; /* ; */ ; */ 1",
        "select '" + "a''b" * 300 + ";'",
        "select " + "';'," * 2500 + "1",
        "select " + "1 - 1 / 1 ," * 2500 + "';'",
    ],
)
def test_a_semicolon_in_a_string_a_name_or_a_comment_does_not_end_a_statement(sql: str) -> None:
    assert texts(f"{sql}; select 2") == [sql, "select 2"]


@pytest.mark.parametrize(
    "first",
    [
        "select a$b$",
        "select é$b$",
        "select a1$$",
        "select date'a\\'",
        "select x_e'\\'",
        "select éE'\\'",
        "select a$e'\\'",
        "select 'a'\n 'b\\'",
        "select E'a' -- no line between\t'",
        "select 5 -1 /2",
        "select $a",
        "select $1, $2",
    ],
)
def test_text_that_only_looks_like_a_quote_does_not_hide_a_semicolon(first: str) -> None:
    assert len(texts(f"{first}\n; select $b$x$b$, $$y$$")) == 2


@pytest.mark.parametrize(
    "sql",
    [
        "create rule r as on insert to t do also (insert into a values (1); insert into b values (2))",
        "create or replace rule r as on insert to t do (select 1; select 2)",
        "create function f() returns int begin atomic select 1; select 2; end",
        "create or replace procedure p() begin atomic end",
        "create procedure p() begin atomic select 1 as end; select case when true then 1 end; end",
        "create /* x */ function -- y\n f() returns int begin/**/atomic select 1;/**/end",
        "create function f(begin atomic) returns int begin atomic select 1; end",
        "create schema s create function f() begin atomic select 1; end create procedure p() begin atomic end",
    ],
)
def test_the_statements_inside_a_rule_or_a_routine_belong_to_it(sql: str) -> None:
    assert texts(f"{sql}; select 3;") == [sql, "select 3"]


@pytest.mark.parametrize(
    "sql",
    [
        "create function f(begin atomic) returns int language sql as 'select 1'",
        "create function f() returns int language sql return 1",
        "create table function (begin int, atomic int)",
        "create trigger function after insert on t for each row execute function begin()",
        "create view rule as select ((1)",
        "create rule r as on insert to t do )",
        "create function f(a int returns int",
        "select (1",
        "begin",
    ],
)
def test_other_statements_end_at_their_first_semicolon(sql: str) -> None:
    assert texts(f"{sql}; select 3;") == [sql, "select 3"]


def test_a_routine_that_never_ends_takes_the_rest() -> None:
    sql = "create function f() begin atomic select 1; select 2;"

    assert texts(sql) == [sql]


def test_comments_and_blanks_around_a_statement_are_not_part_of_it() -> None:
    sql = "-- a\n/* b */\n\tselect 1 /* c */ + 1 -- d\n /* e */ -- f\r\n;/* g */"

    assert texts(sql) == ["select 1 /* c */ + 1"]
    assert [piece.line for piece in scan(sql)] == [3]


def test_a_byte_order_mark_is_a_blank_at_the_beginning_only() -> None:
    assert texts("\ufeffselect 1;\n\ufeffselect 2") == ["select 1", "\ufeffselect 2"]


def test_a_no_break_space_is_a_letter() -> None:
    assert texts("select 1; \u00a0 ;") == ["select 1", "\u00a0"]


def test_a_command_to_psql_is_the_rest_of_its_line() -> None:
    sql = "\\set x 'a;\nselect 1 \\gexec ;\r\nselect 2 + \\; 3"

    assert texts(sql) == ["\\set x 'a;", "select 1", "\\gexec ;", "select 2 +", "\\; 3"]
    assert [piece.kind for piece in scan(sql)] == ["meta", "sql", "meta", "sql", "meta"]


def test_copy_data_reach_to_the_line_with_backslash_and_dot() -> None:
    sql = "copy t from stdin; -- rows\r\na;'b\n\\.x\n\\.\r\nselect 1"

    assert texts(sql) == ["copy t from stdin", "a;'b\n\\.x\n", "select 1"]
    assert [piece.line for piece in scan(sql)] == [1, 2, 5]


def test_copy_data_without_an_end_are_the_rest() -> None:
    assert texts("copy t from stdin;\n1\n2") == ["copy t from stdin", "1\n2"]
    assert texts("copy t from stdin;\n\\.\n") == ["copy t from stdin", ""]


def test_there_are_no_data_behind_a_copy_that_does_not_end_its_line() -> None:
    assert texts("copy t from stdin; select 1;") == ["copy t from stdin", "select 1"]
    assert texts("copy t from stdin") == ["copy t from stdin"]


def test_the_first_words_leave_comments_and_parentheses_out() -> None:
    sql = 'create /* x */ index concurrently if not exists "My""I" on s.Straße (a, (b)) where c = E\'\\\'\' -- y'
    expected = ("CREATE", "INDEX", "CONCURRENTLY", "IF", "NOT", "EXISTS", '"My""I"', "ON", "S", ".", "STRAßE")

    assert words(sql, 11) == expected
    assert words(sql) == (*expected, "(", ")", "WHERE", "C", "=")
    assert words(sql, 99)[-1] == "'"
    assert words("U&\"a\" U&'b' $1") == ('U&"a"', "'", "$", "1")


def test_the_first_words_of_a_routine_end_at_the_first_semicolon_of_its_body() -> None:
    sql = "create function f() begin atomic select 1; select 2; end"

    assert words(sql, 99)[-2:] == ("SELECT", "1")


@pytest.mark.parametrize(
    "repeated",
    ["/* x */ 1, ", "E'a' 'x' ", "a$b$ ", "$ ", "'a''b' ", "E'a'\n -- c\n", "- / ", "date'x' ", "1 --\n"],
)
def test_no_part_of_a_long_statement_is_read_twice(repeated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []

    def recorded(text: str, floor: int, begin: int) -> int:
        end = skip(text, floor, begin)
        read.append((begin, end))
        return end

    monkeypatch.setattr("pgratchet.core.sql.statements.skip", recorded)
    list(scan("select " + repeated * 3000))

    assert all(end <= begin for (_, end), (begin, _) in pairwise(read))


def test_a_body_of_many_statements_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def recorded(text: str, start: int, end: int) -> Iterator[tuple[str, int, int]]:
        for lexeme in tokens(text, start, end):
            read.append(lexeme[1])
            yield lexeme

    monkeypatch.setattr("pgratchet.core.sql.statements.tokens", recorded)
    list(scan("create procedure p() begin atomic " + "select 1;" * 3000 + " end;"))

    # Its kind is found by a look at its first words.
    body = read[4:]
    assert sorted(set(body)) == body


def test_the_kinds_of_pieces_are_plain_words() -> None:
    assert list(StatementKind) == ["sql", "copy", "meta"]
