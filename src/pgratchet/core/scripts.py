"""A source in, a script out: what may run, in which mode, and cut where.

Whether a file is fit to run is decided here, before anything of the run is sent.
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

from pgratchet.core.errors import FilesError, ScriptError
from pgratchet.core.model import Direction, Kind, Mode, Problem, Script, Segment, Source
from pgratchet.core.parsing import line_of
from pgratchet.core.statements import Statement, StatementKind, scan

MOST_MARKERS = 200
"""A script is cut into at most this many segments and one, so that progress costs little."""

CHUNK = 1 << 20
"""Scripts longer than four of these (characters) are cut by size, and sent in several messages."""

_OPENERS = ("BEGIN", "START TRANSACTION")
_CLOSERS = ("COMMIT", "END")
_OPENER = re.compile(r"(?:BEGIN(?:\s+(?:WORK|TRANSACTION)\b)?|START\s+TRANSACTION\b)\s*", re.IGNORECASE)


def compile_script(source: Source, kind: Kind, direction: Direction) -> Script:
    """Return the script of a source; raises FilesError with everything that makes it unfit to run."""
    if kind is Kind.PYTHON:
        return _compile_python(source, direction)
    try:
        return _compile_sql(source)
    except ScriptError as error:
        line = line_of(source.text, error.offset)
        raise FilesError([Problem(source.path, str(error), "close it", line)]) from None


def _compile_python(source: Source, direction: Direction) -> Script:
    if source.options.no_transaction:
        message = "a Python migration always runs in a transaction"
        raise FilesError([Problem(source.path, message, "remove the directive no-transaction")])
    try:
        tree = ast.parse(source.text, source.path)
    except SyntaxError as error:
        raise FilesError([Problem(source.path, f"{error.msg}", "mend the syntax", error.lineno)]) from None
    for node in tree.body:
        if isinstance(node, ast.AsyncFunctionDef) and node.name == direction:
            return Script(source, Mode.TRANSACTION, statements=1)
        if isinstance(node, ast.FunctionDef) and node.name == direction:
            message = f"'{direction}' is a plain function"
            cure = f"write 'async def {direction}(connection)'"
            raise FilesError([Problem(source.path, message, cure, node.lineno)])
    cure = f"write 'async def {direction}(connection)'"
    raise FilesError([Problem(source.path, f"no function '{direction}'", cure)])


def _compile_sql(source: Source) -> Script:
    problems: list[Problem] = []
    statements: Iterable[Statement] = _runnable(source, problems)
    if len(source.text) <= 4 * CHUNK:
        statements = list(statements)
    controls, refusals, count = [], [], 0
    for count, statement in enumerate(statements, 1):
        if statement.controls:
            controls.append((count, statement))
        if statement.refuses:
            refusals.append(statement)
    begin, absorbed = _opening(source.text, controls, count)
    problems += _forbidden_controls(source, [item for item in controls if item[0] not in absorbed])
    by_statement = source.options.no_transaction or (len(refusals) == count > 0)
    if refusals and not by_statement:
        problems.append(_mixed(source, refusals[0], count - len(absorbed)))
    if problems:
        raise FilesError(sorted(problems, key=lambda problem: problem.line or 0))
    mode = Mode.STATEMENTS if by_statement else Mode.TRANSACTION
    if not isinstance(statements, list):
        statements = _runnable(source, [])
    kept = (item for number, item in enumerate(statements, 1) if number not in absorbed)
    total = count - len(absorbed)
    return Script(source, mode, _segments(source.text, kept, total, mode), total, begin)


def _runnable(source: Source, problems: list[Problem]) -> Iterator[Statement]:
    """Yield the SQL statements; what is none goes to `problems`."""
    for item in scan(source.text):
        match item.kind:
            case StatementKind.SQL:
                if item.reads_stdin:
                    message = "COPY ... FROM STDIN carries its data in psql's own format"
                    cure = "write INSERTs instead, or load the data from a Python migration"
                    problems.append(Problem(source.path, message, cure, item.line))
                yield item
            case StatementKind.META:
                command = source.text[item.start : item.end].split(maxsplit=1)[0]
                if command not in {"\\restrict", "\\unrestrict"}:
                    cure = "remove it: pgratchet sends SQL to the server, psql is not involved"
                    problems.append(Problem(source.path, f"psql command {command}", cure, item.line))
            case StatementKind.COPY:
                pass


def _opening(text: str, controls: Sequence[tuple[int, Statement]], count: int) -> tuple[str, set[int]]:
    """Return the SET TRANSACTION that a file opens with, and the numbers of the statements it replaces."""
    settings, absorbed = [], set()
    waiting = list(controls)
    if waiting and waiting[0][0] == 1 and waiting[0][1].controls in _OPENERS:
        last, closer = waiting[-1]
        if last == count and closer.controls in _CLOSERS:
            statement = waiting.pop(0)[1]
            absorbed |= {1, count}
            if options := _OPENER.sub("", text[statement.start : statement.end], count=1):
                settings.append(f"SET TRANSACTION {options}")
    while waiting and waiting[0][1].controls == "SET TRANSACTION" and waiting[0][0] == len(absorbed - {count}) + 1:
        number, statement = waiting.pop(0)
        absorbed.add(number)
        settings.append(text[statement.start : statement.end])
    return "\n;".join(settings), absorbed


def _forbidden_controls(source: Source, controls: Sequence[tuple[int, Statement]]) -> Iterator[Problem]:
    for _, statement in controls:
        if statement.controls == "SET TRANSACTION":
            message = "SET TRANSACTION behind other statements has no effect"
            cure = "make it the first statement of the file"
        elif source.options.no_transaction:
            message = f"{statement.controls} in a file that runs statement by statement"
            cure = "give the transaction a file of its own, without the directive no-transaction"
        else:
            message = f"{statement.controls} would end or split the transaction that pgratchet keeps"
            cure = "remove it: each file is one transaction already"
        yield Problem(source.path, message, cure, statement.line)


def _mixed(source: Source, statement: Statement, count: int) -> Problem:
    message = (
        f"{statement.refuses} cannot run in a transaction, and the file has {count - 1} other statement(s) "
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
    return tuple(_grouped(text, statements, most, size or len(text) + 1))


def _grouped(text: str, statements: Iterable[Statement], most: int, size: int) -> Iterator[Segment]:
    """Yield runs of statements: at most `most` each, or as few as reach `size` characters."""
    group: Segment | None = None
    for number, statement in enumerate(statements, 1):
        # A run is sent as it stands, so it must not span a psql command that is to be skipped.
        if group is not None and "\\" in text[group.end : statement.start]:
            yield group
            group = None
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
