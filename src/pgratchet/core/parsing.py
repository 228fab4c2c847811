"""Contents in, sources out: encoding, line endings, checksums and the directives in a file's head."""

import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from pgratchet.core.errors import FilesError
from pgratchet.core.model import File, Kind, Options, Problem, Source

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMMENT = {Kind.SQL: "--", Kind.PYTHON: "#"}
DIRECTIVES = ("no-transaction", "lock-timeout", "statement-timeout", "compatible-with")
SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h|)")
_HEAD = {
    Kind.SQL: re.compile(r"(?:\s+|--[^\n]*|/\*.*?\*/)*", re.DOTALL),
    Kind.PYTHON: re.compile(r"(?:\s+|#[^\n]*)*"),
}
_DIRECTIVE = {
    kind: re.compile(rf"^[ \t]*{mark}[ \t]*pgratchet\b[ \t]*(:?)[ \t]*(.*?)[ \t]*$", re.MULTILINE)
    for kind, mark in COMMENT.items()
}
_VERSION = {kind: re.compile(rf"^{mark}[ \t]*Version:[ \t]*(\S+)", re.MULTILINE) for kind, mark in COMMENT.items()}


class Content(NamedTuple):
    """A file's text as a source, and the checksum that stands for it in the history."""

    source: Source
    checksum: str


class _Directive(NamedTuple):
    line: int
    colon: str
    text: str


def read(file: File, kind: Kind, version: str) -> Content:
    """Return the file's text with LF line endings and no byte order mark, and its checksum.

    The checksum is SHA-256, in hex, over exactly that text in UTF-8: a checkout with other line endings is
    the same migration. Raises FilesError with every problem of the file.
    """
    body = file.content.removeprefix(BYTE_ORDER_MARK)
    if b"\r\n" in body:
        body = body.replace(b"\r\n", b"\n")
    text = _decode(body, file.path)
    problems: list[Problem] = []
    options = Options()
    if "pgratchet" in text:
        options, problems = _options(file.path, text, kind)
    problems += _contradiction(file.path, text, kind, version)
    if problems:
        raise FilesError(problems)
    return Content(Source(file.path, text, options), hashlib.sha256(body).hexdigest())


def line_of(text: str, offset: int) -> int:
    """Return the line, counted from 1, that holds the character at `offset`."""
    return text.count("\n", 0, offset) + 1


def _decode(body: bytes, path: str) -> str:
    if (offset := body.find(b"\0")) >= 0:
        line = body.count(b"\n", 0, offset) + 1
        raise FilesError([Problem(path, "a NUL byte, which PostgreSQL cannot store", "remove it", line)])
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8 (byte 0x{body[error.start]:02x})"
        raise FilesError([Problem(path, message, "save the file as UTF-8", line)]) from None


def _contradiction(path: str, text: str, kind: Kind, version: str) -> list[Problem]:
    if "Version:" not in text:
        return []
    found = _VERSION[kind].search(text, 0, _head_end(text, kind))
    if found is None or (found[1].isdecimal() and int(found[1]) == int(version)):
        return []
    message = f"the head says version {found[1]}, the file's name says {version}"
    return [Problem(path, message, "make the two agree", line_of(text, found.start()))]


def _head_end(text: str, kind: Kind) -> int:
    head = _HEAD[kind].match(text)
    return head.end() if head else 0


def _directives(text: str, kind: Kind, start: int, end: int) -> Iterator[_Directive]:
    for found in _DIRECTIVE[kind].finditer(text, start, end):
        yield _Directive(line_of(text, found.start()), found[1], found[2])


def _options(path: str, text: str, kind: Kind) -> tuple[Options, list[Problem]]:
    options, problems = Options(), []
    end = _head_end(text, kind)
    for directive in _directives(text, kind, 0, end):
        try:
            options = _apply(options, directive)
        except ValueError as error:
            message, cure = error.args
            problems.append(Problem(path, message, cure, directive.line))
    for directive in _directives(text, kind, end, len(text)):
        if directive.colon:
            message = "a pgratchet directive below the first statement has no effect"
            problems.append(Problem(path, message, "move it to the head of the file", directive.line))
    return options, problems


def _apply(options: Options, directive: _Directive) -> Options:
    key, equals, value = (part.strip() for part in directive.text.partition("="))
    if not directive.colon:
        if key not in DIRECTIVES:
            return options
        raise ValueError("a directive without its colon", f"write '{directive.text}' behind 'pgratchet:'")
    match key:
        case "no-transaction" if not equals:
            return options._replace(no_transaction=True)
        case "no-transaction":
            raise ValueError("no-transaction takes no value", "write 'pgratchet: no-transaction'")
        case "lock-timeout":
            return options._replace(lock_timeout=_seconds(key, value))
        case "statement-timeout":
            return options._replace(statement_timeout=_seconds(key, value))
        case "compatible-with" if value.isdecimal():
            return options._replace(compatible_with=str(int(value)))
        case "compatible-with":
            raise ValueError(f"compatible-with={value} is no version", "write the number of a version")
        case _:
            raise ValueError(f"unknown directive '{key}'", _suggestion(key))


def _seconds(key: str, value: str) -> float:
    found = _DURATION.fullmatch(value)
    if found is None:
        raise ValueError(f"{key}={value} is no duration", f"write {key}=5s; units are ms, s, min and h")
    return float(found[1]) * SECONDS[found[2]]


def _suggestion(key: str) -> str:
    import difflib  # noqa: PLC0415 - only a file with a mistake in it pays for the import

    close = difflib.get_close_matches(key, DIRECTIVES, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known directives are {', '.join(DIRECTIVES)}"
