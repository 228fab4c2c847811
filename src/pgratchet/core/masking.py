"""Passwords are kept out of texts, variables and tracebacks that other tools print."""

import re
import sys
from collections.abc import Collection
from contextlib import AbstractContextManager
from types import CellType, TracebackType
from typing import Generic, TypeVar, cast

from pgratchet.core.arguments import spelled
from pgratchet.core.printing import printable

T = TypeVar("T")

_URL = re.compile(r"\w://|\bpostgres\w*(?:\+\w+)?:/(?!/)")
_EXAMPLE = "user:password@"
"""The part of our own messages that looks like a user and a password, but is no secret."""
_NAME_ENDS = re.compile(r"[@:]")
_HOST = re.compile(r"[^\s'\"]*")
# Where its end is in doubt, a password goes on to the end of the text: quotes and backslashes may have been quoted
# again, and a value in a URL's query that is not percent-encoded may hold blanks.
_PASSWORD = re.compile(
    r"(password\s*=\s*)"
    r"(?:'[^'\\]*'(?=[\s\"')]|\Z)"
    r"|(?<![?&]password=)[^\s'\"\\]+(?=\s+(?:host|hostaddr|port|user|dbname|sslmode|options)\s*=)"
    r"|.*)",
    re.DOTALL | re.IGNORECASE,
)


class Hidden(Generic[T]):
    """A value that no repr shows, neither its own nor the repr of an object that holds it."""

    __slots__ = ("_cell",)

    def __init__(self, value: T) -> None:
        # In a cell, because some tools print the values in slots; of a cell they print only the type.
        self._cell = CellType(value)

    def reveal(self) -> T:
        """Return the value: use it in an expression, not in a variable of a frame that an error may pass through."""
        return cast("T", self._cell.cell_contents)

    def __bool__(self) -> bool:
        return bool(self.reveal())

    def __repr__(self) -> str:
        return "***"


def hide(value: T | Hidden[T]) -> Hidden[T]:
    """Return the value hidden, once only. The caller has to `del` its own variable next."""
    return value if isinstance(value, Hidden) else Hidden(value)


class FramesForgotten(AbstractContextManager["FramesForgotten"]):
    """Removes the tracebacks of the exception that its block raises, and of all exceptions that led to it.

    It is for foreign code whose variables hold a password: such code may raise anything at any point. Make the object
    in the `with` statement itself.
    """

    def __init__(self) -> None:
        self._handled = sys.exception()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An exception that was handled before the block is part of the chain, and belongs to the caller.
        seen = {id(self._handled), id(None)}
        found = [error]
        while found:
            each = found.pop()
            if each is not None and id(each) not in seen:
                seen.add(id(each))
                each.__traceback__ = None
                found += [each.__cause__, each.__context__]
                if isinstance(each, BaseExceptionGroup):
                    found += each.exceptions


def discreet(value: T) -> T:
    """Return a text without the passwords of its URLs and connection strings; any other value as it is."""
    if not isinstance(value, str):
        return value
    return cast("T", _without_user(_PASSWORD.sub(r"\1...", value)))


def _without_user(text: str) -> str:
    """Return a text without user, password and host of the first URL that has a password."""
    # A password may hold any character: it ends at the last @ of the text. The time of a single pattern for that would
    # grow with the cube of the text's length.
    end = text.rfind("@")
    for scheme in _URL.finditer(text, 0, max(end, 0)):
        begin = scheme.end()
        name = _NAME_ENDS.search(text, begin, end)
        if name is not None and name[0] == ":" and not text.startswith(_EXAMPLE, begin):
            host = _HOST.match(text, end + 1)
            return f"{text[:begin]}...{text[host.end() if host else end :]}"
    return text


def misplaced(**given: object) -> str:
    """Return the reason to refuse arguments: one holds a password, as only a DSN may; empty where none does."""
    for name, value in given.items():
        # Joined: a connection string that was given as a list in a variable has been split at its blanks.
        parts = value if isinstance(value, Collection) and not isinstance(value, str | bytes) else [value]
        # A number holds no password, and may have too many digits for str().
        text = " ".join(str(part) for part in parts if not isinstance(part, int))
        if discreet(text) != text:
            where = f"{spelled('dsn')} or {spelled('direct_dsn')}"
            return f"{name} holds a password ('{printable(discreet(text))}'); only a DSN may, as {where}"
    return ""
