"""pgratchet's own layout: `<digits>_<description>.sql`, its `.down.sql` beside it, or one `.py` for both."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import PurePath
from typing import NamedTuple

from pgratchet.core.errors import FilesError, UsageError
from pgratchet.core.model import Catalogue, Direction, File, Kind, Migration, Problem, Rank, Source
from pgratchet.core.printing import one_line
from pgratchet.files import parsing
from pgratchet.files.parsing import Content

LONGEST_VERSION = 18
"""Digits in a version: what a signed 64-bit number holds for certain."""

LONGEST_GUESS = 40
"""Digits of a text in which a version is looked for."""

TIMESTAMP_DIGITS = 8
"""Versions of at least so many digits are dates or timestamps: numbers between them are not missing."""

LONGEST_TITLE = 100
"""The most bytes of a description that the name of a new file has, which may have 255, and on some disks 143."""

_NAME = re.compile(r"(?P<digits>[0-9]{1,18})_(?P<title>\w[\w.-]*?)(?P<suffix>\.down\.sql|\.sql|\.py)")
_DIRECTION = re.compile(r"\.(?:up|down)$", re.IGNORECASE)


_PYTHON = '''

async def up(connection):
    """Runs inside a transaction; `connection` is asyncpg's."""


async def down(connection):
    """Undoes what `up` did."""
