"""What a migrator is made with: flags and the environment first, then [tool.pgratchet]."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pgratchet.core.errors import UsageError
from pgratchet.core.masking import FramesForgotten, Hidden
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
        content = Hidden(Path(PYPROJECT).read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {PYPROJECT}: {error.strerror}") from None
    if b"pgratchet" not in content.reveal():
        return {}
    section = Hidden(_parsed(content).get("tool", {}).get("pgratchet", {}))
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

    try:
        with FramesForgotten():
            return tomllib.loads(content.reveal().decode())
    except ValueError as error:
        raise UsageError(f"cannot read {PYPROJECT}: {error}") from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown word."""
    import difflib  # noqa: PLC0415 - only a mistake pays for it

    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(names)}"
