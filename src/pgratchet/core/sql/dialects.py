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
    direction: rf"[\W_]*(?:{_FILLER}[\W_]+)?(?:{words})(?:[\W_]+{_FILLER}(?: ?[:(].*)?)?[\W_]*"
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
_OFF = r"off?|f(?:a(?:l(?:se?)?)?)?|no?|0"
_SETTINGS = "STANDARD_CONFORMING_STRINGS", "BACKSLASH_QUOTE", "CLIENT_ENCODING", "NAMES"
_SETTING = re.compile(
    rf"\bstandard_conforming_strings{_EQUALS}(?:(?P<off>{_OFF})|(?P<on>on|t(?:r(?:ue?)?)?|y(?:es?)?|1))\b"
    rf"|\bbackslash_quote{_EQUALS}(?P<quote>{_OFF})\b"
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


_PLAIN = re.compile(r"'[^\\]*\\")
"""A string without a prefix that has a backslash."""
_ESCAPED_QUOTE = re.compile(r"'(?:[^\\]|\\[^'])*\\'")
"""The same, if it is a quote that the backslash stands before."""
_QUOTE = re.compile(r"[Ee]'(?:[^\\]|\\[^'])*\\'")
"""A string with escapes, one of which is a quote."""


def misread(source: Source, *, at_once: bool) -> Iterator[Problem]:
    """Yield a problem for each setting by which psql would read the rest of the file otherwise.

    A file that is sent `at_once` has been read and converted before it changes anything.
    """
    text = source.text
    if not mentions(text, *_SETTINGS) or not _SETTING.search(text):
        return
    for piece, found in _set(text):
        if found["off"] and _backslash(text, piece.end, len(text)) is not None:
            message = "standard_conforming_strings = off changes the meaning of backslashes in the strings behind it"
            yield Problem(source.path, message, "remove it, and write strings with backslashes as E'...'", piece.line)
        if found["quote"] and at_once and _backslash(text, piece.end, len(text), _QUOTE) is not None:
            message = "backslash_quote = off forbids the \\' in strings behind it"
            yield Problem(source.path, message, "remove it, or write '' in the strings", piece.line)
        if found["encoding"] and not at_once and not text[piece.end :].isascii():
            message = f"client_encoding = {found['encoding']} changes the characters behind it: the file is UTF-8"
            yield Problem(source.path, message, "remove it", piece.line)


def misread_by_default(source: Source, *, at_once: bool) -> Problem | None:
    """Return the problem of a file in a session whose standard_conforming_strings is off, if it has one.

    The server reads most strings there as psql does. But pgratchet would not find the end of one with an escaped quote,
    and a file that is sent `at_once` switches the setting on too late.
    """
    text = source.text
    if "\\" not in text:
        return None
    end = next((piece.end for piece, found in _set(text) if found["on"]), len(text))
    place = _backslash(text, 0, end, _ESCAPED_QUOTE)
    if place is None and at_once:
        place = _backslash(text, end, len(text))
    if place is None:
        return None
    message = (
        "standard_conforming_strings is off by default in this database, for this role or in the DSN: that changes the "
        "meaning of the backslash here"
    )
    return Problem(source.path, message, "write the string as E'...', or take that default away", line_of(text, place))


def _set(text: str) -> Iterator[tuple[Statement, re.Match[str]]]:
    """Yield each statement that sets how text is read, and what it sets; stop where the text cannot be read."""
    with suppress(ScriptError):
        for piece in scan(text):
            found = _SETTING.search(text, piece.start, piece.end)
            words = head(text, piece.start, piece.end, 4)
            if found and piece.kind is StatementKind.SQL and (words[:1] == ("SET",) or "SET_CONFIG" in words):
                yield piece, found


def _backslash(text: str, start: int, end: int, wanted: re.Pattern[str] = _PLAIN) -> int | None:
    """Return the place of the first string in a part that has what is `wanted`; its start if it cannot be read."""
    try:
        strings = (
            begin
            for lexeme, begin, stop in tokens(text, start, end)
            if lexeme == "'" and wanted.match(text, begin, stop)
        )
        return next(strings, None)
    except ScriptError:
        return start
