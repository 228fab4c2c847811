"""Text that parses as SQL and means something else to the tool that it was written for.

That tool may be another one, whose marks the file has, or a template engine. It may be psql: the server reads a message
before it runs any of it, and psql sends each statement alone, so that a setting changes how the next one is read.
"""

import re
from collections.abc import Iterator
from contextlib import suppress

from pgratchet.core.errors import ScriptError
from pgratchet.core.model import Direction, Problem, Source
from pgratchet.core.printing import line_of
from pgratchet.core.sql.statements import Statement, StatementKind, head, line_end, mentions, scan, skip, tokens

_SPLIT = "put the way up into a file that ends in .sql, the way down into one in .down.sql, and remove the marks"
_REMOVE = "remove the line; the file's name and '-- pgratchet:' directives say what pgratchet has to know"
_ONE_BY_ONE = "write '-- pgratchet: no-transaction' in its place"
_CHANGESETS = (
    "write each changeset into a file of its own, its rollback into one that ends in .down.sql, without the marks"
)
_INCLUDED = "write the included files out, and remove the line"

_TOOLS: tuple[tuple[str, str, str], ...] = (
    ("dbmate", r"migrate:(?:up|down)(?: \S+:\S+)*", _SPLIT),
    ("goose", r"\+goose (?:up|down|statementbegin|statementend|no transaction|envsub \w+)", _SPLIT),
    ("sql-migrate", r"\+migrate (?:up|down|statementbegin|statementend)(?: notransaction)?", _SPLIT),
    ("micrate", r"\+micrate (?:up|down|statementbegin|statementend)", _SPLIT),
    ("rambler", r"rambler (?:up|down)(?: no transaction)?", _SPLIT),
    ("tern", r"-- ?create above / drop below ?-*", _SPLIT),
    ("tern", r"-- ?tern: ?disable-tx ?-*", _ONE_BY_ONE),
    ("graphile-migrate", r"! ?(?:previous|hash|message|allowinvalidhash|no-transaction)\b.*", _REMOVE),
    ("graphile-migrate", r"! ?include .*", _INCLUDED),
    ("sqitch", r"(?:deploy \S+ to|revert \S+ from|verify \S+ on) \w+", _SPLIT),
    ("Liquibase", r"liquibase formatted sql\b.*|changeset [^\s:]+:\S.*|rollback (?:empty|\w+\b.*;)", _CHANGESETS),
    ("Atlas", r"atlas:(?:txmode|delimiter|checkpoint|txtar)\b.*|[\w./-]+\.sql --", _REMOVE),
    ("yoyo", r"transactional: ?(?:true|false)", _ONE_BY_ONE),
    ("Drizzle", r"> ?statement-breakpoint", "remove each of these lines"),
)
"""Tools, the line comments that are their marks, without the first `--` and with one blank for many, and the cures."""

_SQLX = "no-transaction"

_FILLER = r"(?:migrat(?:e|ion)s?|scripts?|section|part)"
_HALF = {
    direction: rf"[\W_]*(?:{_FILLER}[\W_]+)?(?:{words})(?:[\W_]+{_FILLER})?[\W_]*"
    for direction, words in ((Direction.UP, "ups?|upgrade"), (Direction.DOWN, "downs?|downgrade|rollback|undo"))
}
"""The headings of node-pg-migrate, Play, MyBatis and many home-made runners; each begins a half of the file."""

_MARK = {
    direction: re.compile(
        "|".join([*(f"({pattern})" for _, pattern, _ in _TOOLS), f"(?P<half>{_HALF[other]})"]), re.IGNORECASE
    )
    for direction, other in ((Direction.UP, Direction.DOWN), (Direction.DOWN, Direction.UP))
}

_EQUALS = r"['\"]?\s*(?:=|\bTO\b|,)\s*['\"]?"
_SETTING = re.compile(
    rf"\bstandard_conforming_strings{_EQUALS}(?P<off>off?|f(?:a(?:l(?:se?)?)?)?|no?|0)\b"
    rf"|\b(?:client_encoding{_EQUALS}|(?:SET|SESSION|LOCAL)\s+NAMES\s+['\"]?)(?!(?:UTF-?8|UNICODE|SQL_ASCII|DEFAULT)\b)(?P<encoding>[\w-]+)",
    re.IGNORECASE | re.ASCII,
)

_PLACES = re.compile(r"--[^\n\r]*|\{")
_LONGEST = 200
"""The most characters of a mark."""


