"""Tells what happens to the log, with its parts as fields of the record, and to whoever listens."""

import inspect
import logging
from collections.abc import Callable
from typing import get_args

from pgratchet.core.errors import UsageError
from pgratchet.core.events import Done, Event, Failed, Looked, Retried, StatementFinished

Listener = Callable[[Event], object]

_NAMES = {kind: [f"migration_{name}" for name in ("event", *kind._fields)] for kind in get_args(Event)}

_log = logging.getLogger("pgratchet")


def refuse_coroutine(name: str, called: Callable[..., object] | None) -> None:
    """Raise UsageError for what would only make a coroutine, that nobody awaits, when it is called."""
    if inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(getattr(called, "__call__", None)):  # noqa: B004 - it is the method that counts
        raise UsageError(f"{name} is called, and not awaited: make it a plain function, which may start a task")


def tell(event: Event, listener: Listener | None) -> None:
    """Log an event and hand it to the listener; what goes wrong in there is logged, and disturbs no migration."""
    level = _level(event)
    if _log.isEnabledFor(level):
        _log.log(level, "%s", event, extra=fields(event))
    if listener is not None:
        try:
            listener(event)
        except Exception:  # noqa: BLE001 - a listener may raise anything
            _log.exception("the listener failed at %s", type(event).__name__)


def _level(event: Event) -> int:
    match event:
        case Looked() | StatementFinished() | Done(finished=()):
            return logging.DEBUG
        case Retried() | Failed(cancelled=True):
            return logging.WARNING
        case Failed():
            return logging.ERROR
        case _:
            return logging.INFO


def fields(event: Event) -> dict[str, object]:
    """Return what a record has of an event.

    With a prefix, as `name` and `message` are fields of every record already, and `event` is structlog's own.
    """
    kind = type(event)
    return dict(zip(_NAMES[kind], (kind.__name__, *event), strict=True))
