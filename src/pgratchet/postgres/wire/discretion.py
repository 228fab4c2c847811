"""The part of an error that is recorded in the history, where readers and other runners see it: no data from a row.

The caller of the run gets the whole error.
"""

import re

import asyncpg

from pgratchet.core.causes import inner
from pgratchet.core.model import Failure
from pgratchet.core.printing import printable
from pgratchet.postgres.link.own import UnreadableError

_ANYBODYS = ("38", "39", "F0", "HV", "P0", "XX")
"""Classes of SQLSTATE whose messages come from functions, extensions and other servers, and may hold any text."""

_DATA = "22"
"""The class whose messages quote values: after a quotation mark, after a colon, or as a number."""

_MARKS = '"«»„“”「」'
_VALUE = re.compile(f"['\u2018\u2019:\uff1a({_MARKS}]|(?<!\\$)\\b\\d")
_QUOTED = re.compile(f"[{_MARKS}]([^{_MARKS}]*)[{_MARKS}]")
_ALL_QUOTED = re.compile(f"[{_MARKS}].*[{_MARKS}]|[{_MARKS}].*", re.DOTALL)
_NUMBER = re.compile(r"\b\d[\d.]*")
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def recordable(failure: Failure, cause: BaseException, source: str) -> str:
    """Return the text that the history keeps of a failure of a file, given the file's text: printable, in one line.

    It keeps words of the file, and words of the server that hold no value; otherwise it names the kind of the error.
    """
    code = f" ({failure.sqlstate})" if failure.sqlstate else ""
    line = f", line {failure.line}" if failure.line is not None else ""
    return printable(f"{_words(failure, cause, source)}{code}{line}")


def _words(failure: Failure, cause: BaseException, source: str) -> str:
    if isinstance(cause, asyncpg.PostgresError):
        return _of_server(failure.message, cause, source)
    if not failure.message.startswith(type(cause).__name__):
        return failure.message  # a sentence of ours
    texts = dict.fromkeys(_inside(each, source) for each in inner(cause))
    return ": ".join(filter(None, (_of_python(cause, source), "; ".join(texts))))


def _inside(error: BaseException, source: str) -> str:
    if isinstance(error, asyncpg.PostgresError):
        code = f" ({error.sqlstate})" if error.sqlstate else ""
        return _of_server(str(error.args[0] if error.args else error), error, source) + code
    return _of_python(error, source)


def _of_python(error: BaseException, source: str) -> str:
    kind, said = type(error).__name__, error.message if isinstance(error, BaseExceptionGroup) else str(error)
    return f"{kind}: {said}" if said and _is_literal(said, source) else kind


def _of_server(message: str, error: asyncpg.PostgresError, source: str) -> str:
    """Return the part of a message that may be recorded; the kind of the error if a function may have written it."""
    if isinstance(error, UnreadableError):
        return error.SENTENCE
    return _words_of_server(message, error, source) or _CAPITAL.sub(" ", type(error).__name__).lower()


def _words_of_server(message: str, error: asyncpg.PostgresError, source: str) -> str:
    kind = (error.sqlstate or "")[:2]
    if _is_literal(message, source):
        return message
    if error.context or kind in _ANYBODYS or isinstance(error, asyncpg.UnknownPostgresError):
        return ""
    if kind == _DATA:
        return _VALUE.split(message, maxsplit=1)[0].strip()
    names = (error.schema_name, error.table_name, error.column_name, error.constraint_name, error.data_type_name)
    known = "\n".join([source, *filter(None, names)])
    message = _NUMBER.sub(lambda found: found[0] if found[0] in known else "...", message)
    words, rest = _QUOTED.findall(message), _QUOTED.sub("", message)
    if all(word.strip() in known for word in words) and not _ALL_QUOTED.search(rest):
        return message
    # Up to the last quotation mark: a value may hold some itself.
    return _ALL_QUOTED.sub('"..."', message)


def _is_literal(text: str, source: str) -> bool:
    """Return whether a text is a literal in a file: then it holds no data from a row."""
    return any(f"{mark}{text}{mark}" in source for mark in "'\"")