def foreign(source: Source, direction: Direction) -> Iterator[Problem]:
    """Yield the problem of the first mark of another tool or a template in a file; none for pgratchet's own files.

    Only comments count that are nothing but the mark, and text outside of comments, strings and quoted names. A heading
    of the other half counts if a statement stands behind it.
    """
    text = source.text
    # First without regard to strings: nearly all files have nothing that looks like a mark, and this is fast.
    places = (_problem(source, found.start(), direction) for found in _PLACES.finditer(text))
    if "statement-breakpoint" not in text and not any(places):
        return
    with suppress(ScriptError):
        last = max((piece.start for piece in scan(text)), default=0)
        for place in _outside(text):
            problem = _problem(source, place, direction, last)
            if problem is not None:
                yield problem
                return


def _problem(source: Source, place: int, direction: Direction, last: int | None = None) -> Problem | None:
    """Return the problem of the comment or the brace at a place; None for a comment that is no mark."""
    text, path = source.text, source.path
    if text[place] == "{":
        start = place - (text[place - 1 : place] in {"$", "#"})
        said = text[start : min(line_end(text, place), place + 30)]
        message = f"'{said}' is a placeholder of a template, and pgratchet sends files as they are"
        return Problem(path, message, "write its value, or fill the template in before", line_of(text, place))
    end = min(line_end(text, place), place + _LONGEST)
    said = " ".join(text[place + 2 : end].split())
    if place == 0 and said == _SQLX:
        message, cure = f"'-- {said}' is a mark of sqlx, which pgratchet does not read", _ONE_BY_ONE
    elif (found := _MARK[direction].fullmatch(said)) is None:
        return None
    elif found.lastgroup == "half":
        if last is not None and place > last:
            return None
        message = f"'-- {said}' begins another half, as in files of node-pg-migrate, and both halves would run"
        cure = _SPLIT
    else:
        tool, _, cure = _TOOLS[(found.lastindex or 1) - 1]
        message = f"'{text[place:end].strip()}' is a mark of {tool}, which pgratchet does not read"
    return Problem(path, message, cure, line_of(text, place))


def _outside(text: str) -> Iterator[int]:
    """Yield the place of each line comment, and of each brace that is in no comment, string or quoted name."""
    position = 0
    for piece in scan(text):
        yield from _comments(text, position, piece.start)
        position = piece.start
        if piece.kind is StatementKind.SQL:
            for lexeme, begin, end in tokens(text, piece.start, piece.end):
                yield from _comments(text, position, begin)
                position = end
                if lexeme == "{":
                    yield begin
        position = piece.end
    yield from _comments(text, position, len(text))


def _comments(text: str, start: int, end: int) -> Iterator[int]:
    """Yield the place of each line comment between two tokens."""
    position = start
    while position < end:
        if text.startswith("--", position):
            yield position
            position = line_end(text, position)
        elif text.startswith("/*", position):
            position = skip(text, position, position)
        else:
            position += 1


def misread(source: Source, *, at_once: bool) -> Iterator[Problem]:
    """Yield a problem for each setting by which psql would read the rest of the file otherwise.

    In a file that is sent `at_once`, the rest has been converted before the encoding changes.
    """
    text = source.text
    if not mentions(text, "STANDARD_CONFORMING_STRINGS", "CLIENT_ENCODING", "NAMES") or not _SETTING.search(text):
        return
    try:
        for piece in scan(text):
            found = _SETTING.search(text, piece.start, piece.end)
            if found is None or not _sets(text, piece):
                continue
            if found["off"] and _has_backslash(text, piece.end):
                message = (
                    "standard_conforming_strings = off changes the meaning of backslashes in the strings behind it"
                )
                cure = "remove it, and write strings with backslashes as E'...'"
                yield Problem(source.path, message, cure, piece.line)
            if found["encoding"] and not at_once and not text[piece.end :].isascii():
                message = f"client_encoding = {found['encoding']} changes the characters behind it: the file is UTF-8"
                yield Problem(source.path, message, "remove it", piece.line)
    except ScriptError:
        return


def _sets(text: str, piece: Statement) -> bool:
    words = head(text, piece.start, piece.end, 4)
    return piece.kind is StatementKind.SQL and (words[:1] == ("SET",) or "SET_CONFIG" in words)


def _has_backslash(text: str, start: int) -> bool:
    """Return whether a string without a prefix, behind a place, has a backslash in it."""
    try:
        strings = ((begin, end) for lexeme, begin, end in tokens(text, start, len(text)) if lexeme == "'")
        return any(text[begin] == "'" and "\\" in text[begin:end] for begin, end in strings)
    except ScriptError:
        return True
