"""pgratchet's own layout: `<digits>_<description>.sql`, its `.down.sql` beside it, or one `.py` for both."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import PurePath
from typing import NamedTuple

from pgratchet.core.drafts import draft, is_draft
from pgratchet.core.errors import FilesError, UsageError
from pgratchet.core.model import Catalogue, Direction, File, Kind, Migration, Problem, Rank
from pgratchet.core.printing import one_line
from pgratchet.files import parsing
from pgratchet.files.parsing import Content

LONGEST_VERSION = 18
"""The most digits of a version: a signed 64-bit number holds all of these."""

LONGEST_GUESS = 40
"""The most digits of a text that is guessed to be a version."""

TIMESTAMP_DIGITS = 8
"""Versions with at least this many digits are dates or timestamps: numbers between them are not missing."""

LONGEST_TITLE = 100
"""The most bytes of a description in a new file's name; a name may have 255 bytes, on some disks 143."""

_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
_JOINED = {"Lo", "Mn", "Mc"}
"""The categories of the letters and marks that a joiner may follow: letters of scripts without capitals."""

_NAME = re.compile(r"(?P<digits>[0-9]{1,18})_(?P<title>\w[\w.-]*?)(?P<suffix>\.down\.sql|\.sql|\.py)")
_DIRECTION = re.compile(r"\.(?:up|down)$", re.IGNORECASE)


class _Read(NamedTuple):
    """A file of the directory: the parts of its name, and its content as text, without its bytes."""

    version: str
    title: str
    kind: Kind
    direction: Direction
    content: Content


class OwnLayout:
    """Versions are numbers, as texts without leading zeros."""

    name = "pgratchet"
    form = f"versions are numbers, at most {LONGEST_VERSION} of the digits 0 to 9"

    def recognises(self, files: Iterable[File]) -> bool:
        """Say whether any of the files has a name of this layout."""
        return any(_NAME.fullmatch(_unmarked(unicodedata.normalize("NFC", file.name))) for file in files)

    def parse(self, files: Iterable[File], *, strict: bool = False) -> Catalogue:
        """Return the migrations of the files, oldest first.

        Raises FilesError with every problem of the directory. A gap in a series of numbers is a warning, and a
        problem where `strict`. A plan reads the scripts as SQL, and most starts plan nothing; but where the directory
        has problems, the scripts are read here, so that all problems are reported at once.
        """
        read, problems = list[_Read](), list[Problem]()
        ups, downs = dict[str, _Read](), dict[str, _Read]()
        for file in files:
            found = _read(file)
            if isinstance(found, Problem):
                problems.append(found)
                continue
            read.append(found)
            problems += found.content.problems
            taken = (ups if found.direction is Direction.UP else downs).setdefault(found.version, found)
            if taken is not found:
                problems.append(_duplicate(file, found, taken))
        versions = sorted(ups, key=int)
        gaps = _gaps(ups, versions)
        problems += [problem for version, down in downs.items() if (problem := _stray(down, ups.get(version)))]
        problems += gaps if strict else []
        if problems:
            problems += _unfit_scripts(read)
            raise FilesError(sorted(problems, key=lambda problem: (problem.path, problem.line or 0)))
        migrations = []
        for version in versions:
            up = ups[version]
            way_down = up if up.kind is Kind.PYTHON else downs.get(version)
            down = way_down and way_down.content.source
            if down is not None and up.kind is Kind.SQL and is_draft(Kind.SQL, down.text):
                down = None  # nobody has written it yet, and it would revert nothing
            source, checksum, _ = up.content
            migrations.append(Migration(version, (int(version),), up.title, up.kind, checksum, source, down))
        return Catalogue(tuple(migrations), tuple(gaps))

    def canonical(self, text: str) -> str | None:
        """Return a version without leading zeros; None for a text that is no version."""
        fits = text.isascii() and text.isdecimal() and len(text) <= LONGEST_VERSION
        return (text.lstrip("0") or "0") if fits else None

    def meant(self, text: str) -> str | None:
        """Return the version that a person meant by a text with a plus, blanks, zeros or digits of another script."""
        digits = text.strip().removeprefix("+")
        return self.canonical(str(int(digits))) if digits.isdecimal() and len(digits) <= LONGEST_GUESS else None

    def rank(self, version: str) -> Rank | None:
        """Return the number of a version; None for a text that is no version."""
        return None if self.canonical(version) is None else (int(version),)

    def draft(self, migrations: Sequence[Migration], description: str, kind: Kind, now: datetime) -> dict[str, str]:
        """Return the texts of the files of a new migration, by name, with the next number or timestamp.

        Raises UsageError for a description that cannot become a file name.
        """
        text = one_line(description)
        title = _title(description)
        if not title:
            raise UsageError(f"'{text:.100}' has no letter or digit to name a file after")
        last = migrations[-1] if migrations else None
        digits = _next(last, now)
        if kind is Kind.PYTHON:
            # Python looks for the file's encoding in its first two lines, in any comment (PEP 263).
            text = re.sub("coding(?=[:=])", "coding ", text)
        content = draft(kind, text, digits, f"{now:%Y-%m-%d}")
        if kind is Kind.PYTHON:
            return {f"{digits}_{title}.py": content}
        return {f"{digits}_{title}.sql": content, f"{digits}_{title}.down.sql": content}


