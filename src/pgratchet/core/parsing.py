"""Contents in, sources out: encoding, line endings, checksums and the directives in a file's head."""

import codecs
import hashlib
import re
from typing import NamedTuple

from pgratchet.core.arguments import LONGEST_SECONDS
from pgratchet.core.errors import ScriptError
from pgratchet.core.model import File, Kind, Options, Problem, Source

BYTE_ORDER_MARK = codecs.BOM_UTF8
_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
COMMENT = {Kind.SQL: "--", Kind.PYTHON: "#"}
LONGEST_VERSION = 18
"""Digits in a version: what a signed 64-bit number holds for certain."""

DIRECTIVES = ("no-transaction", "lock-timeout", "statement-timeout", "compatible-with")
SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}

_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*(ms|s|min|h|)")
_HEAD = {
    # A comment within a comment ends the head here: what is in it must not be taken for a directive.
    Kind.SQL: re.compile(r"(?:\s+|--[^\n]*|/\*(?:(?!/\*).)*?\*/)*", re.DOTALL),
    Kind.PYTHON: re.compile(r"(?:\s+|#[^\n]*)*"),
}
_DIRECTIVE = {
    kind: re.compile(rf"^[ \t]*{mark}[ \t]*pgratchet\b[ \t]*(:?)[ \t]*(.*?)[ \t]*$", re.MULTILINE | re.IGNORECASE)
    for kind, mark in COMMENT.items()
}
_STRAY = {kind: re.compile(rf"{mark}[ \t]*pgratchet[ \t]*:", re.IGNORECASE) for kind, mark in COMMENT.items()}
_VERSION = {kind: re.compile(rf"^{mark}[ \t]*Version:[ \t]*(\S+)", re.MULTILINE) for kind, mark in COMMENT.items()}


class Content(NamedTuple):
    """A file's text as a source, the checksum that stands for it in the history, and what is wrong with it."""

    source: Source
    checksum: str
    problems: tuple[Problem, ...] = ()


class _Directive(NamedTuple):
    line: int
    colon: str
    text: str


def read(file: File, kind: Kind, version: str) -> Content:
    """Return the file's text with LF line endings and no byte order mark, and its checksum.

    The checksum is SHA-256, in hex, over exactly that text in UTF-8: a checkout with other line endings is
    the same migration. A file that is no text has an empty one.
    """
    body = file.content.removeprefix(BYTE_ORDER_MARK)
    if b"\r\n" in body:
        body = body.replace(b"\r\n", b"\n")
    checksum = hashlib.sha256(body).hexdigest()
    text = _decode(body, file.path)
    if isinstance(text, Problem):
        return Content(Source(file.path, ""), checksum, (text,))
    head = _HEAD[kind].match(text)
    end = head.end() if head else 0
    options, problems = _options(file.path, text, kind, version, end)
    problems += _contradiction(file.path, text, kind, version, end)
    if "pgratchet" in text or "PGRATCHET" in text:
        problems += _stray_directives(file.path, text, kind, end)
    return Content(Source(file.path, text, options), checksum, tuple(problems))


def line_of(text: str, offset: int) -> int:
    """Return the line, counted from 1, that holds the character at `offset`."""
    return text.count("\n", 0, offset) + 1


def _decode(body: bytes, path: str) -> str | Problem:
    if body.startswith(_OTHER_ENCODINGS):
        return Problem(path, "not UTF-8 (it begins like UTF-16)", "save the file as UTF-8")
    if (offset := body.find(b"\0")) >= 0:
        line = body.count(b"\n", 0, offset) + 1
        return Problem(path, "a NUL byte, which PostgreSQL cannot store", "remove it", line)
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        return Problem(path, f"not UTF-8 (byte 0x{body[error.start]:02x})", "save the file as UTF-8", line)


def _contradiction(path: str, text: str, kind: Kind, version: str, end: int) -> list[Problem]:
    found = _VERSION[kind].search(text, 0, end)
    if found is None or _canonical(found[1]) == version:
        return []
    message = f"the head says version {found[1]}, the file's name says {version}"
    return [Problem(path, message, "make the two agree", line_of(text, found.start()))]


def _canonical(digits: str) -> str | None:
    fits = digits.isascii() and digits.isdecimal() and len(digits) <= LONGEST_VERSION
    return (digits.lstrip("0") or "0") if fits else None


def _options(path: str, text: str, kind: Kind, version: str, end: int) -> tuple[Options, list[Problem]]:
    options, problems = Options(), []
    for found in _DIRECTIVE[kind].finditer(text, 0, end):
        directive = _Directive(line_of(text, found.start()), found[1], found[2])
        try:
            options = _apply(options, directive, version)
        except ValueError as error:
            message, cure = error.args
            problems.append(Problem(path, message, cure, directive.line))
    return options, problems


def _stray_directives(path: str, text: str, kind: Kind, end: int) -> list[Problem]:
    """Return a problem for each directive below the head, where it would have no effect.

    What stands inside a statement, in a string or a function's body, is that statement's business.
    """
    found = [match.start() for match in _STRAY[kind].finditer(text, end)]
    if found and kind is Kind.SQL:
        from pgratchet.core.statements import scan  # noqa: PLC0415 - only such a file pays for the import

        try:
            inside = [(statement.start, statement.end) for statement in scan(text)]
        except ScriptError:
            inside = []
        found = [offset for offset in found if not any(start <= offset < finish for start, finish in inside)]
    message, cure = "a pgratchet directive below the first statement has no effect", "move it to the head of the file"
    return [Problem(path, message, cure, line_of(text, offset)) for offset in found]


def _apply(options: Options, directive: _Directive, version: str) -> Options:
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
        case "compatible-with":
            return options._replace(compatible_with=_floor(value, version))
        case _:
            raise ValueError(f"unknown directive '{key}'", _suggestion(key))


def _floor(value: str, version: str) -> str:
    floor = _canonical(value)
    if floor is None:
        raise ValueError(f"compatible-with={value} is no version", "write the number of a version")
    if int(floor) > int(version):
        message = f"compatible-with={floor} lies above the file's own version, which is {version}"
        raise ValueError(message, "write the number of the oldest version whose code can live with this file")
    return floor


def _seconds(key: str, value: str) -> float:
    found = _DURATION.fullmatch(value)
    if found is None:
        raise ValueError(f"{key}={value} is no duration", f"write {key}=5s; units are ms, s, min and h")
    seconds = float(found[1]) * SECONDS[found[2]]
    if seconds > LONGEST_SECONDS:
        raise ValueError(f"{key}={value} is more than PostgreSQL takes", "write at most 596h, or 0 for no limit")
    return seconds


def _suggestion(key: str) -> str:
    import difflib  # noqa: PLC0415 - only a file with a mistake in it pays for the import

    close = difflib.get_close_matches(key, DIRECTIVES, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known directives are {', '.join(DIRECTIVES)}"
