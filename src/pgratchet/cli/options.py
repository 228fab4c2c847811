"""The options that commands share, and how a command gets them."""

import os
from collections.abc import Callable
from functools import cache, partial
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, Literal, TypedDict, get_args, get_type_hints

import typer

from pgratchet.core.masking import Hidden
from pgratchet.files.layouts import DEFAULT_LAYOUT, LAYOUTS


def _setting(name: str, metavar: str | None, text: str, **more: Any) -> Any:
    return typer.Option(metavar=metavar, envvar=f"PGRATCHET_{name}", help=text, **more)


_DSN = typer.Option(
    metavar="URL", envvar=["PGRATCHET_DSN", "DATABASE_URL"], help="postgresql://user:password@host/name", parser=Hidden
)
_DIR = _setting("DIR", "FOLDER", "The folder of migrations; migrations/versions if not given.")
_LAYOUT = _setting("LAYOUT", "NAME", f"The form of files: {', '.join(LAYOUTS)}; {DEFAULT_LAYOUT.name} if not given.")
_TABLE = _setting("TABLE", "NAME", "The history table; public.schema_migrations if not given.")
_JSON = typer.Option("--json", help="Write one JSON document to stdout instead of lines.")
_VERBOSE = typer.Option("--verbose", "-v", help="Log more, to stderr.")
_LATE = _setting("ALLOW_LATE", None, "Also apply pending versions below an applied one.")
_EMPTY = _setting("ALLOW_EMPTY", None, "Accept a folder without migrations.")
_STRICT = _setting("STRICT", None, "Refuse gaps between versions, and applied versions without a file.")
_BUDGET = _setting("BUDGET", "DURATION", "The longest wait in total, as 500ms, 10s or 2m; no limit if not given.")
_CONNECT = _setting(
    "CONNECT_BUDGET", "DURATION", "The longest wait for a first answer, 0 for no limit; 60s if not given."
)
_WAIT_FOR = _setting("WAIT_FOR", None, "Things to wait for that others make: database includes roles and rights.")
_DIRECT = _setting("DIRECT_DSN", "URL", "The database without its pooler, for taking the lock.", parser=Hidden)
_LOCK = _setting("LOCK", None, "How runners exclude each other; as the connection allows if not given.")
_OWNER = _setting("OWNER", "ROLE", "The role that runs the migrations and owns the history.")
_LOCK_TIMEOUT = _setting("LOCK_TIMEOUT", "DURATION", "The limit for each statement, 0 for none; 5s if not given.")
_STATEMENT = _setting("STATEMENT_TIMEOUT", "DURATION", "The limit for each statement; none if not given.")
_JOURNAL = _setting("JOURNAL", "FILE", "A file that gets one line for each finished step.")
_READERS = typer.Option(
    "--reader",
    metavar="ROLE",
    envvar="PGRATCHET_READERS",
    help="A role that may wait and check; repeatable; in the variable, separate roles by blanks.",
)


_TRUSTED = typer.Option(
    "--trusted-owner",
    metavar="ROLE",
    envvar="PGRATCHET_TRUSTED_OWNERS",
    help="A role that may own the history and functions of its triggers; repeatable; the variable has blanks between.",
)


class Common(TypedDict, total=False):
    """The options of every command. The names, except `json` and `verbose`, are those of [tool.pgratchet]."""

    dsn: Annotated[Hidden[str] | None, _DSN]
    dir: Annotated[str | None, _DIR]
    layout: Annotated[str | None, _LAYOUT]
    table: Annotated[str | None, _TABLE]
    trusted_owners: Annotated[list[str] | None, _TRUSTED]
    json: Annotated[bool | None, _JSON]
    verbose: Annotated[bool | None, _VERBOSE]


class Judging(Common, total=False):
    """The options of commands that compare the files with the history."""

    allow_late: Annotated[bool | None, _LATE]
    strict: Annotated[bool | None, _STRICT]
    allow_empty: Annotated[bool | None, _EMPTY]


