"""The log and the listener: each event becomes a log record, with its parts as fields, and a call of the listener."""

import inspect
import logging
from collections.abc import Callable
from datetime import datetime
from typing import get_args

from pgratchet.core.errors import PgratchetError, UsageError
from pgratchet.core.events import Done, Event, Failed, Looked, Retried, StatementFinished, Tell
from pgratchet.core.printing import printable, printable_lines

Listener = Callable[[Event], object]

_NAMES = {kind: [f"migration_{name}" for name in ("event", *kind._fields)] for kind in get_args(Event)}

_log = logging.getLogger("pgratchet")


def _make_printable(record: logging.LogRecord) -> bool:
    """Make the texts in a record's message printable: names, queries of other sessions, words of the server."""
    if isinstance(record.args, tuple):
        record.args = tuple(map(_printable, record.args))
    return True


def _printable(argument: object) -> object:
    if isinstance(argument, PgratchetError | Failed):
        return argument  # printable already, in lines that are its own
    text = str(argument)
    shown = printable(text)
    return argument if shown == text else shown


# On the logger: its handlers belong to the application.
_log.addFilter(_make_printable)


def refuse_coroutine(name: str, called: Callable[..., object] | None) -> None:
    """Raise UsageError for a coroutine function: its coroutine would not be awaited."""
    if inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(getattr(called, "__call__", None)):  # noqa: B004 - it is the method that counts
        raise UsageError(f"{name} is called, and not awaited: make it a plain function, which may start a task")


def tell(take: Tell, listener: Listener | None, event: Event) -> None:
    """Let `take` have an event, log it, and call the listener with it.

    An error of the listener is logged, and disturbs no migration.
    """
    take(event)
    match event:
        case Looked() | StatementFinished() | Done(finished=()):
            level = logging.DEBUG
        case Retried() | Failed(cancelled=True):
            level = logging.WARNING
        case Failed():
            level = logging.ERROR
        case _:
            level = logging.INFO
    if _log.isEnabledFor(level):
        _log.log(level, "%s", event, extra=fields(event))
    if listener is not None:
        try:
            listener(event)
        except Exception:  # noqa: BLE001 - a listener may raise anything
            _log.exception("the listener failed at %s", type(event).__name__)


def fields(event: Event) -> dict[str, object]:
    """Return the fields that a log record has for an event.

    With a prefix, as `name` and `message` are fields of every record already, and `event` is structlog's own.
    Texts are printable, as some handlers write them as they are; times are texts, as others write them as JSON.
    """
    kind = type(event)
    show = printable_lines if kind is Failed else printable
    texts = (value.isoformat() if isinstance(value, datetime) else value for value in event)
    shown = (show(value) if isinstance(value, str) else value for value in texts)
    return dict(zip(_NAMES[kind], (kind.__name__, *shown), strict=True))
