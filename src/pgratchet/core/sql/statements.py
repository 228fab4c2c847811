"""SQL text to statements: where each begins and ends, its line, and what it does to transactions.

Nothing is rewritten. The cuts are psql's, but for one: parentheses that are never closed do not swallow
the statements behind them.
"""

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from pgratchet.core.sql.classification import HARMLESS, Verdict, judge, matters, nesting_kind
from pgratchet.core.sql.lexing import BLANKS, gap_end, head, line_end, match_end, skip, tokens


class StatementKind(StrEnum):
    """What a piece of a script is: SQL, the data behind a COPY, or a command to psql."""

    SQL = "sql"
    COPY = "copy"
    META = "meta"


class Statement(NamedTuple):
    """One piece of a script, without comments around it and without its semicolon.

    Offsets are in characters, lines count from 1. `refuses` names what refuses to run in a transaction
    block, `controls` what begins or ends a transaction; a statement that `reads_stdin` waits for the client.
    """

    kind: StatementKind
    start: int
    end: int
    line: int
    refuses: str | None
    controls: str | None
    reads_stdin: bool


_OPENING = re.compile(rf"([A-Za-z]+)(?:[{BLANKS}]+([A-Za-z]+))?")
_BLANKS = re.compile(rf"[{BLANKS}]*")
_ENDS = frozenset(";\\")
_MARKS = frozenset("'\"$-/")

# What needs no further look: text, whole strings and names. The count is bounded, because what a greedy
# repeat has passed it remembers, and the possessive one that would not is broken before Python 3.11.5.
_PLAIN = re.compile(
    r"""[^'"$;\\/-]*(?:(?:(?<![eE])'[^']*+(?:''[^']*+){0,99}'(?!')|"[^"]*+"(?!")|-(?!-)|/(?!\*))"""
    r"""[^'"$;\\/-]*){0,1000}"""
)
_COPY_LINE_REST = re.compile(r"(?:[ \t\r\f\v;]|--[^\n\r]*(?![^\n\r]))*(?:\n|\Z)")
_COPY_END = re.compile(r"^\\\.\r?$", re.MULTILINE)


def split(text: str) -> tuple[Statement, ...]:
    """Return every piece of the script; raises as `scan` does."""
    return tuple(scan(text))


def scan(text: str) -> Iterator[Statement]:
    """Yield the pieces in order, each as soon as it is read.

    Raises ScriptError at a string, a quoted name or a comment that is never closed.
    """
    position = 1 if text.startswith("\ufeff") else 0
    line, counted = 1, 0
    while (start := gap_end(text, position)) < len(text):
        line += text.count("\n", counted, start)
        counted = start
        if text[start] == ";":
            position = start + 1
        elif text[start] == "\\":
            position = line_end(text, start)
            yield Statement(StatementKind.META, start, position, line, *HARMLESS)
        else:
            end, stop, verdict = _read(text, start)
            position = stop + 1 if text.startswith(";", stop) else stop
            yield Statement(StatementKind.SQL, start, end, line, *verdict)
            if verdict.reads_stdin and (data := _copy_data(text, stop)):
                begin, finish, position = data
                data_line = line + text.count("\n", start, begin)
                yield Statement(StatementKind.COPY, begin, finish, data_line, *HARMLESS)


def words(text: str, statement: Statement, limit: int = 16) -> tuple[str, ...]:
    """Return the statement's first words and signs outside parentheses, at most `limit`.

    Words are in upper case, quoted names as they are written; a string constant is a single quote.
    """
    return head(text, statement.start, statement.end, limit)


def _read(text: str, start: int) -> tuple[int, int, Verdict]:
    """Return where a statement ends, where reading it stopped (a semicolon, mostly), and what it does."""
    opening = _OPENING.match(text, start)
    if opening is None:
        return *_bounds(text, start), HARMLESS
    first, second = opening.groups()
    first = first.upper()
    if not matters(first, second and second.upper()):
        return *_bounds(text, start), HARMLESS
    if first == "CREATE" and (kind := nesting_kind(text, start)):
        return *_nested_bounds(text, start, kind), HARMLESS
    end, stop = _bounds(text, start)
    return end, stop, judge(text, start, end)


def _bounds(text: str, start: int) -> tuple[int, int]:
    stop = match_end(_PLAIN, text, start)
    if text.startswith(";", stop) and text[stop - 1] not in BLANKS:
        return stop, stop
    end = position = start
    while True:
        stop = match_end(_PLAIN, text, position)
        if match_end(_BLANKS, text, position) < stop:
            end = stop
        if stop == len(text) or text[stop] in _ENDS:
            return _trimmed(text, end), stop
        if text[stop] in _MARKS:
            position = skip(text, position, stop)
            if not text.startswith(("--", "/*"), stop):
                end = position
        else:
            position = stop


def _nested_bounds(text: str, start: int, kind: str) -> tuple[int, int]:
    """Return the bounds of a statement that may hold others: in parentheses, or between BEGIN ATOMIC and END.

    An END is the closing one if and only if it follows a semicolon or ATOMIC: by the grammar, no count of
    CASE and END is needed, and a column may be called end.
    """
    end = start
    depth, atomic, previous = 0, False, ""
    for lexeme, begin, finish in tokens(text, start, len(text)):
        if lexeme in _ENDS and not (lexeme == ";" and (atomic or (depth and kind == "RULE"))):
            return end, begin
        if lexeme == "(":
            depth += 1
        elif lexeme == ")":
            depth = max(depth - 1, 0)
        elif depth == 0 and atomic:
            atomic = not (lexeme == "END" and previous in {";", "ATOMIC"})
        elif depth == 0:
            atomic = lexeme == "ATOMIC" and previous == "BEGIN"
        end, previous = finish, lexeme
    return end, len(text)


def _copy_data(text: str, stop: int) -> tuple[int, int, int] | None:
    """Return the bounds of the data behind a COPY that stops at `stop`, and where SQL goes on.

    There are data only where the COPY ends its line.
    """
    rest = _COPY_LINE_REST.match(text, stop + 1)
    if rest is None or not text.startswith(";", stop):
        return None
    terminator = _COPY_END.search(text, rest.end())
    if terminator is None:
        return rest.end(), len(text), len(text)
    return rest.end(), terminator.start(), terminator.end()


def _trimmed(text: str, end: int) -> int:
    while text[end - 1] in BLANKS:
        end -= 1
    return end
