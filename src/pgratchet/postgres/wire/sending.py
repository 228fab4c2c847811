"""A run's session in use: what is sent, what the server says meanwhile, and who is in the way."""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import asyncpg

from pgratchet.core.events import Retried, StatementFinished, Tell
from pgratchet.core.model import Segment, Step
from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import Budget, Tries, backoff
from pgratchet.postgres.link.session import Connection, describe, lost, open_session
from pgratchet.postgres.link.unreadable import UnreadableError
from pgratchet.postgres.wire.message import Message, Part
from pgratchet.postgres.wire.watch import Blockers, beside

LOOK_AFTER = 2.0
"""Seconds that work may take before a second session looks who blocks it, and between two looks, at most."""

NO_TRANSACTION = "25P01"
"""What the server warns of when a ROLLBACK of ours has nothing to roll back."""

T = TypeVar("T")

_log = logging.getLogger("pgratchet")


class Wire:
    """One session. What it waits, `budget` bounds; `tell` gets to know what was retried, and which statements are done.

    `blockers` are looked for while it is at work. `marks` counts the markers heard since the last `restart`: what the
    server says that is `marker`, as a whole.
    """

    def __init__(self, connection: Connection, blockers: Blockers, budget: Budget, tell: Tell, marker: str) -> None:
        self.connection = connection
        self._marker = marker
        self.marks = 0
        self.budget = budget
        self._tell = tell
        self._marked: deque[Part] = deque()
        self._version = ""
        self._lock_timeout = 0.0
        self._blockers = blockers

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear the server's notices inside the block."""
        self.connection.add_log_listener(self._hear)
        try:
            yield
        finally:
            if not self.connection.is_closed():
                self.connection.remove_log_listener(self._hear)

    def _hear(self, _: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.message == self._marker:
            self.marks += 1
            if self._marked:
                part = self._marked.popleft()
                self.tell_finished(part.claim.step, part.segment)
        elif message.sqlstate != NO_TRANSACTION:
            _log.info("%s: %s", message.severity, message.message)

    def tell_finished(self, step: Step, segment: Segment) -> None:
        """Tell that a step is done up to the end of a segment."""
        version, name, total = step.migration.version, step.migration.name, step.script.statements
        done = segment.first + segment.statements - 1
        self._tell(StatementFinished(version, name, step.direction, done, total))

    def restart(self) -> None:
        """Count markers from 0: what was sent before is over."""
        self.marks = 0
        self._marked.clear()

    def expect_marks(self, parts: Sequence[Part]) -> None:
        """Take the markers to come for those of the parts, in order."""
        self._marked.extend(part for part in parts if part.marked)

    def expect(self, version: str, lock_timeout: float) -> None:
        """Look who blocks in time for a lock_timeout of so many seconds, which is what a lock not had has cost."""
        self._version = version
        self._lock_timeout = lock_timeout
        self._blockers.every = min(LOOK_AFTER, lock_timeout / 2) or LOOK_AFTER

    async def send(self, message: Message, meanwhile: Callable[[], None] | None = None) -> None:
        """Run a message of the simple protocol; `meanwhile` is called once it is under way.

        Raises ConnectionLostError where the session is lost.
        """
        try:
            await self.watch(partial(own.execute, self.connection, message.text), meanwhile)
        except asyncpg.PostgresError as error:
            if self.connection.is_closed():
                raise lost(error) from error
            raise

    async def send_apart(self, message: Message) -> None:
        """Run a message of ours, in a session of its own where this one has ended."""
        if self.connection.is_closed():
            async with open_session(self._blockers.connect, self.budget) as connection:
                await own.execute(connection, message.text)
        else:
            await self.send(message)

    async def roll_back(self, reset: str) -> None:
        """Leave whatever transaction is open, and take back what a script has left in the session."""
        # What cannot be read here is a warning: the server goes on behind it.
        with suppress(UnreadableError):
            await own.execute(self.connection, f"ROLLBACK;{reset}")

    async def watch(self, work: Callable[[], Awaitable[T]], meanwhile: Callable[[], None] | None = None) -> T:
        """Return what `work` returns; whoever blocks it for long is logged."""

        async def look_out() -> None:
            if meanwhile is not None:
                meanwhile()
            await self._blockers.look_out()

        self._blockers.seen = ""
        return await beside(look_out, work)

    async def retried(self, place: str, work: Callable[[], Awaitable[T]]) -> T:
        """Return what `work` returns, tried again for as long as the server's errors may pass.

        Raises the error that does not; no transaction is open then.
        """
        tries = Tries()
        while True:
            try:
                return await work()
            except asyncpg.PostgresError as error:
                await self.roll_back("")
                if not tries.may_succeed_after(error):
                    raise
                await self.before_retry(place, error, tries.attempt)

    async def before_retry(self, what: str, error: asyncpg.PostgresError, attempt: int) -> None:
        """Pause before another attempt at work that failed, and say what was in its way."""
        if isinstance(error, asyncpg.LockNotAvailableError):
            self.budget.spend(self._lock_timeout)
        event = Retried(self._version, what, attempt + 1, describe(error), self._blockers.seen)
        self._tell(event)
        await self.budget.pause(*backoff(attempt), event.why)
