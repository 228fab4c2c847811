"""The content of a file becomes a source: encoding, line endings, checksum and the directives in its head."""

import codecs
import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from pgratchet.core.arguments import LONGEST_SECONDS, UNITS, seconds_of
from pgratchet.core.drafts import COMMENT
from pgratchet.core.errors import ScriptError
from pgratchet.core.model import File, Kind, Options, Problem, Source
from pgratchet.files.layout import Layout

BYTE_ORDER_MARK = codecs.BOM_UTF8
_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
DIRECTIVES = ("no-transaction", "lock-timeout", "statement-timeout", "compatible-with", "empty")

# PostgreSQL and Python end a comment at a line feed or a carriage return, and at no other line break.
# The count is bounded, because a repeat remembers each of its turns: a million comments would take 300 MB.
_BLANKS = r"[^\S\n\r]*"
_GAP = {
    Kind.SQL: re.compile(r"(?:[ \t\n\r\f\v]*--[^\n\r]*){0,100}[ \t\n\r\f\v]*(/\*)?"),
    Kind.PYTHON: re.compile(r"(?:[ \t\n\r\f]*#[^\n\r]*){0,100}[ \t\n\r\f]*"),
}
_BLOCK_MARK = re.compile(r"/\*|\*/")
_COMMENT = {
    kind: re.compile(
        rf"(?:\A|[\n\r]|\*/){_BLANKS}{mark}{_BLANKS}"
        rf"(?:(?P<name>(?i:pgratchet))\b{_BLANKS}(?P<colon>:?)(?P<text>[^\n\r]*)"
        rf"|Version:{_BLANKS}(?P<version>\S+)[^\n\r]*|[^\n\r]*)"
    )
    for kind, mark in COMMENT.items()
}
_STRAY = {kind: re.compile(rf"{mark}{_BLANKS}pgratchet{_BLANKS}:", re.IGNORECASE) for kind, mark in COMMENT.items()}


class Content(NamedTuple):
    """The text of a file as a source, its checksum in the history, and its problems."""

    source: Source
    checksum: str
    problems: tuple[Problem, ...] = ()


def read(file: File, kind: Kind, version: str, layout: Layout) -> Content:
    """Return the file's text without its byte order mark, and its checksum.

    The checksum is SHA-256, in hex, over that text in UTF-8 with LF line endings: a checkout with other line endings
    is the same migration. SQL keeps its own, as in psql, because they are data in strings and functions; Python reads
    all as LF. The text is empty where the file is not valid UTF-8.
    """
    body = file.content.removeprefix(BYTE_ORDER_MARK)
    plain = body.replace(b"\r\n", b"\n") if b"\r\n" in body else body
    checksum = hashlib.sha256(plain).hexdigest()
    text = _decode(body if kind is Kind.SQL else plain, file.path)
    if isinstance(text, Problem):
        return Content(Source(file.path, ""), checksum, (text,))
    end = _end_of_head(text, kind)
    head = [found for found in _COMMENT[kind].finditer(text, 0, end) if found.lastindex]
    options, problems = _options(file.path, text, head, version, layout) if head else (Options(), [])
    if stray := [found.start() for found in _STRAY[kind].finditer(text, end)]:
        problems += _stray_directives(file.path, text, kind, stray)
    return Content(Source(file.path, text, options), checksum, tuple(problems))


def _decode(body: bytes, path: str) -> str | Problem:
    if body.startswith(_OTHER_ENCODINGS):
        return Problem(path, "not UTF-8 (it begins like UTF-16 or UTF-32)", "save the file as UTF-8", 1)
    if (offset := body.find(b"\0")) >= 0:
        line = body.count(b"\n", 0, offset) + 1
        message = "a NUL byte, which PostgreSQL cannot store (UTF-16 and UTF-32 have them between the letters)"
        return Problem(path, message, "save the file as UTF-8, without NUL bytes", line)
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        return Problem(path, f"not UTF-8 (byte 0x{body[error.start]:02x})", "save the file as UTF-8", line)


def _end_of_head(text: str, kind: Kind) -> int:
    end, gap = 0, _GAP[kind].match(text)
    while gap is not None and gap.end() > end:
        end = gap.end()
        if gap.lastindex:
            close = _BLOCK_MARK.search(text, end)
            if close is None or close[0] == "/*":
                # A comment within a comment ends the head: its text must not become a directive.
                return gap.start(1)
            end = close.end()
        gap = _GAP[kind].match(text, end)
    return end


