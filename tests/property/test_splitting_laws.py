import re
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from pgratchet.core.errors import ScriptError
from pgratchet.core.sql.statements import Statement, StatementKind, gap_end, scan, tokens

SHREDS_OF_SQL = [
    *"'\"$;\\-/*() \n\r\t\f\vxeE19é\u00a0\ufeff_",
    *("$$", "$a$", "a$b$", "--", "/*", "*/", "''", "\\'", "E'", "U&'", "\r\n", "\\x ", "\n\\.\n"),
    *(" -- c\n", "/* ; */", "'a;b'", "select 1;", "copy t from stdin;\n", "create rule r as "),
    *("create function f() ", "begin atomic ", "end"),
]
NONSENSE = st.lists(st.sampled_from(SHREDS_OF_SQL), max_size=30).map("".join)

WITHOUT_QUOTES = st.text(st.characters(exclude_characters="'\"$\\;-/*", codec="utf-8"), max_size=12)
TAGS = st.from_regex(r"[a-zé_][a-zé_0-9]{0,4}|", fullmatch=True)
ANYTHING = st.text(max_size=8) | st.lists(st.sampled_from(SHREDS_OF_SQL), max_size=8).map("".join)


def dollar_quoted(tag: str, content: str) -> str:
    return f"${tag}${content.replace('$', '')}${tag}$"


QUOTED = st.one_of(
    ANYTHING.map(lambda text: "'" + text.replace("'", "''") + "'"),
    ANYTHING.map(lambda text: "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"),
    ANYTHING.map(lambda text: '"' + text.replace('"', '""') + '"'),
    st.builds(dollar_quoted, TAGS, ANYTHING),
)
COMMENTS = st.one_of(
    ANYTHING.map(lambda text: "--" + re.sub(r"[\r\n]", "", text) + "\n"),
    ANYTHING.map(lambda text: "/*" + re.sub(r"[*/]", "", text) + "*/"),
    st.just("/* /* ' */ $$ */"),
    st.sampled_from([" ", "\n", "\t", "\r\n"]),
)
WORDS = st.sampled_from(["select", "1", "x", "a$b", "date", "case", "end", "begin", "vacuum", "é", "(", ")", "+", "-"])

STATEMENTS = st.one_of(
    st.lists(QUOTED | COMMENTS | WORDS, max_size=6).map(lambda parts: " , ".join(["select", *parts, "z"])),
    QUOTED.map(lambda body: f"create function f() returns int language sql as {body}"),
    st.lists(QUOTED, max_size=3).map(
        lambda parts: f"create procedure p() begin atomic {''.join(f'select {part};' for part in parts)} end"
    ),
    st.lists(QUOTED, max_size=3).map(
        lambda parts: f"create rule r as on insert to t do ({';'.join(f'select {part}' for part in parts)})"
    ),
)
GAPS = st.lists(COMMENTS, max_size=2).map("".join)
SCRIPTS = st.lists(st.tuples(GAPS, STATEMENTS, GAPS), max_size=4).map(
    lambda parts: "".join(f"{before}{statement}{after};\n" for before, statement, after in parts)
)


def texts(sql: str) -> list[str]:
    return [sql[piece.start : piece.end] for piece in scan(sql)]


def read(sql: str) -> list[Statement]:
    """Return the pieces of any text, up to a quote or a comment that is never closed."""
    pieces: list[Statement] = []
    with suppress(ScriptError):
        pieces.extend(scan(sql))
    return pieces


@given(NONSENSE)
def test_pieces_are_in_order_apart_and_inside_the_text(sql: str) -> None:
    end = 0
    for piece in read(sql):
        assert end <= piece.start <= piece.end <= len(sql)
        assert piece.start < piece.end or piece.kind is StatementKind.COPY
        end = piece.end


@given(NONSENSE)
def test_nothing_is_lost_between_two_pieces(sql: str) -> None:
    end = 1 if sql.startswith("\ufeff") else 0
    for piece in read(sql):
        gap, position = sql[end : piece.start].removeprefix("\\."), 0
        while (position := gap_end(gap, position)) < len(gap):
            assert gap[position] == ";"
            position += 1
        end = piece.end


@given(NONSENSE)
def test_the_line_of_a_piece_is_the_number_of_line_feeds_before_it(sql: str) -> None:
    for piece in read(sql):
        assert piece.line == sql.count("\n", 0, piece.start) + 1


@given(NONSENSE)
def test_a_piece_begins_and_ends_with_a_token(sql: str) -> None:
    for piece in read(sql):
        if piece.kind is StatementKind.SQL:
            bounds = [(begin, end) for _, begin, end in tokens(sql, piece.start, piece.end)]
            assert (bounds[0][0], bounds[-1][1]) == (piece.start, piece.end)


@given(st.lists(st.tuples(GAPS, STATEMENTS, GAPS), max_size=5))
def test_statements_come_out_as_they_were_put_in(parts: list[tuple[str, str, str]]) -> None:
    script = ";".join(f"{before}{statement}{after}" for before, statement, after in parts)

    assert texts(script) == [statement for _, statement, _ in parts]


@given(SCRIPTS)
def test_a_script_that_was_split_and_joined_is_split_the_same(script: str) -> None:
    pieces = texts(script)

    assert texts(";\n".join(pieces)) == pieces


@given(SCRIPTS, SCRIPTS)
def test_two_scripts_in_a_row_are_the_statements_of_both(one: str, other: str) -> None:
    assert texts(one + other) == texts(one) + texts(other)


@given(GAPS, SCRIPTS, GAPS)
def test_comments_before_and_behind_a_script_change_nothing(before: str, script: str, behind: str) -> None:
    plain, wrapped = scan(script), scan(before + script + behind)
    shift, lines = len(before), before.count("\n")

    assert list(wrapped) == [
        piece._replace(start=piece.start + shift, end=piece.end + shift, line=piece.line + lines) for piece in plain
    ]


@given(SCRIPTS)
def test_a_comment_behind_the_last_statement_needs_no_semicolon(script: str) -> None:
    assert list(scan(script.removesuffix(";\n") + "\n-- the end")) == list(scan(script))


@given(QUOTED, QUOTED)
def test_a_quoted_semicolon_never_splits(one: str, other: str) -> None:
    assert texts(f"select {one}; select {other}") == [f"select {one}", f"select {other}"]


@given(SCRIPTS)
def test_carriage_returns_before_line_feeds_change_only_offsets(script: str) -> None:
    script = script.replace("\r", "")
    windows = script.replace("\n", "\r\n")

    assert texts(script) == [text.replace("\r\n", "\n") for text in texts(windows)]
    assert [piece[3:] for piece in scan(script)] == [piece[3:] for piece in scan(windows)]


@given(WITHOUT_QUOTES, GAPS)
def test_the_effect_of_a_statement_is_the_same_in_any_letters_and_with_any_comments(table: str, gap: str) -> None:
    for command in ("create index concurrently i on", "vacuum", "copy", "cluster", "commit", "alter system"):
        words = [*command.split(), f'"{table}"', "from", "stdin"]
        (plain,) = scan(" ".join(words))
        (dressed,) = scan(f" {gap} ".join(words))
        (shouted,) = scan(" ".join([*command.upper().split(), *words[-3:]]))

        assert plain[4:] == dressed[4:] == shouted[4:]
