"""Errors as lines for people, as documents for programs, and as exit codes for the shell."""

import traceback
from typing import Any

from pgratchet.cli.interruption import InterruptedBySignalError
from pgratchet.cli.reports import Report
from pgratchet.core.causes import inner
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
from pgratchet.runs.failures import told

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
            again = f"run `pgratchet {error.failure.direction}` again"
            return Report(tuple(told(error.failure, error.finished, again)), finished | document)
        case FilesError():
            count = len(error.problems)
            total = "1 problem" if count == 1 else f"{count} problems"
            return Report([*map(str, error.problems), total], document)
        case InterruptedBySignalError():
            return Report([str(error)], document)
        case _:
            return Report([f"error: {line}" for line in discreet(str(error)).split("\n")], document)


def _unexpected(error: BaseException) -> Report:
    # Not str(), which may raise.
    texts = ("".join(traceback.format_exception_only(each)).strip() for each in (error, *inner(error)))
    said = discreet("; ".join(dict.fromkeys(texts)))
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