def _options(
    path: str, text: str, head: Sequence[re.Match[str]], version: str, layout: Layout
) -> tuple[Options, list[Problem]]:
    """Return the options that the comments of a head ask for, and the problems of these comments."""
    options, problems, says_version = Options(), list[Problem](), False
    lines = _lines_of(text, (found.start("name") if found["name"] else found.start("version") for found in head))
    for found, line in zip(head, lines, strict=True):
        if found["name"]:
            try:
                options = _apply(options, found["colon"], found["text"].strip(), version, layout)
            except ValueError as error:
                message, cure = error.args
                problems.append(Problem(path, message, cure, line))
        elif not says_version:
            says_version = True
            if layout.canonical(found["version"]) != version:
                message = f"the head says version {found['version']}, the file's name says {version}"
                problems.append(Problem(path, message, "make the two agree", line))
    return options, problems


def _lines_of(text: str, offsets: Iterable[int]) -> Iterator[int]:
    """Yield the line of each offset, in ascending order: in one pass, because there may be a million of them."""
    line, counted = 1, 0
    for offset in offsets:
        line += text.count("\n", counted, offset)
        counted = offset
        yield line


def _stray_directives(path: str, text: str, kind: Kind, offsets: Sequence[int]) -> list[Problem]:
    """Return a problem for each directive below the head, where it would have no effect.

    Text inside a statement, in a string or a function's body, is part of that statement and no directive.
    """
    if kind is Kind.SQL:
        from pgratchet.core.sql.statements import scan  # noqa: PLC0415 - only such a file pays for the import

        with suppress(ScriptError):
            bounds = [(statement.start, statement.end) for statement in scan(text)]
            begun = [(offset, bisect_right(bounds, (offset, len(text)))) for offset in offsets]
            offsets = [offset for offset, count in begun if count == 0 or bounds[count - 1][1] <= offset]
    message, cure = "a pgratchet directive below the first statement has no effect", "move it to the head of the file"
    return [Problem(path, message, cure, line) for line in _lines_of(text, offsets)]


def _apply(options: Options, colon: str, text: str, version: str, layout: Layout) -> Options:
    """Return the options with one directive applied; raises ValueError with a message and its cure."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not colon:
        if key not in DIRECTIVES:
            return options
        raise ValueError("a directive without its colon", f"write '{text}' behind 'pgratchet:'")
    match key:
        case "no-transaction" if not equals:
            return options._replace(no_transaction=True)
        case "empty" if not equals:
            return options._replace(empty=True)
        case "empty":
            raise ValueError("empty takes no value", "write 'pgratchet: empty'")
        case "no-transaction":
            raise ValueError("no-transaction takes no value", "write 'pgratchet: no-transaction'")
        case "lock-timeout":
            return options._replace(lock_timeout=_seconds(key, value))
        case "statement-timeout":
            return options._replace(statement_timeout=_seconds(key, value))
        case "compatible-with":
            return options._replace(compatible_with=_floor(value, version, layout))
        case _:
            raise ValueError(f"unknown directive '{key}'", _suggestion(key))


def _floor(value: str, version: str, layout: Layout) -> str:
    floor = layout.canonical(value)
    if floor is None:
        raise ValueError(f"compatible-with={value} is no version", "write the number of a version")
    above, here = layout.rank(floor), layout.rank(version)
    if above is not None and here is not None and above > here:
        message = f"compatible-with={floor} lies above the file's own version {version}"
        raise ValueError(message, "write the oldest version whose code works with this file")
    return floor


def _seconds(key: str, value: str) -> float:
    seconds = seconds_of(value)
    if seconds is None:
        raise ValueError(f"{key}={value} is no duration", f"write {key}=5s; units are {', '.join(UNITS)}")
    if seconds > LONGEST_SECONDS:
        raise ValueError(f"{key}={value} is more than PostgreSQL takes", "write at most 596h, or 0 for no limit")
    return seconds


def _suggestion(key: str) -> str:
    import difflib  # noqa: PLC0415 - only a file with a mistake in it pays for the import

    close = difflib.get_close_matches(key, DIRECTIVES, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known directives are {', '.join(DIRECTIVES)}"
