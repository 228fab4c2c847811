"""Text from outside is made safe to show: names, messages of the server, values of rows, exceptions."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

_BLANKS = frozenset(
    "\N{NO-BREAK SPACE}\N{OGHAM SPACE MARK}\N{NARROW NO-BREAK SPACE}\N{MEDIUM MATHEMATICAL SPACE}\N{IDEOGRAPHIC SPACE}"
) | {chr(code) for code in range(0x2000, 0x200B)}
"""Spaces of some languages; str.isprintable() accepts only the one of ASCII."""

_VARIATIONS = frozenset(map(chr, (*range(0x180B, 0x180E), 0x180F, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
"""Each selects a form of the character before it; a series of them is a way to hide text."""

UNSEEN = _VARIATIONS | frozenset(
    "\N{COMBINING GRAPHEME JOINER}\N{HANGUL CHOSEONG FILLER}\N{HANGUL JUNGSEONG FILLER}\N{HANGUL FILLER}"
    "\N{HALFWIDTH HANGUL FILLER}\N{KHMER VOWEL INHERENT AQ}\N{KHMER VOWEL INHERENT AA}\N{BRAILLE PATTERN BLANK}"
)
"""Characters without a shape of their own that str.isprintable() accepts."""

_JOINER = "\N{ZERO WIDTH JOINER}"
_SURROGATE = re.compile("[\ud800-\udfff]")


LEAST_RANGE = 3
"""The fewest versions that are told as a range: two are as short as a list."""


def printable(text: str, instead: str | None = None) -> str:
    r"""Return the text as one line that cannot control a terminal, forge a line, or hide or reorder a part of itself.

    Letters, marks and symbols of every script stay, and so do emoji, joined ones included. Everything else becomes an
    escape like `\n`, `\x1b` or `\u202e`, or `instead` where that is given. A printable text is returned as it is: a
    backslash is not escaped, so that a second call changes nothing.
    """
    if text.isprintable() and (text.isascii() or UNSEEN.isdisjoint(text)):
        return text
    near = zip(" " + text, text, text[1:] + " ", strict=False)
    return "".join(each if _stays(before, each, after) else instead or _escape(each) for before, each, after in near)


def printable_lines(text: str) -> str:
    """Return the text with each of its lines printable; only a line feed ends a line.

    For texts whose line feeds are ours: a part from outside has to be printable before it becomes part of the text.
    """
    return "\n".join(map(printable, text.split("\n")))


def _stays(before: str, each: str, after: str) -> bool:
    if each in _VARIATIONS:
        return before not in _VARIATIONS
    if each == _JOINER:
        return _is_emoji(before) and _is_emoji(after)
    return each not in UNSEEN and (each.isprintable() or each in _BLANKS)


def _is_emoji(character: str) -> bool:
    return "\u2190" <= character <= "\u2bff" or "\U0001f000" <= character <= "\U0001faff" or character == "\ufe0f"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def encodable(text: str) -> str:
    """Return the text as UTF-8 can hold it: each lone surrogate becomes its escape.

    Python puts surrogates in the place of bytes that are not UTF-8, for example in the names of files.
    """
    return _SURROGATE.sub(lambda found: _escape(found[0]), text)


def in_ascii(text: str) -> str:
    """Return the text with an escape in place of each character that some encoding of a database may lack."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


def to_json(document: Mapping[str, Any]) -> str:
    """Return the document as JSON for every parser: in ASCII and in one line; NaN and infinity become null."""
    import json  # noqa: PLC0415 - most starts write none

    return json.dumps(_plain(document), allow_nan=False)


def _plain(value: Any) -> Any:
    match value:
        case str():
            return encodable(value)
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {encodable(key): _plain(each) for key, each in value.items()}
        case tuple() | list():
            return [_plain(each) for each in value]
        case _:
            return value


def one_line(text: str) -> str:
    """Return the text without line breaks and outer blanks, with a mark for each character that cannot be shown."""
    return printable(" ".join(text.split()), "\N{REPLACEMENT CHARACTER}")


def ranges(versions: Iterable[str], order: Iterable[str]) -> str:
    """Return versions as a list, in which 'A to B' stands for three or more that are neighbours in `order`."""
    places = {version: place for place, version in enumerate(order)}
    runs: list[list[str]] = []
    for version in versions:
        if runs and places.get(version, -1) == places.get(runs[-1][-1], -3) + 1:
            runs[-1].append(version)
        else:
            runs.append([version])
    return ", ".join(", ".join(run) if len(run) < LEAST_RANGE else f"{run[0]} to {run[-1]}" for run in runs)


def line_of(text: str, offset: int) -> int:
    """Return the line, counted from 1, that holds the character at `offset`."""
    return text.count("\n", 0, offset) + 1
