"""Sentences about a start for a person, where the application has not set up logging."""

import asyncio
import logging
import sys
from contextlib import suppress

from pgratchet.core.events import Done, Event, Looked, Retried, StatementFinished, Waiting
from pgratchet.core.model import Finished
from pgratchet.core.printing import printable

SILENT_SECONDS = 2.0
"""A wait that is over before is not worth a sentence."""

_log = logging.getLogger("pgratchet")


class Voice:
    """Writes to stderr what would be in no log: long waits and their ends, and applied migrations.

    It decides for each sentence whether a handler would take it, and installs none: an application that sets up
    logging later sees nothing twice.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._last = logging.INFO, ""
        self._ends_at_a_look = True

    def take(self, event: Event) -> None:
        """Take an event of the run into account, which the log has already."""
        match event:
            case Waiting():
                self._wait(logging.INFO, str(event), 0.0, ends_at_a_look=False)
            case Retried():
                self.waits(logging.WARNING, str(event), 0.0)
            case Looked() if not self._ends_at_a_look:
                pass  # the other runner has gone on, and the wait goes on
            case StatementFinished():
                pass
            case _:
                self._end(event)
        if isinstance(event, Finished):
            _write(logging.INFO, str(event))

    def waits(self, level: int, sentence: str, waited: float) -> None:
        """Take a sentence about a wait into account, which the log has at this level; a look at the history ends it."""
        self._wait(level, sentence, waited, ends_at_a_look=True)

    def _wait(self, level: int, sentence: str, waited: float, *, ends_at_a_look: bool) -> None:
        self._last, self._ends_at_a_look = (level, sentence), ends_at_a_look
        if self._timer is None:
            self._since = self._loop.time() - waited
            self._timer = self._loop.call_at(self._since + SILENT_SECONDS, self._speak)
        elif self._is_long():
            self._speak()

    def _speak(self) -> None:
        _write(*self._last)

    def _is_long(self) -> bool:
        return self._timer is not None and self._loop.time() >= self._timer.when()

    def _end(self, event: Event) -> None:
        if self._is_long():
            sentence = f"waited {self._loop.time() - self._since:.1f} s"
            _write(logging.INFO, sentence)
            if isinstance(event, Done):
                # A lock that was taken, and a connection that was made, are in the log already.
                _log.info("%s", sentence)
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._ends_at_a_look = None, True


def _write(level: int, sentence: str) -> None:
    """Write a sentence to stderr, unless a handler would take it from the log, or the log is told to be silent."""
    if not _is_taken(level):
        # There may be no stderr, or nobody who reads it.
        with suppress(AttributeError, OSError, ValueError):
            sys.stderr.write(f"pgratchet: {printable(sentence)}\n")


def _is_taken(level: int) -> bool:
    if _log.level > level or logging.root.manager.disable >= level:
        return True
    if not _log.isEnabledFor(level):
        # By the level of another logger, WARNING by default; or logging.config has disabled this one, unasked.
        return False
    levels = []
    logger: logging.Logger | None = _log
    while logger is not None:
        levels += [handler.level for handler in logger.handlers]
        logger = logger.parent if logger.propagate else None
    if not levels and logging.lastResort is not None:
        levels.append(logging.lastResort.level)
    return any(level >= each for each in levels)
