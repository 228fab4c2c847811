"""The program: it builds commands, runs them, writes their reports and sets the exit code."""

import gc
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from pgratchet.cli import streams, troubles
from pgratchet.cli.commands import COMMANDS, StoppedError
from pgratchet.cli.interruption import InterruptedBySignalError
from pgratchet.cli.options import flag, spelled_out, taken_as_given
from pgratchet.cli.reports import Report
from pgratchet.cli.settings import did_you_mean
from pgratchet.core.arguments import spelling
from pgratchet.core.errors import UsageError
from pgratchet.core.events import Failed
from pgratchet.core.masking import discreet
from pgratchet.core.printing import printable, printable_lines, to_json
from pgratchet.runs.excerpts import Drawn
from pgratchet.version import __version__

# The error for a wrong command line. From 0.26 on, it is of the copy of click inside typer, not of the package.
_WrongUseError = cast("type[Exception]", typer.BadParameter.__base__)
_PLAIN: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False}


class Program(TyperGroup):
    """Builds only the command that runs: building the options of all commands would take most of a start."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options that stand before a command."""
        return taken_as_given(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return one command; an unknown name is wrong use, but not while a shell completes words."""
        if cmd_name not in COMMANDS:
            if ctx.resilient_parsing:
                return None
            ctx.fail(f"there is no command '{cmd_name}'{did_you_mean(cmd_name, COMMANDS)}")
        only = typer.Typer(add_completion=False, **_PLAIN)
        only.command(cmd_name, cls=Command)(complete(COMMANDS[cmd_name]))
        return typer.main.get_command(only)


class Command(TyperCommand):
    """One command with its options."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options and arguments."""
        return taken_as_given(super().get_params(ctx))


def complete(command: Callable[..., Report]) -> Callable[..., None]:
    """Return a function for typer: it takes all options of the command, writes its report and sets the exit code."""

    @wraps(command)
    def run(**options: Any) -> None:
        with _logging(verbose=bool(options["verbose"])), spelling(flag):
            code = _carry_out(command, options)
        if code:
            raise typer.Exit(code)

    run.__signature__ = spelled_out(command)  # type: ignore[attr-defined]  # where inspect looks for it
    return run


def _carry_out(command: Callable[..., Report], options: dict[str, Any]) -> int:
    try:
        with streams.stdout_to_stderr() if options["json"] else nullcontext():
            report = command(**options)
    except BaseException as error:  # noqa: BLE001 - typer has exit codes of its own for some
        return _fail(error, as_json=options["json"], verbose=options["verbose"])
    _tell(report, ok=True, as_json=options["json"])
    return 0


def _fail(error: BaseException, *, as_json: bool | None, verbose: bool | None) -> int:
    """Report any error, and return the exit code."""
    stopped = error if isinstance(error, StoppedError) else None
    if stopped is not None:
        error = stopped.cause
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        error = InterruptedBySignalError(signal.SIGINT)
    if verbose and not isinstance(error, troubles.FORESEEN):
        trace = "".join(traceback.format_exception(error))
        typer.echo(printable_lines(discreet(trace)), file=sys.stderr)
    report = troubles.report(error)
    _tell(report.at(stopped.destination) if stopped is not None else report, ok=False, as_json=as_json)
    return troubles.exit_code(error)


def _tell(report: Report, *, ok: bool, as_json: bool | None) -> None:
    if not as_json or not ok:
        lines = (line if isinstance(line, Drawn) else printable(line) for line in report.lines)
        typer.echo("\n".join(lines), file=sys.stdout if ok else sys.stderr)
    if as_json:
        _write({"ok": ok, **report.document})


def _write(document: dict[str, Any]) -> None:
    typer.echo(to_json(document), file=sys.stdout)


@contextmanager
def _logging(*, verbose: bool) -> Iterator[None]:
    """Log to stderr inside the block; restored after it, because a test runs many commands in one process."""
    logger, handler = logging.getLogger("pgratchet"), logging.StreamHandler()
    # The report of the command has more about the failure.
    handler.addFilter(lambda record: getattr(record, "migration_event", "") != Failed.__name__)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it with the option's value
    if wanted:
        typer.echo(f"pgratchet {__version__}")
        raise typer.Exit


_SETTINGS = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}

app = typer.Typer(cls=Program, no_args_is_help=True, context_settings=_SETTINGS, **_PLAIN)


@app.callback()
def _start(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """PostgreSQL migrations, each applied exactly once, however many runners start at once."""


def main() -> None:
    """Run the command line of this process, and exit."""
    # All objects of the imports stay until the exit: otherwise the interpreter's last collections would search them.
    gc.freeze()
    # While the library is at work, `interruption.run` takes the signals; this is for the moments around it.
    before = signal.signal(signal.SIGTERM, _interrupt)
    with streams.lasting():
        code = _exit_code(sys.argv[1:])
        if trouble := streams.lost(sys.stdout):
            typer.echo(
                f"error: stdout has not taken the whole report: {trouble}; committed work stays", file=sys.stderr
            )
            code = code or troubles.UNWRITTEN
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    sys.exit(code)


def _interrupt(number: int, _: object) -> None:
    raise InterruptedBySignalError(number)


def _exit_code(arguments: list[str]) -> int:
    as_json, verbose = "--json" in arguments, not {"-v", "--verbose"}.isdisjoint(arguments)
    try:
        return app(arguments, prog_name="pgratchet", standalone_mode=False) or 0
    except _WrongUseError as error:
        return _wrong_use(error, as_json=as_json)
    except BaseException as error:  # noqa: BLE001 - the interpreter's exit code would say that a migration failed
        if isinstance(error, SystemExit) and isinstance(error.code, int | None):
            return error.code or 0  # typer's, after it has served a shell's completion
        return _fail(error, as_json=as_json, verbose=verbose)


def _wrong_use(error: Any, *, as_json: bool) -> int:
    """Report wrong use as click does, with DSNs masked."""
    error.message = printable(discreet(error.message))
    error.show()
    if as_json:
        _write({"ok": False, **troubles.report(UsageError(error.format_message())).document})
    return troubles.WRONG_USE
