"""All errors that pgratchet raises on purpose, grouped by the person who has to act.

PgratchetError
├── UsageError                the caller: an argument, a setting or a DSN that cannot be right
├── ServerError               the operator: no server, no right to it, or no lock on it
│   ├── AbsentError           whoever makes databases and roles: one is not there, or a right to it
│   └── ConnectionLostError   nobody yet: the run connects again
├── ScriptError               the author of one script: it cannot be read as SQL
├── FilesError                the authors of the directory: every problem at once
├── MigrationFailedError      the author of the migration that failed
├── HistoryError              the release manager: files and history disagree
│   └── ForeignTableError     the installer: another tool's table has our table's name
├── BehindError               the deployer: migrations are pending where none may be
├── StartInterruptedError     nobody: a signal has ended the start of an application
└── BudgetExceededError       the waiting caller: the time allowed for waiting is over

Each keeps its arguments in `args`, so that it survives the way through a process pool. The result of str() is
printable, whatever it quotes; the attributes hold texts as they are.
"""

from collections.abc import Sequence

from pgratchet.core.model import Failure, Finished, Problem
from pgratchet.core.printing import printable, printable_lines, ranges


class PgratchetError(Exception):
    """The base of all errors that pgratchet raises on purpose.

    Each of its arguments is a line of its message. `finished` are the steps that the failed run had finished before:
    they stay.
    """

    finished: tuple[Finished, ...] = ()

    def __str__(self) -> str:
        return "\n".join(printable(str(line)) for line in self.args)


class UsageError(PgratchetError):
    """An argument, a setting or a DSN cannot be right."""


class ServerError(PgratchetError):
    """The server cannot be reached, refuses the role, or cannot give what a run needs."""


class AbsentError(ServerError):
    """A database, a role, a schema or a right that the run needs is not there; somebody else may be making it."""


class ConnectionLostError(ServerError):
    """The session ended before the run did."""


class ScriptError(PgratchetError):
    """A script cannot be read as SQL. `offset` is the place of the mistake, in characters."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message, offset)
        self.offset = offset

    def __str__(self) -> str:
        return printable(str(self.args[0]))


class FilesError(PgratchetError):
    """The directory has problems; the error holds all of them, each with its file, its line and its cure."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class MigrationFailedError(PgratchetError):
    """A step failed. `finished` are the steps before it: they stay."""

    def __init__(self, failure: Failure, finished: Sequence[Finished] = ()) -> None:
        self.failure = failure
        self.finished = tuple(finished)
        super().__init__(failure, self.finished)

    def __str__(self) -> str:
        failure = self.failure
        place = failure.path if failure.line is None else f"{failure.path}:{failure.line}:{failure.column}"
        of_file = "" if failure.history else f"{place}: "
        code = f" ({failure.sqlstate})" if failure.sqlstate else ""
        return printable(f"{of_file}{failure.direction} {failure.version} failed: {failure.message}{code}")


class HistoryError(PgratchetError):
    """Files and history disagree about `versions`. Each line of the message is about one of them."""

    def __init__(self, message: str, versions: Sequence[str] = ()) -> None:
        self.versions = tuple(versions)
        super().__init__(message, self.versions)

    def __str__(self) -> str:
        return printable_lines(str(self.args[0]))


class ForeignTableError(HistoryError):
    """The history table belongs to another tool."""


class BehindError(PgratchetError):
    """The schema is older than the files.

    Of the `versions` that are not applied, the next run goes on with those that were `interrupted`, and stops at those
    that are `in_doubt`. `order` has all versions, oldest first.
    """

    def __init__(
        self,
        versions: Sequence[str],
        interrupted: Sequence[str] = (),
        in_doubt: Sequence[str] = (),
        order: Sequence[str] = (),
    ) -> None:
        self.versions = tuple(versions)
        self.interrupted = tuple(interrupted)
        self.in_doubt = tuple(in_doubt)
        self.order = tuple(order)
        super().__init__(self.versions, self.interrupted, self.in_doubt, self.order)

    def __str__(self) -> str:
        said = {"interrupted": self.interrupted, "in doubt": self.in_doubt}
        begun = "".join(f"; {state}: {ranges(each, self.order)}" for state, each in said.items() if each)
        return f"{len(self.versions)} migration(s) pending: {ranges(self.versions, self.order)}{begun}"


class StartInterruptedError(PgratchetError):
    """A signal has ended the start of an application while it waited."""


class BudgetExceededError(PgratchetError):
    """The budget for waiting ran out; the message says what the run was waiting for."""
