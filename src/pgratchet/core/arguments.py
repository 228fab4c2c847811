"""Checks of arguments: of the right type, names without unseen characters, durations that the server takes.

The first parameter of each is the name of the argument for the caller: a parameter, a flag, a variable or a setting.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

from pgratchet.core.errors import UsageError
from pgratchet.core.printing import UNSEEN

LONGEST_SECONDS = 2147483.647
"""The longest time limit that PostgreSQL's settings take: 2147483647 ms, which is 24 days."""

Spelling: TypeAlias = Callable[[str, object], str]
"""Returns an argument, with a value if that is not None, in the form in which its giver writes it."""

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
"""The units of a duration that is a text, in seconds; a text without a unit is in seconds too."""

_DURATION = re.compile(rf"([0-9]{{0,10}}\.?[0-9]{{1,9}})\s*({'|'.join(UNITS)}|)")

_CONTROLS = frozenset(map(chr, (*range(0x20), *range(0x7F, 0xA0))))

_WAY_OUT = "remove it: a text from a file or a secret, for example, often ends with a newline"


def _as_keyword(name: str, value: object) -> str:
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    return name if value is None else f"{name}={shown}"


_spelling: ContextVar[Spelling] = ContextVar("spelling", default=_as_keyword)


@contextmanager
def spelling(spell: Spelling) -> Iterator[None]:
    """Let messages about arguments be for a caller that writes them as `spell` does."""
    token = _spelling.set(spell)
    try:
        yield
    finally:
        _spelling.reset(token)


def spelled(name: str, value: object = None) -> str:
    """Return an argument as its giver writes it: `lock="session"` in Python, `--lock session` on the command line."""
    return _spelling.get()(name, value)


def text(what: str, value: object) -> str:
    """Return a string; raises UsageError for a value of another type."""
    # The value itself is never shown: it may be a secret that was meant for another argument.
    if not isinstance(value, str):
        raise UsageError(f"{what} must be a string, and is {_kind(value)}")
    return value


def name(what: str, value: object) -> str:
    """Return a name whose characters are all visible.

    Raises UsageError for blanks around it and for invisible characters: with either it would be another name that
    looks the same.
    """
    given = text(what, value)
    if (found := unseen(given)) is not None:
        raise UsageError(f"{what} is '{_shown(given)}', which has {found}; {_WAY_OUT}")
    return given


def path(what: str, value: object) -> str:
    """Return a path; raises UsageError for an empty path, for control characters, and for blanks around it."""
    given = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(given, str):
        raise UsageError(f"{what} must be a path, as a string or a Path, and is {_kind(given)}")
    if not given:
        raise UsageError(f"{what} is empty; name a path, or leave it out")
    # A folder's name may have all other characters: bytes that are not UTF-8 are surrogates here, emoji have selectors.
    control = next((each for each in given if each in _CONTROLS), None)
    if control is not None or given != given.strip():
        raise UsageError(f"{what} is '{_shown(given)}', which has {_named(control)}; {_WAY_OUT}")
    return given


def prose(what: str, value: object) -> str:
    """Return a text of several words or lines; raises UsageError for a text that the server cannot store."""
    given = text(what, value)
    if found := next((each for each in given if each == "\0" or "\ud800" <= each <= "\udfff"), None):
        raise UsageError(f"{what} has {_named(found)}, which PostgreSQL cannot store; remove it")
    return given


def seconds(what: str, value: object, otherwise: str = "") -> float:
    """Return a duration; raises UsageError for anything but a number of seconds that the server accepts."""
    # Not shown: an integer may have too many digits for str(), and any value may be meant for another argument.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_SECONDS:
        raise UsageError(f"{what} must be a number of seconds, from 0 to {LONGEST_SECONDS} (24 days){otherwise}")
    return value


def duration(what: str, value: object) -> float:
    """Return a duration in seconds, as `seconds` does, also of a text such as '500ms', '10s' or '2m'."""
    return seconds(what, seconds_of(value) if isinstance(value, str) else value, ", or a text such as 500ms, 10s or 2m")


def seconds_of(text: str) -> float | None:
    """Return the seconds of a text such as '500ms', '1.5 min' or '10', with or without a unit; None for other texts."""
    found = _DURATION.fullmatch(text.strip())
    return float(found[1]) * UNITS.get(found[2], 1.0) if found else None


def limit(what: str, value: object) -> float | None:
    """Return a duration as `seconds` does, or None for no limit."""
    return None if value is None else seconds(what, value)


def count(what: str, value: object, least: int = 1) -> int:
    """Return a whole number of `least` or more; raises UsageError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{what} must be a whole number, {least} or more")
    return value


def switch(what: str, value: object) -> bool:
    """Return True or False; raises UsageError for anything else, such as the text 'false'."""
    if not isinstance(value, bool):
        raise UsageError(f"{what} must be true or false, and is {_kind(value)}")
    return value


def choice(what: str, value: object, choices: Iterable[str]) -> str:
    """Return one of the choices; raises UsageError, which names them, for anything else."""
    known = list(map(str, choices))
    if not isinstance(value, str) or value not in known:
        shown = f"'{_shown(value):.40}'" if isinstance(value, str) else _kind(value)
        raise UsageError(f"{what} is {shown}; it must be one of {', '.join(known)}")
    return value


def several(what: str, values: object, each: Callable[[str, object], str]) -> tuple[str, ...]:
    """Return the members of a collection, each as `each` returns it.

    Raises UsageError for anything but a collection, also for a string: its letters would be the members.
    """
    if not isinstance(values, Collection) or isinstance(values, str | bytes | bytearray | Mapping):
        raise UsageError(f"{what} must be a list of strings, also for one of them, and is {_kind(values)}")
    return tuple(each(f"one of {what}", value) for value in values)


def function(what: str, value: Any, wanted: str) -> None:
    """Raise UsageError for a value that cannot be called; `wanted` describes the function that is needed."""
    if not callable(value):
        raise UsageError(f"{what} must be {wanted}, and is {_kind(value)}")


def unseen(value: str) -> str | None:
    """Return a description of the first invisible part of a text, blanks between words aside; None for none."""
    found = next((each for each in value if not _is_seen(each)), None)
    return _named(found) if found is not None or value != value.strip() else None


def _is_seen(character: str) -> bool:
    return character.isprintable() and character not in UNSEEN


def _named(character: str | None) -> str:
    return "a blank at its beginning or end" if character is None else f"the character {_escaped(character)} in it"


def _kind(value: object) -> str:
    return "None" if value is None else f"of the type {type(value).__name__}"


def _shown(value: str) -> str:
    # The text may be a DSN that was given in the wrong place, and hold a password.
    return "..." if "://" in value or "=" in value else "".join(map(_escaped, value))


def _escaped(character: str) -> str:
    return character if _is_seen(character) else ascii(character)[1:-1]
