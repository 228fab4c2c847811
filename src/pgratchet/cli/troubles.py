"""Errors as lines for people, as documents for programs, and as exit codes for the shell."""

import traceback
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from pgratchet.cli import excerpts
from pgratchet.cli.interruption import InterruptedBySignalError
from pgratchet.cli.reports import Report
from pgratchet.core.errors import (
    BehindError,
    BudgetExceededError,
    FilesError,
    HistoryError,
    MigrationFailedError,
    PgratchetError,
    ScriptError,
)
from pgratchet.core.masking import discreet
from pgratchet.core.model import Direction, Failure, Finished, Mode
from pgratchet.core.printing import ranges

EXIT_CODES: dict[type[BaseException], int] = {
    MigrationFailedError: 1,
    BehindError: 3,
    HistoryError: 4,
    FilesError: 4,
    ScriptError: 4,
    BudgetExceededError: 5,
    PgratchetError: 2,
    BaseException: 6,
}
"""The exit code of an error is that of the first class that fits."""

WRONG_USE = 2
UNWRITTEN = 7

FORESEEN = (PgratchetError, InterruptedBySignalError)
"""Every other error is a mistake of pgratchet, or of a library that it uses."""


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error."""
    if isinstance(error, InterruptedBySignalError):
        return 128 + error.signal
    return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))


def report(error: BaseException) -> Report:
    """Return the report of an error."""
    if not isinstance(error, FORESEEN):
        return _unexpected(error)
    document = {"error": {"type": type(error).__name__, "message": discreet(str(error)), **_facts(error)}}
    match error:
        case MigrationFailedError():
            finished = {"finished": [step._asdict() for step in error.finished]}
            return Report(tuple(_failed(error.failure, error.finished)), finished | document)
        case FilesError():
            count = len(error.problems)
            total = "1 problem" if count == 1 else f"{count} problems"
            return Report([*map(str, error.problems), total], document)
        case InterruptedBySignalError():
            return Report([str(error)], document)
        case _:
            return Report([f"error: {line}" for line in discreet(str(error)).split("\n")], document)


def _unexpected(error: BaseException) -> Report:
    # Not str(error), which may raise.
    said = discreet("".join(traceback.format_exception_only(error)).strip())
    lines = [
        f"error: this should not have happened: {said}",
        "please report it, with the output of --verbose; committed work stays, and `pgratchet status` shows it",
    ]
    return Report(lines, {"error": {"type": type(error).__name__, "message": said}})


def _facts(error: PgratchetError | InterruptedBySignalError) -> dict[str, Any]:
    match error:
        case MigrationFailedError():
            return {"failure": error.failure._asdict()}
        case FilesError():
            return {"problems": [problem._asdict() for problem in error.problems]}
        case HistoryError():
            return {"versions": list(error.versions)}
        case BehindError():
            return {
                "versions": list(error.versions),
                "interrupted": list(error.interrupted),
                "in_doubt": list(error.in_doubt),
            }
        case InterruptedBySignalError():
            return {"signal": error.signal.name}
        case _:
            return {}


def _failed(failure: Failure, finished: Sequence[Finished]) -> Iterator[str]:
    place = ":".join(str(part) for part in (failure.path, failure.line, failure.column) if part is not None)
    where = f" in statement {failure.statement} of {failure.statements}" if failure.statement else ""
    step = f"{failure.direction} {failure.version} {failure.name}"
    yield f"{place}: {step} failed{where}" if failure.history is None else f"{step} could not be recorded"
    if failure.excerpt and failure.line is not None:
        yield ""
        yield from excerpts.drawn(failure.excerpt, failure.line, failure.column)
        yield ""
    yield f"SQLSTATE {failure.sqlstate}: {failure.message}" if failure.sqlstate else failure.message
    for name in ("detail", "hint", "context"):
        if said := getattr(failure, name):
            yield f"{name}: {said}"
    yield ""
    if finished:
        yield f"finished before it: {_together(finished)}; they stay"
    yield _advice(failure)


def _together(finished: Sequence[Finished]) -> str:
    """Return the versions by direction: between those that a run has finished in one direction it has left none."""
    groups = [
        (direction, [step.version for step in steps]) for direction, steps in groupby(finished, attrgetter("direction"))
    ]
    plain = all(direction is Direction.UP for direction, _ in groups)
    return ", ".join(f"{'' if plain else f'{way} '}{ranges(versions, versions)}" for way, versions in groups)


def _advice(failure: Failure) -> str:
    what = "the file" if failure.history is None else f"{failure.history}, not the file,"
    again = f"fix {what} and run `pgratchet {failure.direction}` again"
    if failure.mode is Mode.TRANSACTION:
        return f"{again}: the failed migration was rolled back"
    return f"{again}: the statements before this one stay committed, and the run goes on after them"
