"""Errors that contain errors: groups, and errors with a cause."""

import asyncio
from collections.abc import Iterator


def sole(error: BaseException) -> BaseException:
    """Return the only error of a group, or of groups inside of groups; any other error as it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def inner(error: BaseException) -> tuple[BaseException, ...]:
    """Return the errors inside of an error, each once and in order: the members of its groups, and explicit causes."""
    found = {id(each): each for each in _flat(error, set())}
    found.pop(id(error), None)
    return tuple(found.values())


def told(error: BaseException) -> str:
    """Return the kinds and texts of an error and of all errors inside of it; a server's error has its code instead."""
    texts = dict.fromkeys(map(_text, inner(error)))
    return ": ".join(filter(None, (_text(error), "; ".join(texts))))


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of a server's error; None for any other error."""
    code = getattr(error, "sqlstate", None)
    return code if isinstance(code, str) else None


def _flat(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    if id(error) in seen:
        return
    seen.add(id(error))
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _flat(each, seen)
    else:
        yield error
    # The driver's own causes repeat its text, and each timeout is made of a cancellation.
    cause = error.__cause__
    if cause is not None and sqlstate(error) is None and not isinstance(cause, asyncio.CancelledError):
        yield from _flat(cause, seen)


def _text(error: BaseException) -> str:
    code = sqlstate(error)
    if code is not None and error.args:
        return f"{error.args[0]} ({code})"
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
