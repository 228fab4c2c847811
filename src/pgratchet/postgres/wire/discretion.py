"""What of an error goes into the history, which readers and other runners see: nothing that came from a row.

Whoever runs the migration is told everything.
"""

import re

import asyncpg

from pgratchet.core.model import Failure
from pgratchet.core.printing import printable
from pgratchet.postgres.link.own import UnreadableError

_ANYBODYS = ("38", "39", "F0", "HV", "P0", "XX")
"""Classes of SQLSTATE whose messages are those of functions, extensions and other servers: they may say anything."""

_DATA = "22"
"""The class whose messages quote values: they come behind a quotation mark, a colon or as a number."""

_MARKS = '"«»„“”「」'
_VALUE = re.compile(f"['\u2018\u2019:\uff1a({_MARKS}]|(?<!\\$)\\b\\d")
_QUOTED = re.compile(f"[{_MARKS}]([^{_MARKS}]*)[{_MARKS}]")
_ALL_QUOTED = re.compile(f"[{_MARKS}].*[{_MARKS}]|[{_MARKS}].*", re.DOTALL)
_NUMBER = re.compile(r"\b\d[\d.]*")
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def recordable(failure: Failure, cause: BaseException, source: str) -> str:
    """Return what the history is to say of a failure of the file with that text: printable, in one line.

    The file's own words stay, and those of the server that hold no value; for all else stands the kind of the error.
    """
    code = f" ({failure.sqlstate})" if failure.sqlstate else ""
    line = f", line {failure.line}" if failure.line is not None else ""
    return printable(f"{_words(failure, cause, source)}{code}{line}")


def _words(failure: Failure, cause: BaseException, source: str) -> str:
    kind = type(cause).__name__
    if isinstance(cause, UnreadableError):
        return cause.SENTENCE
    if isinstance(cause, asyncpg.PostgresError):
        return _of_server(failure, cause, source) or _CAPITAL.sub(" ", kind).lower()
    said = failure.message.removeprefix(f"{kind}: ")
    # What is not behind the name of an exception is a sentence of ours.
    return failure.message if said == failure.message or _is_literal(said, source) else kind


def _of_server(failure: Failure, error: asyncpg.PostgresError, source: str) -> str:
    """Return what may be said of a message; empty for nothing, as one with a context may be anybody's."""
    message, kind = failure.message, (failure.sqlstate or "")[:2]
    if _is_literal(message, source):
        return message
    if failure.context or kind in _ANYBODYS or isinstance(error, asyncpg.UnknownPostgresError):
        return ""
    if kind == _DATA:
        return _VALUE.split(message, maxsplit=1)[0].strip()
    names = (error.schema_name, error.table_name, error.column_name, error.constraint_name, error.data_type_name)
    known = "\n".join([source, *filter(None, names)])
    message = _NUMBER.sub(lambda found: found[0] if found[0] in known else "...", message)
    words, rest = _QUOTED.findall(message), _QUOTED.sub("", message)
    if all(word.strip() in known for word in words) and not _ALL_QUOTED.search(rest):
        return message
    # To the last mark, as a value may hold some itself.
    return _ALL_QUOTED.sub('"..."', message)


def _is_literal(text: str, source: str) -> bool:
    """Say whether a text stands in quotation marks in a file: then it holds nothing of a row."""
    return any(f"{mark}{text}{mark}" in source for mark in "'\"")