'''


class _Read(NamedTuple):
    """A file of the directory: its name's parts and its content, without the bytes it was read from."""

    version: str
    title: str
    kind: Kind
    direction: Direction
    content: Content


@dataclass(slots=True)
class _Shelf:
    """What has been read so far, by version."""

    everything: list[_Read] = field(default_factory=list)
    ups: dict[str, _Read] = field(default_factory=dict)
    downs: dict[str, _Read] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class OwnLayout:
    """Versions are numbers, as texts without leading zeros."""

    name = "pgratchet"
    form = f"versions are numbers, at most {LONGEST_VERSION} of the digits 0 to 9"

    def recognises(self, files: Iterable[File]) -> bool:
        """Say whether any of the files is named as this layout has it."""
        return any(_NAME.fullmatch(_unmarked(parsing.composed(file.name))) for file in files)

    def parse(self, files: Iterable[File], *, strict: bool = False) -> Catalogue:
        """Return the migrations that the files make up, oldest first.

        Raises FilesError with every problem of the directory. A gap in a series of numbers is a warning, and a
        problem where `strict`. Scripts are not read as SQL here: that is for those who plan to run them, unless
        there are problems already, which are then reported together with those of the scripts.
        """
        shelf = _Shelf()
        for file in files:
            _put(shelf, file)
        gaps = _gaps(shelf)
        problems = _stray_downs(shelf) + shelf.problems + (gaps if strict else [])
        if problems:
            problems += _unfit_scripts(shelf)
            raise FilesError(sorted(problems, key=lambda problem: (problem.path, problem.line or 0)))
        return Catalogue(tuple(_migration(shelf, version) for version in _in_order(shelf)), tuple(gaps))

    def canonical(self, text: str) -> str | None:
        """Return a version without leading zeros; None for what is no version."""
        fits = text.isascii() and text.isdecimal() and len(text) <= LONGEST_VERSION
        return (text.lstrip("0") or "0") if fits else None

    def meant(self, text: str) -> str | None:
        """Return the version that a person has meant: with a plus, blanks, zeros or the digits of another script."""
        digits = text.strip().removeprefix("+")
        return self.canonical(str(int(digits))) if digits.isdecimal() and len(digits) <= LONGEST_GUESS else None

    def rank(self, version: str) -> Rank | None:
        """Return the number that a version is; None for what is no version."""
        return None if self.canonical(version) is None else (int(version),)

    def draft(self, migrations: Sequence[Migration], description: str, kind: Kind, now: datetime) -> dict[str, str]:
        """Return the files of a new migration, by name: the next number, or the next timestamp where these are used.

        Raises UsageError for a description that no file can be named after.
        """
        text = one_line(description)
        title = _title(text)
        if not title:
            raise UsageError(f"'{text:.100}' has no letter or digit to name a file after")
        last = migrations[-1] if migrations else None
        digits = _next(last, now)
        if kind is Kind.PYTHON:
            # In its first two lines Python looks for the file's encoding (PEP 263), within any comment.
            text = re.sub("coding(?=[:=])", "coding ", text)
        mark = parsing.COMMENT[kind]
        head = f"{mark} Migration: {text}\n{mark} Version: {digits}\n{mark} Date: {now:%Y-%m-%d}\n\n"
        if kind is Kind.PYTHON:
            return {f"{digits}_{title}.py": head.rstrip() + "\n" + _PYTHON}
        return {f"{digits}_{title}.sql": head, f"{digits}_{title}.down.sql": head}


own = OwnLayout()
"""The layout itself: it has no state."""


def _next(last: Migration | None, now: datetime) -> str:
    """Return the digits behind those of the last migration, as wide as its file has them."""
    if last is None:
        return "001"
    number = int(last.version) + 1
    if own.canonical(str(number)) is None:
        raise UsageError(f"there is no version above {last.version}, the last one; give it a lower number")
    if len(last.version) >= TIMESTAMP_DIGITS:
        return str(max(number, int(f"{now:%Y%m%d%H%M%S}"[: len(last.version)])))
    width = len(PurePath(last.up.path).name.partition("_")[0])
    return str(number).zfill(width)


def _title(description: str) -> str:
    """Return the words of a description, as the name of a file has them; empty where there is none."""
    title = ""
    for each in parsing.composed(description.lower()):
        if each.isalnum() or (_is_mark(each) and title[-1:] not in {"", "_"}):
            title += each
        elif not title.endswith("_"):
            title += "_"
    title = title.strip("_")
    if len(title.encode()) > LONGEST_TITLE:
        cut = title.encode()[:LONGEST_TITLE].decode(errors="ignore")
        title = cut.rpartition("_")[0] or cut
    return title


def _is_mark(character: str) -> bool:
    """Say whether it belongs to the letter before it, like a vowel of Hindi; no pattern takes it for a letter."""
    return not character.isascii() and unicodedata.category(character).startswith("M")


def _put(shelf: _Shelf, file: File) -> None:
    found = _read(file)
    if isinstance(found, Problem):
        shelf.problems.append(found)
        return
    shelf.everything.append(found)
    shelf.problems += found.content.problems
    side = shelf.ups if found.direction is Direction.UP else shelf.downs
    taken = side.setdefault(found.version, found)
    if taken is not found:
        message = f"version {found.version} is already {taken.content.source.path}"
        cure = "give one of them another number"
        if parsing.composed(file.path) == parsing.composed(taken.content.source.path):
            cure = "remove one of them: they have the same name, of which one is in another Unicode form (NFC and NFD)"
        shelf.problems.append(Problem(file.path, message, cure))


def _read(file: File) -> _Read | Problem:
    written = parsing.composed(file.name)
    name = _NAME.fullmatch(_unmarked(written))
    if name is None:
        message = f"the name is not <digits>_<description>.sql, .down.sql or .py{_oddity(written)}"
        return Problem(file.path, message, "rename it, for example to 007_add_users.sql")
    title = written[slice(*name.span("title"))]
    if _DIRECTION.search(title):
        cure = "an up file ends in .sql alone, its way down in .down.sql; a .py file has both in it"
        return Problem(file.path, "the name says its direction in another way", cure)
    version = str(int(name["digits"]))
    kind = Kind.PYTHON if name["suffix"] == ".py" else Kind.SQL
    direction = Direction.DOWN if name["suffix"] == ".down.sql" else Direction.UP
    return _Read(version, title, kind, direction, parsing.read(file, kind, version, own))


def _unmarked(name: str) -> str:
    """Return a name with a letter in the place of each combining mark."""
    return name if name.isascii() else "".join("x" if _is_mark(each) else each for each in name)


def _oddity(name: str) -> str:
    """Return the end of a sentence about a name that does not fit: which character is to blame, if any is."""
    odd = next((each for each in _unmarked(name) if not re.match(r"[\w.-]", each)), None)
    if odd is None:
        return ""
    if "\udc80" <= odd <= "\udcff":
        return f"; it is not UTF-8 (byte 0x{ord(odd) - 0xDC00:02x})"
    return f"; {odd!a} is no letter or digit"


def _in_order(shelf: _Shelf) -> list[str]:
    return sorted(shelf.ups, key=int)


def _migration(shelf: _Shelf, version: str) -> Migration:
    up = shelf.ups[version]
    down: Source | None = None
    if up.kind is Kind.PYTHON:
        down = up.content.source
    elif version in shelf.downs:
        down = shelf.downs[version].content.source
    return Migration(version, (int(version),), up.title, up.kind, up.content.checksum, up.content.source, down)


def _stray_downs(shelf: _Shelf) -> list[Problem]:
    """Return a problem for every down file that no up file of the same name stands beside."""
    problems = []
    for version, down in shelf.downs.items():
        path, up = down.content.source.path, shelf.ups.get(version)
        if up is None:
            cure = "add its up file, or remove this one"
            problems.append(Problem(path, f"no up file for version {version}", cure))
        elif up.kind is Kind.PYTHON:
            cure = f"write 'async def down(connection)' in {up.content.source.path} and remove this file"
            problems.append(Problem(path, "its migration is a Python file", cure))
        elif up.title != down.title:
            problems.append(Problem(path, f"its up file is {up.content.source.path}", "name both alike"))
    return problems


def _gaps(shelf: _Shelf) -> list[Problem]:
    """Return a problem for each run of missing numbers, at the file behind it.

    Series that go by tens leave room by design.
    """
    series = [int(version) for version in _in_order(shelf) if len(version) < TIMESTAMP_DIGITS]
    if 2 * sum(number % 10 == 0 for number in series) >= len(series):
        return []
    problems = []
    for before, after in pairwise(series):
        missing = range(before + 1, after)
        if missing:
            numbers = f"{missing[0]}" if len(missing) == 1 else f"{missing[0]} to {missing[-1]}"
            path = shelf.ups[str(after)].content.source.path
            cure = "add what is missing, or renumber what was never released"
            problems.append(Problem(path, f"a gap in the numbers: {numbers}", cure))
    return problems


def _unfit_scripts(shelf: _Shelf) -> list[Problem]:
    from pgratchet.core.sql.scripts import compile_script  # noqa: PLC0415 - only a directory with problems pays for it

    problems: list[Problem] = []
    for file in shelf.everything:
        if file.content.problems and not file.content.source.text:
            continue  # no text at all, which has been said
        try:
            compile_script(file.content.source, file.kind, file.direction)
        except FilesError as error:
            problems += error.problems
    return problems
