"""The settings of a migrator: flags and the environment first, then [tool.pgratchet]."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pgratchet.cli.options import given_by, spelling
from pgratchet.core import arguments
from pgratchet.core.errors import UsageError
from pgratchet.core.masking import FramesForgotten, Hidden, hide, misplaced
from pgratchet.core.model import Lock, WaitFor
from pgratchet.files import directory
from pgratchet.files.layouts import LAYOUTS
from pgratchet.migrator import Migrator
from pgratchet.postgres.link import dsn, sql

DEFAULT_DIR = "migrations/versions"
PYPROJECT = "pyproject.toml"
NO_DSN = (
    "there is no DSN: give --dsn postgresql://user:password@host:port/database, set PGRATCHET_DSN or DATABASE_URL, "
    'or write dsn = "..." under [tool.pgratchet] in pyproject.toml'
)


DSNS = ("dsn", "direct_dsn")
DURATIONS = ("budget", "connect_budget", "lock_timeout", "statement_timeout")

CHECKS: Mapping[str, Callable[[str, Any], object]] = {
    "dir": arguments.path,
    "layout": lambda what, value: arguments.choice(what, value, LAYOUTS),
    "table": lambda what, value: sql.Table.parse(value, what),
    **dict.fromkeys(DURATIONS, arguments.duration),
    "allow_late": arguments.switch,
    "strict": arguments.switch,
    "allow_empty": arguments.switch,
    "wait_for": lambda what, value: arguments.choice(what, value, WaitFor),
    "readers": sql.roles,
    "trusted_owners": sql.roles,
    "journal": arguments.path,
    "lock": lambda what, value: arguments.choice(what, value, Lock),
    "owner": sql.owner,
}
"""The checks of a migrator's arguments. They run here too, because only here the source of a value is known."""

SETTINGS = (*DSNS, *CHECKS)


def open_migrator(flags: Mapping[str, Any]) -> Migrator:
    """Return the migrator with these settings; raises UsageError for a setting that cannot be right."""
    settings = read(flags)
    address, folder = settings.pop("dsn", None), settings.pop("dir", DEFAULT_DIR)
    if address is None:
        raise UsageError(NO_DSN)
    # Revealed in the call itself, so that no variable of this frame holds a DSN.
    return Migrator(address.reveal(), folder, **{n: v.reveal() if n in DSNS else v for n, v in settings.items()})


def read(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return each given setting by its name in [tool.pgratchet], as a migrator takes it; DSNs are hidden.

    Raises UsageError for a value that cannot be right; the message names its flag and variable, or its setting.
    """
    given = {name: value for name, value in flags.items() if name in SETTINGS and value not in (None, [])}
    settings = _in_pyproject() | given
    for name, value in settings.items():
        _check(name, spelling(name) if name in given else _place(name), hide(value))
    for name in settings.keys() & set(DSNS):
        settings[name] = _sourced(settings[name], given_by(name, settings[name]) if name in given else _place(name))
    for name in settings.keys() & set(DURATIONS):
        settings[name] = arguments.duration(name, settings[name])
    if "layout" in settings:
        settings["layout"] = LAYOUTS[settings["layout"]]
    return settings


def _sourced(address: Hidden[str], source: str) -> Hidden[str]:
    return Hidden(dsn.SourcedDsn(address.reveal(), source))


def _check(name: str, what: str, value: Hidden[Any]) -> None:
    """Raise UsageError for a value that cannot be right; the message calls it `what`."""
    if name in DSNS:
        dsn.address_of(value, what)
    elif why := misplaced(**{what: value.reveal()}):
        raise UsageError(why)
    else:
        CHECKS[name](what, value.reveal())


def _in_pyproject() -> dict[str, Any]:
    try:
        content = Hidden(directory.content(PYPROJECT))
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not Path(PYPROJECT).is_symlink():
            return {}
        raise UsageError(f"cannot read {PYPROJECT}: {error.strerror}") from None
    # NULs are removed first: a file in UTF-16 would not seem to mention pgratchet, and would be skipped silently.
    if b"pgratchet" not in content.reveal().replace(b"\0", b""):
        return {}
    section = _table(_table(Hidden(_parsed(content)), "tool"), "pgratchet")
    for name in section.reveal():
        if name not in SETTINGS:
            raise UsageError(f"unknown setting {_place(name)}{did_you_mean(name, SETTINGS)}")
    return {name: Hidden(value) if name in DSNS else value for name, value in section.reveal().items()}


def _place(name: str) -> str:
    return f"'{name}' under [tool.pgratchet] in {PYPROJECT}"


def _parsed(content: Hidden[bytes]) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415 - needed only for settings in this file

    if b"\0" in content.reveal():
        raise UsageError(f"cannot read {PYPROJECT}: it has NUL bytes, as UTF-16 has; save it as UTF-8")
    try:
        with FramesForgotten():
            return tomllib.loads(content.reveal().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        what = f"{error}; save it as UTF-8"
    except RecursionError:
        what = "its values are nested too deeply"
    except ValueError as error:
        what = str(error)
    raise UsageError(f"cannot read {PYPROJECT}: {what}")


def _table(parent: Hidden[dict[str, Any]], name: str) -> Hidden[dict[str, Any]]:
    """Return a table of pyproject.toml, or an empty one if it is missing."""
    table = Hidden(parent.reveal().get(name, {}))
    if not isinstance(table.reveal(), dict):
        raise UsageError(f"'{name}' in {PYPROJECT} must be a table; write the settings under [tool.pgratchet]")
    return table


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown word."""
    import difflib  # noqa: PLC0415 - needed only for a mistake

    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(names)}"
