"""Settings in a file that change how the server reads the text behind them.

It reads a message before it runs any of it. So psql, which sends each statement alone, would give the file another
effect.
"""

import re
from collections.abc import Iterator

from pgratchet.core.errors import ScriptError
from pgratchet.core.model import Problem, Source
from pgratchet.core.sql.statements import Statement, StatementKind, head, mentions, scan, tokens

_EQUALS = r"['\"]?\s*(?:=|\bTO\b|,)\s*['\"]?"
_SETTING = re.compile(
    rf"\bstandard_conforming_strings{_EQUALS}(?P<off>off?|f(?:a(?:l(?:se?)?)?)?|no?|0)\b"
    rf"|\b(?:client_encoding{_EQUALS}|(?:SET|SESSION|LOCAL)\s+NAMES\s+['\"]?)(?!(?:UTF-?8|UNICODE|SQL_ASCII|DEFAULT)\b)(?P<encoding>[\w-]+)",
    re.IGNORECASE | re.ASCII,
)


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
