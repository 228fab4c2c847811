"""What a migrator is made with: flags and the environment first, then [tool.pgratchet]."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pgratchet.core.errors import UsageError
from pgratchet.core.masking import FramesForgotten, Hidden
from pgratchet.files import directory
from pgratchet.migrator import Migrator

DEFAULT_DIR = "migrations/versions"
PYPROJECT = "pyproject.toml"
NO_DSN = (
    "there is no DSN: give --dsn postgresql://user:password@host:port/database, set PGRATCHET_DSN or DATABASE_URL, "
    'or write dsn = "..." under [tool.pgratchet] in pyproject.toml'
)


class _Form(NamedTuple):
    """What a value in pyproject.toml has to be."""

    name: str
    fits: Callable[[Any], bool]


_TEXT = _Form("a string", lambda value: isinstance(value, str))
_SECONDS = _Form("a number of seconds", lambda value: type(value) in (int, float) and value >= 0)
_SWITCH = _Form("true or false", lambda value: isinstance(value, bool))
_TEXTS = _Form("a list of strings", lambda value: isinstance(value, list) and all(map(_TEXT.fits, value)))

DSNS = ("dsn", "direct_dsn")

FORMS = {
    "dsn": _TEXT,
    "dir": _TEXT,
    "table": _TEXT,
    "budget": _SECONDS,
    "lock_timeout": _SECONDS,
    "statement_timeout": _SECONDS,
    "allow_late": _SWITCH,
    "strict": _SWITCH,
    "readers": _TEXTS,
    "trusted_owners": _TEXTS,
    "journal": _TEXT,
    "direct_dsn": _TEXT,
    "lock": _TEXT,
    "owner": _TEXT,
}


def open_migrator(flags: Mapping[str, Any]) -> Migrator:
    """Return the migrator that the settings describe; raises UsageError where they cannot be right."""
    settings = read(flags)
    dsn, folder = settings.pop("dsn", None), settings.pop("dir", DEFAULT_DIR)
    if not dsn:
        raise UsageError(NO_DSN)
    # In the call itself: no variable holds what is revealed.
    return Migrator(dsn.reveal(), folder, **{n: v.reveal() if n in DSNS else v for n, v in settings.items()})


def read(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting that was given anywhere, by its name in [tool.pgratchet]; DSNs are hidden."""
    return _in_pyproject() | {name: value for name, value in flags.items() if name in FORMS and value not in (None, [])}


def _in_pyproject() -> dict[str, Any]:
    try:
        content = Hidden(directory.content(PYPROJECT))
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not Path(PYPROJECT).is_symlink():
            return {}
        raise UsageError(f"cannot read {PYPROJECT}: {error.strerror}") from None
    # Without its NULs: as UTF-16 it would not seem to mention us, and be passed over.
    if b"pgratchet" not in content.reveal().replace(b"\0", b""):
        return {}
    section = _table(_table(Hidden(_parsed(content)), "tool"), "pgratchet")
    for name in section.reveal():
        if name not in FORMS:
            raise UsageError(
                f"unknown setting '{name}' under [tool.pgratchet] in {PYPROJECT}{did_you_mean(name, FORMS)}"
            )
        if not FORMS[name].fits(section.reveal()[name]):
            raise UsageError(f"'{name}' under [tool.pgratchet] in {PYPROJECT} must be {FORMS[name].name}")
    return {name: Hidden(value) if name in DSNS else value for name, value in section.reveal().items()}


def _parsed(content: Hidden[bytes]) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415 - only who has settings there pays for the import

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
    """Return a table of pyproject.toml, an empty one where it is not there."""
    table = Hidden(parent.reveal().get(name, {}))
    if not isinstance(table.reveal(), dict):
        raise UsageError(f"'{name}' in {PYPROJECT} must be a table; write the settings under [tool.pgratchet]")
    return table


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown word."""
    import difflib  # noqa: PLC0415 - only a mistake pays for it

    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(names)}"