class Waiting(Judging, total=False):
    """The options of commands that wait."""

    budget: Annotated[str | None, _BUDGET]
    connect_budget: Annotated[str | None, _CONNECT]


class Expecting(Waiting, total=False):
    """The options of the command that only waits."""

    wait_for: Annotated[Literal["server", "database"] | None, _WAIT_FOR]


class Locking(Waiting, total=False):
    """The options of commands that take the lock."""

    direct_dsn: Annotated[Hidden[str] | None, _DIRECT]
    lock: Annotated[Literal["session", "transaction", "none"] | None, _LOCK]
    owner: Annotated[str | None, _OWNER]


class Writing(Locking, total=False):
    """The options of commands that change the database."""

    wait_for: Annotated[Literal["server", "database"] | None, _WAIT_FOR]
    lock_timeout: Annotated[str | None, _LOCK_TIMEOUT]
    statement_timeout: Annotated[str | None, _STATEMENT]
    readers: Annotated[list[str] | None, _READERS]
    journal: Annotated[str | None, _JOURNAL]


def spelled_out(command: Callable[..., object]) -> Signature:
    """Return the signature of a command; each member of its `**flags: Unpack[...]` is a parameter."""
    *own, flags = signature(command).parameters.values()
    (group,) = get_args(flags.annotation)
    hints: dict[str, Any] = get_type_hints(group, include_extras=True)
    shared = [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=hint) for name, hint in hints.items()]
    return Signature([*own, *shared])


def taken_as_given(params: list[Any]) -> list[Any]:
    """Return the parameters of a command; typer converts only values that need it.

    From 0.29 on, typer converts each value by a model of pydantic, also one that is not given, and a text. Loading
    pydantic and building the models would be a third of a start.
    """
    for param in params:
        # Older versions convert by themselves.
        if hasattr(param, "type_descriptor"):
            param.process_value = partial(_process, param)
    return params


def _process(param: Any, ctx: Any, value: Any) -> Any:
    """Return the value of a parameter, as its `process_value` does."""
    described, text = param.type_descriptor, isinstance(value, str)
    if text and described.parameter_info.parser is not None:
        value = described.parameter_info.parser(value)
    elif value is None and not param.required:
        value = () if param.multiple else None
    elif described.annotation == list[str] and not text:
        value = list(value)
    elif not (text and described.annotation is str):
        return type(param).process_value(param, ctx, value)
    return value if param.callback is None else param.callback(ctx, param, value)


def flag(name: str, value: object = None) -> str:
    """Return an argument of the library as the command line has it, with its value if it is not None."""
    if name == "version":
        return "VERSION"
    if name not in _options():
        return f"--{name.replace('_', '-')}"
    if value is None:
        return spelling(name)
    option = _names(name)[0]
    if isinstance(value, list):
        return " ".join(f"{option} {each}" for each in value)
    return option if value is True else f"{option} {value}"


def spelling(name: str) -> str:
    """Return the names of a setting on the command line: its flag and its environment variables."""
    flag, variables = _names(name)
    return f"{flag} ({', '.join(variables)})"


def given_by(name: str, value: Hidden[str]) -> str:
    """Return the variable that has the value of a setting, or else its flag."""
    flag, variables = _names(name)
    return next((each for each in variables if os.environ.get(each) == value.reveal()), flag)


def _names(name: str) -> tuple[str, list[str]]:
    option = _options()[name]
    variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar
    # typer.Option keeps the first name in `default`; typer moves it only when it builds the command.
    return option.default if isinstance(option.default, str) else f"--{name.replace('_', '-')}", variables


@cache
def _options() -> dict[str, Any]:
    hints: dict[str, Any] = get_type_hints(Writing, include_extras=True)
    return {name: get_args(hint)[1] for name, hint in hints.items()}