own = OwnLayout()
"""The one instance: it has no state."""


def _next(last: Migration | None, now: datetime) -> str:
    """Return the digits of the next version, as many as the last migration's file has."""
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
    """Return the words of a description in the form of a file name; empty for a description without words."""
    title = ""
    for each in unicodedata.normalize("NFC", description.lower()):
        if each.isalnum() or (title[-1:] not in {"", "_"} and _is_mark(each, title[-1])):
            title += each
        elif not title.endswith("_"):
            title += "_"
    title = title.strip("_")
    if len(title.encode()) > LONGEST_TITLE:
        cut = title.encode()[:LONGEST_TITLE].decode(errors="ignore")
        title = cut.rpartition("_")[0] or cut
    return title


def _is_mark(character: str, before: str) -> bool:
    """Say whether a character belongs to the letter before it, like a vowel of Hindi; no pattern matches it as one.

    Also a joiner, without which words of Persian or Sinhala are misspelled (Unicode's UAX 31 has them in identifiers).
    """
    if character in _JOINERS:
        return unicodedata.category(before) in _JOINED
    return not character.isascii() and unicodedata.category(character).startswith("M")


def _read(file: File) -> _Read | Problem:
    # In one Unicode form for all: macOS separates letters and their accents.
    written = unicodedata.normalize("NFC", file.name)
    name = _NAME.fullmatch(written if written.isascii() else _unmarked(written))
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
    return "".join("x" if _is_mark(each, before) else each for before, each in pairwise(f" {name}"))


def _oddity(name: str) -> str:
    """Return the end of a sentence about a wrong name, which names the first wrong character; empty for none."""
    odd = next((each for each in _unmarked(name) if not re.match(r"[\w.-]", each)), None)
    if odd is None:
        return ""
    if "\udc80" <= odd <= "\udcff":
        return f"; it is not UTF-8 (byte 0x{ord(odd) - 0xDC00:02x})"
    return f"; {odd!a} is no letter or digit"


def _duplicate(file: File, found: _Read, taken: _Read) -> Problem:
    """Return the problem of a second file with the version and the direction of one that was `taken` before."""
    other = taken.content.source.path
    cure = "give one of them another number"
    if unicodedata.normalize("NFC", file.path) == unicodedata.normalize("NFC", other):
        cure = "remove one of them: their names differ only in their Unicode form (NFC and NFD)"
    return Problem(file.path, f"version {found.version} is already {other}", cure)


def _stray(down: _Read, up: _Read | None) -> Problem | None:
    """Return the problem of a down file that has no up file of the same name beside it."""
    path = down.content.source.path
    if up is None:
        cure = "add its up file, or remove this one"
        return Problem(path, f"no up file for version {down.version}", cure)
    if up.kind is Kind.PYTHON:
        cure = f"write 'async def down(connection)' in {up.content.source.path} and remove this file"
        return Problem(path, "its migration is a Python file", cure)
    if up.title != down.title:
        return Problem(path, f"its up file is {up.content.source.path}", "name both alike")
    return None


def _gaps(ups: Mapping[str, _Read], versions: Sequence[str]) -> list[Problem]:
    """Return a problem for each run of missing numbers, at the file behind it.

    Series that go by tens leave room by design.
    """
    series = [int(version) for version in versions if len(version) < TIMESTAMP_DIGITS]
    if 2 * sum(number % 10 == 0 for number in series) >= len(series):
        return []
    problems = []
    for before, after in pairwise(series):
        missing = range(before + 1, after)
        if missing:
            numbers = f"{missing[0]}" if len(missing) == 1 else f"{missing[0]} to {missing[-1]}"
            cure = "add the missing files, or renumber files that were never released"
            problems.append(Problem(ups[str(after)].content.source.path, f"a gap in the numbers: {numbers}", cure))
    return problems


def _unfit_scripts(files: Iterable[_Read]) -> list[Problem]:
    from pgratchet.core.sql.scripts import compile_script  # noqa: PLC0415 - only a directory with problems pays for it

    problems: list[Problem] = []
    for file in files:
        if file.content.problems and not file.content.source.text:
            continue  # it has no text, which is among its problems
        try:
            compile_script(file.content.source, file.kind, file.direction)
        except FilesError as error:
            problems += error.problems
    return problems
