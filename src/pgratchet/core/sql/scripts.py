"""A source in, a script out: what may run, in which mode, and cut where.

Whether a file is fit to run is decided here, before anything of the run is sent.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pgratchet.core.errors import FilesError, ScriptError
from pgratchet.core.model import Direction, Kind, Mode, Problem, Script, Segment, Source
from pgratchet.core.printing import line_of
from pgratchet.core.sql.lexing import head, tokens
from pgratchet.core.sql.statements import Statement, StatementKind, scan

MOST_MARKERS = 200
"""A script is cut into at most this many segments and one, so that progress costs little."""

BYTE_ORDER_MARK = "\ufeff"

CHUNK = 1 << 20
"""Scripts longer than four of these (characters) are cut by size, and sent in several messages."""

_OPENERS = ("BEGIN", "START TRANSACTION")
_CLOSERS = ("COMMIT", "END")
_OPENING_WORDS = {"BEGIN", "START", "WORK", "TRANSACTION"}


def compile_script(source: Source, kind: Kind, direction: Direction) -> Script:
    """Return the script of a source; raises FilesError with everything that makes it unfit to run."""
    return _compile_python(source, direction) if kind is Kind.PYTHON else _compile_sql(_for_server(source))


def _compile_python(source: Source, direction: Direction) -> Script:
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


def _for_server(source: Source) -> Source:
    """Return the source with blanks for the commands that newer pg_dumps write for psql alone (CVE-2025-8714)."""
    text = source.text
    if "\\restrict" not in text and "\\unrestrict" not in text:
        return source
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


def _compile_sql(source: Source) -> Script:
    statements, survey = _read(source)
    begin, absorbed = ("", set()) if source.options.no_transaction else _opening(source.text, survey)
    problems = survey.problems + list(_forbidden_controls(source, survey, absorbed))
    total = survey.total - len(absorbed)
    by_statement = source.options.no_transaction or (len(survey.refusals) == survey.total > 0)
    if survey.refusals and not by_statement:
        problems.append(_mixed(source, survey.refusals, total))
    if problems:
        raise FilesError(sorted(problems, key=lambda problem: problem.line or 0))
    mode = Mode.STATEMENTS if by_statement else Mode.TRANSACTION
    kept = (item for number, item in enumerate(statements, 1) if number not in absorbed)
    return Script(source, mode, _segments(source.text, kept, total, mode), total, begin)


class _Survey(NamedTuple):
    """What a first reading of a script has found."""

    total: int
    controls: list[tuple[int, Statement]]
    refusals: list[Statement]
    problems: list[Problem]


def _read(source: Source) -> tuple[Iterable[Statement], _Survey]:
    """Return the SQL statements, and what has to be known of all of them before any is sent.

    Those of a large script are read a second time instead of kept: there may be millions.
    """
    count, problems = 0, list[Problem]()
    controls, refusals, kept = list[tuple[int, Statement]](), list[Statement](), list[Statement]()
    small = len(source.text) <= 4 * CHUNK
    try:
        for count, statement in enumerate(_runnable(source, problems), 1):
            if statement.controls:
                controls.append((count, statement))
            if statement.refuses:
                refusals.append(statement)
            if small:
                kept.append(statement)
    except ScriptError as error:
        problems.append(Problem(source.path, str(error), "close it", line_of(source.text, error.offset)))
    return kept if small else _runnable(source, []), _Survey(count, controls, refusals, problems)


def _runnable(source: Source, problems: list[Problem]) -> Iterator[Statement]:
    """Yield the SQL statements; what is none goes to `problems`."""
    marked = BYTE_ORDER_MARK in source.text
    for item in scan(source.text):
        match item.kind:
            case StatementKind.SQL:
                if item.reads_stdin:
                    message = "COPY ... FROM STDIN carries its data in psql's own format"
                    cure = "write INSERTs instead, or load the data from a Python migration"
                    problems.append(Problem(source.path, message, cure, item.line))
                if item.refuses == "DISCARD ALL":
                    message, cure = "DISCARD ALL would give back the runner's lock", "remove it: what a file has left"
                    problems.append(Problem(source.path, message, f"{cure} in its session is discarded", item.line))
                if marked and (offset := _byte_order_mark(source.text, item)) is not None:
                    line = item.line + source.text.count("\n", item.start, offset)
                    message = "a byte order mark in the middle of the file, which PostgreSQL takes for a letter"
                    problems.append(Problem(source.path, message, "remove it: editors do not show it", line))
                yield item
            case StatementKind.META:
                command = source.text[item.start : item.end].split(maxsplit=1)[0]
                cure = "remove it: pgratchet sends SQL to the server, psql is not involved"
                problems.append(Problem(source.path, f"psql command {command}", cure, item.line))
            case StatementKind.COPY:
                pass


def _byte_order_mark(text: str, statement: Statement) -> int | None:
    """Return where one stands in a statement, outside of strings, quoted names and comments."""
    for word, start, _ in tokens(text, statement.start, statement.end):
        if BYTE_ORDER_MARK in word and '"' not in word:
            return start + word.index(BYTE_ORDER_MARK)
    return None


def _opening(text: str, survey: _Survey) -> tuple[str, set[int]]:
    """Return the SET TRANSACTION that a file opens with, and the numbers of the statements it replaces."""
    settings, absorbed = list[str](), set[int]()
    waiting = list(survey.controls)
    first = 1
    if len(waiting) > 1 and _is_pair(waiting[0], waiting[-1], survey.total):
        _, opener = waiting.pop(0)
        absorbed |= {1, survey.total}
        first = 2
        if options := _options(text, opener):
            settings.append(f"SET TRANSACTION {options}")
    while waiting and waiting[0][0] == first and waiting[0][1].controls == "SET TRANSACTION":
        _, statement = waiting.pop(0)
        absorbed.add(first)
        first += 1
        settings.append(text[statement.start : statement.end])
    return "\n;".join(settings), absorbed


def _is_pair(opener: tuple[int, Statement], closer: tuple[int, Statement], count: int) -> bool:
    return opener[0] == 1 and opener[1].controls in _OPENERS and closer[0] == count and closer[1].controls in _CLOSERS


def _options(text: str, opener: Statement) -> str:
    """Return what a BEGIN or START TRANSACTION says of its transaction."""
    for word, start, _ in tokens(text, opener.start, opener.end):
        if word not in _OPENING_WORDS:
            return text[start : opener.end]
    return ""


def _forbidden_controls(source: Source, survey: _Survey, absorbed: set[int]) -> Iterator[Problem]:
    for number, statement in survey.controls:
        if number in absorbed:
            continue
        if source.options.no_transaction:
            message = f"{statement.controls} in a file that runs statement by statement"
            cure = "give the transaction a file of its own, without the directive no-transaction"
        elif statement.controls == "SET TRANSACTION":
            message = "SET TRANSACTION behind other statements has no effect"
            cure = "make it the first statement of the file"
        else:
            message = f"{statement.controls} would end or split the transaction that pgratchet keeps"
            cure = "remove it: each file is one transaction already"
        yield Problem(source.path, message, cure, statement.line)


def _mixed(source: Source, refusals: Sequence[Statement], total: int) -> Problem:
    statement = refusals[0]
    if len(refusals) == total:
        message = f"{statement.refuses} cannot run in a transaction"
        return Problem(source.path, message, "remove what begins and ends one around it", statement.line)
    message = (
        f"{statement.refuses} cannot run in a transaction, and the file has {total - 1} other statement(s) "
        "that should share one"
    )
    cure = "move it to a file of its own, or give up the transaction with a first line '-- pgratchet: no-transaction'"
    return Problem(source.path, message, cure, statement.line)


def _segments(text: str, statements: Iterable[Statement], total: int, mode: Mode) -> tuple[Segment, ...]:
    most, size = -(-total // (MOST_MARKERS + 1)), 0
    if mode is Mode.STATEMENTS:
        most = 1
    elif len(text) > 4 * CHUNK:
        most, size = total, max(CHUNK, len(text) // MOST_MARKERS)
    return tuple(_grouped(statements, most, size or len(text) + 1))


def _grouped(statements: Iterable[Statement], most: int, size: int) -> Iterator[Segment]:
    """Yield runs of statements: at most `most` each, or as few as reach `size` characters."""
    group: Segment | None = None
    for number, statement in enumerate(statements, 1):
        if group is None:
            group = Segment(statement.start, statement.end, number, 1, statement.refuses)
        else:
            group = Segment(group.start, statement.end, group.first, group.statements + 1)
        if group.statements >= most or group.end - group.start >= size:
            yield group
            group = None
    if group is not None:
        yield group


def digests(script: Script) -> Iterator[str]:
    """Yield, for each statement of a script that runs statement by statement, what stands for all up to it."""
    text, running = script.source.text, hashlib.sha256()
    for segment in script.segments:
        running.update(text[segment.start : segment.end].encode() + b"\0")
        yield running.hexdigest()


def session_settings(script: Script, done: int) -> Iterator[Segment]:
    """Yield those of the first `done` statements that changed a setting of their session, and nothing else."""
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
