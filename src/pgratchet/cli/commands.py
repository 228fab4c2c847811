"""One plain function for each command: it calls the library once, and returns a report."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, TypeVar, Unpack

import typer

from pgratchet.cli import reports
from pgratchet.cli.interruption import run
from pgratchet.cli.options import Common, Expecting, Judging, Locking, Writing
from pgratchet.cli.reports import Report
from pgratchet.cli.settings import DEFAULT_DIR, open_migrator, read
from pgratchet.core.errors import UsageError
from pgratchet.core.model import Destination, Kind, State, Verdict
from pgratchet.files.layouts import DEFAULT_LAYOUT
from pgratchet.migrator import Migrator
from pgratchet.migrator import new as write_files

T = TypeVar("T")

LOOKS, LOOK_AGAIN = 10, 0.1
"""How often the history is read again after an interrupted run while a version is running, and the seconds between."""

To = Annotated[str | None, typer.Option(metavar="VERSION", help="The last version to apply.")]
DownTo = Annotated[str | None, typer.Option(metavar="VERSION", help="Revert every version above this one; 0 for all.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan; change nothing.")]
Rehearse = Annotated[bool, typer.Option("--rehearse", help="Do the work in one transaction, and roll it back.")]
DownSteps = Annotated[int | None, typer.Option(metavar="N", min=1, help="The newest N versions; 1 if not given.")]
Steps = Annotated[int, typer.Option(metavar="N", min=1, help="The newest N versions.")]
Description = Annotated[str, typer.Argument(help="The purpose of the migration, in a few words.")]
Python = Annotated[bool, typer.Option("--python", help="Write a Python migration instead of SQL.")]
Source = Annotated[str, typer.Option(metavar="NAME", help="The history table of the home-made runner.")]
Yes = Annotated[bool, typer.Option("--yes", help="Write the history; without --yes the command only shows the result.")]
SkipFailed = Annotated[bool, typer.Option("--skip-failed", help="Leave out migrations that failed there.")]

Version = Annotated[str, typer.Argument(help="The version that you judge.")]
Applied = Annotated[bool, typer.Option("--applied", help="The whole migration took effect: count it as applied.")]
NotApplied = Annotated[bool, typer.Option("--not-applied", help="Nothing of it took effect: run it from its start.")]
Again = Annotated[bool, typer.Option("--again", help="The statement in doubt had no effect: go on with it.")]
Skip = Annotated[bool, typer.Option("--skip", help="The statement in doubt took effect: go on after it.")]
Accept = Annotated[bool, typer.Option("--accept", help="The edited file of an applied version is right as it is.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="The reason; the history keeps it.")]


class StoppedError(Exception):
    """The work of a migrator ended with an error, its `cause`, at a `destination`."""

    def __init__(self, cause: BaseException, destination: Destination) -> None:
        super().__init__(cause, destination)
        self.cause = cause
        self.destination = destination


def up(to: To = None, *, dry_run: DryRun = False, rehearse: Rehearse = False, **flags: Unpack[Writing]) -> Report:
    """Apply the pending migrations."""
    if dry_run and rehearse:
        raise UsageError("--dry-run and --rehearse are two different things; give one of them")
    if dry_run:
        return _report(flags, lambda migrator: migrator.plan(to), reports.planned)
    if rehearse:
        return _report(flags, lambda migrator: migrator.rehearse(to), reports.rehearsed)
    return _report(flags, lambda migrator: migrator.up(to), reports.done, _left)


def down(to: DownTo = None, steps: DownSteps = None, **flags: Unpack[Writing]) -> Report:
    """Revert the newest version, or more."""
    return _report(flags, lambda migrator: migrator.down(to, steps=steps), reports.done, _left)


def redo(steps: Steps = 1, **flags: Unpack[Writing]) -> Report:
    """Revert the newest version and apply it again."""
    return _report(flags, lambda migrator: migrator.redo(steps), reports.done, _left)


def status(**flags: Unpack[Common]) -> Report:
    """Show every version, in the files and in the database."""
    return _report(flags, lambda migrator: migrator.status(), reports.status)


def check(**flags: Unpack[Judging]) -> Report:
    """Exit with 0 if everything is applied, with 3 or 4 if not."""
    return _report(flags, lambda migrator: migrator.check(), reports.up_to_date)


def wait(**flags: Unpack[Expecting]) -> Report:
    """Return when another runner has applied everything."""
    return _report(flags, lambda migrator: migrator.wait(), reports.up_to_date)


def plan(to: To = None, **flags: Unpack[Judging]) -> Report:
    """Show the plan of `up`; change nothing."""
    return _report(flags, lambda migrator: migrator.plan(to), reports.planned)


def new(description: Description, *, python: Python = False, **flags: Unpack[Common]) -> Report:
    """Write the files of a new migration."""
    settings = read(flags)
    folder, layout = settings.get("dir", DEFAULT_DIR), settings.get("layout", DEFAULT_LAYOUT)
    return reports.created(write_files(folder, description, Kind.PYTHON if python else Kind.SQL, layout=layout))


def adopt(
    source: Source = "public.schema_migrations",
    *,
    yes: Yes = False,
    skip_failed: SkipFailed = False,
    **flags: Unpack[Locking],
) -> Report:
    """Take over the history of a home-made runner."""
    return _report(
        flags,
        lambda migrator: migrator.adopt(source, dry_run=not yes, skip_failed=skip_failed),
        reports.adopted,
    )


def repair(  # noqa: PLR0913 - one option for each verdict
    version: Version,
    *,
    reason: Reason,
    applied: Applied = False,
    not_applied: NotApplied = False,
    again: Again = False,
    skip: Skip = False,
    accept: Accept = False,
    **flags: Unpack[Locking],
) -> Report:
    """Settle a version that no run can judge."""
    given = zip(Verdict, (applied, not_applied, again, skip, accept), strict=True)
    verdicts = [verdict for verdict, is_given in given if is_given]
    if len(verdicts) != 1:
        raise UsageError(f"give one of {', '.join(f'--{verdict}' for verdict in Verdict)}")
    return _report(flags, lambda migrator: migrator.repair(version, verdicts[0], reason), reports.repaired)


def _report(
    flags: Common,
    work: Callable[[Migrator], Awaitable[T]],
    report: Callable[[T], Report],
    left: Callable[[Migrator], Awaitable[str]] | None = None,
) -> Report:
    """Return the report of a migrator's work, with the place where it was done; raises StoppedError.

    `left` is asked what interrupted work has left.
    """
    migrator = open_migrator(flags)
    try:
        result = run(partial(work, migrator), left and partial(left, migrator))
    except BaseException as error:
        raise StoppedError(error, migrator.destination) from error
    return report(result).at(migrator.destination)


async def _left(runner: Migrator) -> str:
    """Return the states of all versions after an interrupted run, in one line."""
    entries = await runner.status()
    for _ in range(LOOKS):
        # The server ends the session of the run a moment after the run has closed it.
        if all(entry.state is not State.RUNNING for entry in entries):
            break
        await asyncio.sleep(LOOK_AGAIN)
        entries = await runner.status()
    return reports.left(entries)


COMMANDS = {command.__name__: command for command in (up, down, redo, status, check, wait, plan, new, adopt, repair)}
