"""Signals that end a start while it waits: servers act on them only after the start."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGQUIT") if hasattr(signal, name))
"""gunicorn's master passes a SIGINT on to its workers as SIGQUIT."""

_listeners: list["Interruption"] = []
_installed: dict[int, tuple[Any, Any]] = {}
"""For each signal the handler that was there before, and ours."""


class Interruption:
    """Calls `interrupt`, in the event loop, when the first signal comes while a run waits.

    Only then the handlers of the signals are ours; they call those that were there before, which are put back. There
    are none outside the main thread, nor where the default action ends the process. `signal` is the signal that has
    come, None before that.
    """

    def __init__(self, interrupt: Callable[[], object]) -> None:
        self.signal: signal.Signals | None = None
        self._interrupt = interrupt
        self._loop = asyncio.get_running_loop()
        self._ended = threading.current_thread() is not threading.main_thread()

    def waiting(self) -> AbstractContextManager[None]:
        """Return a block in which signals are heard; to enter it raises CancelledError if one has been heard before."""
        return self._listening(on=True)

    def working(self) -> AbstractContextManager[None]:
        """Return a block in which signals are not heard; to enter it raises CancelledError, as above."""
        return self._listening(on=False)

    @contextmanager
    def _listening(self, *, on: bool) -> Iterator[None]:
        if self.signal is not None and not self._ended:
            # Between the signal and its turn in the loop nothing must begin.
            raise asyncio.CancelledError
        before = self in _listeners
        self._switch(on=on)
        try:
            yield
        finally:
            self._switch(on=before)

    def has_come(self) -> bool:
        """Return whether a signal has come."""
        return self.signal is not None

    def end(self) -> None:
        """Hear no signals from now on."""
        self._switch(on=False)
        self._ended = True

    def hear(self, number: int) -> None:
        """Take a signal into account; called by its handler."""
        if self.signal is None and not self._loop.is_closed():
            self.signal = signal.Signals(number)
            self._loop.call_soon_threadsafe(self._interrupt_if_waiting)

    def _interrupt_if_waiting(self) -> None:
        if self in _listeners:
            self._interrupt()

    def _switch(self, *, on: bool) -> None:
        if self._ended or on == (self in _listeners):
            return
        if on:
            _listeners.append(self)
        else:
            _listeners.remove(self)
        if on and len(_listeners) == 1:
            _install()
        if not _listeners:
            _put_back()


def _install() -> None:
    for number in SIGNALS:
        before = signal.getsignal(number)
        # The default action ends the process by itself; a handler that is not Python's cannot be put back.
        if before not in (signal.SIG_DFL, None):
            ours = _handler(before)
            signal.signal(number, ours)
            _installed[number] = before, ours


def _handler(before: Any) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        for each in tuple(_listeners):
            each.hear(number)
        if callable(before):
            before(number, frame)

    return handle


def _put_back() -> None:
    for number, (before, ours) in _installed.items():
        # Somebody may have set another one meanwhile.
        if signal.getsignal(number) is ours:
            signal.signal(number, before)
    _installed.clear()
