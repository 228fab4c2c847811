"""Checks of arguments: names without unseen characters, and durations that the server takes."""

from pgratchet.core.errors import UsageError
from pgratchet.core.printing import UNSEEN

LONGEST_SECONDS = 2147483.647
"""The longest time limit that PostgreSQL's settings take: 2147483647 ms, which is 24 days."""

_CONTROLS = frozenset(map(chr, (*range(0x20), *range(0x7F, 0xA0))))

_WAY_OUT = "take it away: what comes from a file or a secret, for example, often ends with a newline"


def name(what: str, text: str) -> str:
    """Return a name that means exactly what is seen of it.

    Raises UsageError for blanks around it and for characters that nobody sees: with either it would be the name of
    something else, which looks the same. `what` says whose name it is.
    """
    if (found := unseen(text)) is not None:
        raise UsageError(f"{what} is '{_shown(text)}', which has {found}; {_WAY_OUT}")
    return text


def path(what: str, text: str) -> str:
    """Return a path; raises UsageError for control characters, and for blanks around it, which nobody has meant."""
    # All else may be in a folder's name: bytes that are no UTF-8 have become surrogates, an emoji has selectors.
    control = next((each for each in text if each in _CONTROLS), None)
    if control is not None or text != text.strip():
        raise UsageError(f"{what} is '{_shown(text)}', which has {_named(control)}; {_WAY_OUT}")
    return text


def prose(what: str, text: str) -> str:
    """Return a text of several words or lines; raises UsageError for one that the server cannot store."""
    if found := next((each for each in text if each == "\0" or "\ud800" <= each <= "\udfff"), None):
        raise UsageError(f"{what} has {_named(found)}, which PostgreSQL cannot store; take it away")
    return text


def seconds(what: str, value: float) -> float:
    """Return a duration; raises UsageError for what is no number of seconds, or more than the server takes."""
    # Not shown: an integer may have too many digits for that, and any value may be one that was meant for another.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_SECONDS:
        raise UsageError(f"{what} must be a number of seconds, from 0 to {LONGEST_SECONDS} (24 days)")
    return value


def unseen(text: str) -> str | None:
    """Return what of a text nobody sees, blanks between words aside; None where all of it is seen."""
    found = next((each for each in text if not _is_seen(each)), None)
    return _named(found) if found is not None or text != text.strip() else None


def _is_seen(character: str) -> bool:
    return character.isprintable() and character not in UNSEEN


def _named(character: str | None) -> str:
    return "a blank at its beginning or end" if character is None else f"the character {_escaped(character)} in it"


def _shown(text: str) -> str:
    # The text may be a DSN that was given in the wrong place, and hold a password.
    return "..." if "://" in text or "=" in text else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    return character if _is_seen(character) else ascii(character)[1:-1]
