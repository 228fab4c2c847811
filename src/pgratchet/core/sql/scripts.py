"""A source becomes a script: checked, with its mode, and cut into segments.

A file that is unfit to run is refused here, before a run sends anything.
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pgratchet.core.drafts import is_draft
from pgratchet.core.errors import FilesError, ScriptError
from pgratchet.core.model import Direction, Kind, Mode, Problem, Script, Segment, Source
from pgratchet.core.printing import line_of
from pgratchet.core.sql.dialects import foreign, misread
from pgratchet.core.sql.statements import HARMLESS, Statement, StatementKind, head, scan, tokens

MOST_MARKERS = 200
"""The largest number of cuts in a script: there is one segment more, and progress costs little."""

BYTE_ORDER_MARK = "\ufeff"

CHUNK = 1 << 20
"""Scripts longer than four of these (characters) are cut by size, and sent in several messages."""

_PAIRS = {(opener, closer) for opener in ("BEGIN", "START TRANSACTION") for closer in ("COMMIT", "END")}
_GAP = r"(?:\s|--[^\n]*\n|/\*[^*]*\*/)+"
_LOADS_ANOTHER_LIBRARY = re.compile(rf"(?ai)\bALTER{_GAP}EXTENSION\b[^;]*?\bUPDATE\b")
_OPENING_WORDS = {"BEGIN", "START", "WORK", "TRANSACTION"}


def compile_script(source: Source, kind: Kind, direction: Direction) -> Script:
    """Return the script of a source; raises FilesError with all reasons why it is unfit to run."""
    if kind is Kind.PYTHON:
        return _compile_python(source, direction)
    if "\\restrict" in source.text or "\\unrestrict" in source.text:
        source = _without_restrict(source)
    reading = _read(source)
    if not reading.total:
        _refuse_draft(source, kind, direction)
    problems = [*reading.problems, *foreign(source, direction)]
    begin, absorbed = "", set[int]()
    if reading.controls:
        if not source.options.no_transaction:
            begin, absorbed = _opening(source.text, reading)
        problems += _forbidden_controls(source, reading, absorbed)
    total = reading.total - len(absorbed)
    if source.options.empty and total:
        cure = "remove the directive, or the statements"
        problems.append(Problem(source.path, "it says that it is empty, and has statements", cure))
    by_statement = source.options.no_transaction or (len(reading.refusals) == reading.total > 0)
    if reading.refusals and not by_statement:
        problems.append(_mixed(source, reading.refusals, total))
    if changes := list(misread(source, at_once=not by_statement and len(source.text) <= 4 * CHUNK)):
        # Behind the first of them nothing may be as it was read.
        first = changes[0].line or 0
        problems = [*(problem for problem in problems if (problem.line or 0) < first), *changes]
    if problems:
        raise FilesError(sorted(problems, key=lambda problem: problem.line or 0))
    mode = Mode.STATEMENTS if by_statement else Mode.TRANSACTION
    kept = (item for number, item in enumerate(reading.statements, 1) if number not in absorbed)
    return Script(source, mode, tuple(_segments(source.text, kept, total, mode)), total, begin)


def _refuse_draft(source: Source, kind: Kind, direction: Direction) -> None:
    if direction is Direction.UP and is_draft(kind, source.text):
        language, mark = ("its SQL", "--") if kind is Kind.SQL else ("its functions", "#")
        cure = f"write {language}, or '{mark} pgratchet: empty' if it is to do nothing"
        raise FilesError([Problem(source.path, "nobody has written it yet: it is as `new` made it", cure, 1)])


def _compile_python(source: Source, direction: Direction) -> Script:
    _refuse_draft(source, Kind.PYTHON, direction)
    if source.options.no_transaction:
        message = "a Python migration always runs in a transaction"
        raise FilesError([Problem(source.path, message, "remove the directive no-transaction")])
    try:
        tree = ast.parse(source.text, source.path)
    except SyntaxError as error:
        raise FilesError([Problem(source.path, error.msg, "fix the syntax", error.lineno)]) from None
    except (MemoryError, RecursionError):
        raise FilesError([Problem(source.path, "nested too deeply for Python", "write it flatter")]) from None
    cure = f"write 'async def {direction}(connection)'"
    for node in tree.body:
        if isinstance(node, ast.AsyncFunctionDef) and node.name == direction:
            return Script(source, Mode.TRANSACTION, statements=1)
        if isinstance(node, ast.FunctionDef) and node.name == direction:
            raise FilesError([Problem(source.path, f"'{direction}' is a plain function", cure, node.lineno)])
    raise FilesError([Problem(source.path, f"no function '{direction}'", cure)])


def _without_restrict(source: Source) -> Source:
    """Return the source with blanks in the place of commands that newer pg_dumps write for psql (CVE-2025-8714)."""
    text = source.text
    try:
        commands = [item for item in scan(text) if item.kind is StatementKind.META]
    except ScriptError:
        return source
    pieces, end = list[str](), 0
    for item in commands:
        if text.startswith(("\\restrict", "\\unrestrict"), item.start):
            pieces += text[end : item.start], " " * (item.end - item.start)
            end = item.end
    return source._replace(text="".join(pieces) + text[end:])


class _Reading(NamedTuple):
    """The SQL statements of a script; those that decide how it runs, and its problems.

    `controls` begin or end a transaction, and have their numbers; `refusals` cannot run in one.
    """

    statements: Iterable[Statement]
    total: int
    controls: list[tuple[int, Statement]]
    refusals: list[Statement]
    problems: list[Problem]


def _read(source: Source) -> _Reading:
    text, path, total = source.text, source.path, 0
    controls, problems = list[tuple[int, Statement]](), list[Problem]()
    refusals, kept = list[Statement](), list[Statement]()
    small, marked = len(text) <= 4 * CHUNK, BYTE_ORDER_MARK in text
    try:
        for piece in scan(text):
            if piece.kind is StatementKind.META:
                command = text[piece.start : piece.end].split(maxsplit=1)[0]
                cure = "remove it: pgratchet sends SQL to the server, psql is not involved"
                problems.append(Problem(path, f"psql command {command}", cure, piece.line))
            if piece.kind is not StatementKind.SQL:
                continue
            total += 1
            if small:
                kept.append(piece)
            if piece.effect.controls:
                controls.append((total, piece))
            if piece.effect.refuses:
                refusals.append(piece)
            if marked or piece.effect is not HARMLESS:
                problems += _unfit(source, piece)
    except ScriptError as error:
        problems.append(Problem(path, str(error), "close it", line_of(text, error.offset)))
    # A large script is read again instead of kept: it may have millions of statements.
    statements = kept if small else (piece for piece in scan(text) if piece.kind is StatementKind.SQL)
    return _Reading(statements, total, controls, refusals, problems)


def _unfit(source: Source, statement: Statement) -> Iterator[Problem]:
    """Yield the problems of a statement that the server would refuse, or that would harm the run."""
    text, path = source.text, source.path
    if statement.effect.reads_stdin:
        message = "COPY ... FROM STDIN carries its data in psql's own format"
        cure = "write INSERTs instead, or load the data from a Python migration"
        yield Problem(path, message, cure, statement.line)
    if statement.effect.refuses == "DISCARD ALL":
        message = "DISCARD ALL would release the runner's lock"
        cure = "remove it: the session is reset after each file"
        yield Problem(path, message, cure, statement.line)
    if text.find(BYTE_ORDER_MARK, statement.start, statement.end) < 0:
        return
    for word, start, _ in tokens(text, statement.start, statement.end):
        # In strings, quoted names and comments it does no harm.
        if BYTE_ORDER_MARK in word and '"' not in word:
            line = statement.line + text.count("\n", statement.start, start)
            message = "a byte order mark in the middle of the file, which PostgreSQL takes for a letter"
            yield Problem(path, message, "remove it: editors do not show it", line)
            break


def _opening(text: str, reading: _Reading) -> tuple[str, set[int]]:
    """Return the SET TRANSACTION that a file opens with, and the numbers of the statements that it replaces."""
    settings, absorbed = list[str](), set[int]()
    waiting = list(reading.controls)
    next_number = 1
    (first, opener), (last, closer) = waiting[0], waiting[-1]
    ends = opener.effect.controls, closer.effect.controls
    if (first, last) == (1, reading.total) and ends in _PAIRS:
        waiting.pop(0)
        absorbed |= {1, reading.total}
        next_number = 2
        for word, start, _ in tokens(text, opener.start, opener.end):
            if word not in _OPENING_WORDS:
                settings.append(f"SET TRANSACTION {text[start : opener.end]}")
                break
    while waiting and waiting[0][0] == next_number and waiting[0][1].effect.controls == "SET TRANSACTION":
        _, statement = waiting.pop(0)
        absorbed.add(next_number)
        next_number += 1
        settings.append(text[statement.start : statement.end])
    return "\n;".join(settings), absorbed


def _forbidden_controls(source: Source, reading: _Reading, absorbed: set[int]) -> Iterator[Problem]:
    for number, statement in reading.controls:
        if number in absorbed:
            continue
        if source.options.no_transaction:
            message = f"{statement.effect.controls} in a file that runs statement by statement"
            cure = "give the transaction a file of its own, without the directive no-transaction"
        elif statement.effect.controls == "SET TRANSACTION":
            message = "SET TRANSACTION behind other statements has no effect"
            cure = "make it the first statement of the file"
        else:
            message = f"{statement.effect.controls} would end or split the transaction that pgratchet keeps"
            cure = "remove it: each file is one transaction already"
        yield Problem(source.path, message, cure, statement.line)


def _mixed(source: Source, refusals: Sequence[Statement], total: int) -> Problem:
    statement = refusals[0]
    if len(refusals) == total:
        message = f"{statement.effect.refuses} cannot run in a transaction"
        return Problem(source.path, message, "remove BEGIN and COMMIT around it", statement.line)
    message = (
        f"{statement.effect.refuses} cannot run in a transaction, and the file has {total - 1} other statement(s) "
        "that should share one"
    )
    cure = "move it to a file of its own, or give up the transaction with a first line '-- pgratchet: no-transaction'"
    return Problem(source.path, message, cure, statement.line)


def _segments(text: str, statements: Iterable[Statement], total: int, mode: Mode) -> Iterator[Segment]:
    """Yield the segments: one for each statement where they run one by one, else at most MOST_MARKERS + 1."""
    most, size = -(-total // (MOST_MARKERS + 1)), len(text) + 1
    if mode is Mode.STATEMENTS:
        most = 1
    elif len(text) > 4 * CHUNK:
        most, size = total, max(CHUNK, len(text) // MOST_MARKERS)
    group: Segment | None = None
    for number, statement in enumerate(statements, 1):
        if group is None:
            group = Segment(statement.start, statement.end, number, 1, statement.effect.refuses)
        else:
            group = Segment(group.start, statement.end, group.first, group.statements + 1)
        if group.statements >= most or group.end - group.start >= size:
            yield group
            group = None
    if group is not None:
        yield group


def loads_another_library(script: Script) -> bool:
    """Say whether a script may put a library in the place of one that its session keeps: it updates an extension.

    By its text alone, also in the middle of a string: the name of the extension may be put in by a DO.
    """
    return _LOADS_ANOTHER_LIBRARY.search(script.source.text) is not None


def digests(script: Script) -> Iterator[str]:
    """Yield, for each statement of a script that runs statement by statement, the digest of all statements up to it.

    Line endings do not matter: another checkout of the file is the same script.
    """
    text, running = script.source.text, hashlib.sha256()
    for segment in script.segments:
        running.update(text[segment.start : segment.end].replace("\r\n", "\n").encode() + b"\0")
        yield running.hexdigest()


def session_settings(script: Script, done: int) -> Iterator[Segment]:
    """Yield those of the first `done` statements that do nothing but change a setting of their session."""
    for segment in script.segments[:done]:
        match head(script.source.text, segment.start, segment.end, 2):
            case ("SET", "LOCAL" | "TRANSACTION" | "CONSTRAINTS"):
                continue
            case ("SET" | "RESET", *_):
                yield segment
            case ("SELECT", "SET_CONFIG" | "PG_CATALOG"):
                # Nothing but set_config() with constants, as pg_dump writes it.
                words = [word for word, _, _ in tokens(script.source.text, segment.start, segment.end)]
                call = words[3 if words[2:3] == ["."] else 1 :]
                if call == ["SET_CONFIG", "(", "'", ",", "'", ",", "FALSE", ")"]:
                    yield segment
