"""A run's session in use: messages out, notices in, and a look at the sessions that block it."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import anyio
import asyncpg

from pgratchet.core.events import Retried, StatementFinished
from pgratchet.core.model import Segment, Step
from pgratchet.postgres.ledger.history import Texts
from pgratchet.postgres.ledger.lock import HOLDERS
from pgratchet.postgres.ledger.records import Claim
from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import Budget, Tries, backoff, retry
from pgratchet.postgres.link.own import UnreadableError
from pgratchet.postgres.link.session import Connect, Connection, describe, lost, open_session
from pgratchet.postgres.link.sql import EQ
from pgratchet.postgres.wire.backends import SESSIONS, Wait, told
from pgratchet.postgres.wire.message import Message, Part, boundary
from pgratchet.postgres.wire.progress import Group, Progress

LOOK_AFTER = 2.0
"""Seconds, at most, before a second session looks for blockers of the work, and between two looks."""

LONGEST_CONNECTING = 1.0
"""Seconds that finished work may have to wait while the second session connects."""

NO_TRANSACTION = "25P01"
"""The server's warning that a ROLLBACK of ours has nothing to roll back."""

_BLOCKERS = (
    f"{SESSIONS} a.pid {EQ} ANY (SELECT pg_catalog.unnest(pg_catalog.pg_blocking_pids(w.pid)) FROM ("
    "SELECT $2::pg_catalog.int4 AS pid WHERE $2 IS NOT NULL "
    f"UNION ALL SELECT l.pid FROM {HOLDERS} AND $2 IS NULL) AS w)"
)

T = TypeVar("T")

Meanwhile = Callable[[], Coroutine[Any, Any, None]]
"""Our own work while the server works."""

_log = logging.getLogger("pgratchet")


class Wire:
    """One session. `budget` bounds its waiting; `progress` is told of steps, statements and retries.

    `blockers` looks for sessions in the way while this one works. Since the last `begin`, `marks` counts the notices
    whose whole text is `marker`, and `crossed` those that are its `boundary`.
    """

    def __init__(
        self, connection: Connection, blockers: "Blockers", budget: Budget, progress: Progress, marker: str
    ) -> None:
        self.connection = connection
        self.marks = self.crossed = 0
        self.budget = budget
        self.progress = progress
        self._blockers = blockers
        self._marker = marker
        self._boundary = boundary(marker)
        self._boundaries: deque[Claim | None] = deque()
        self._marked: deque[Part] = deque()
        self._version = ""
        self._lock_timeout = 0.0

    def begin(self, group: Group, lock_timeout: float) -> None:
        """Begin the first step of a group: events name its version, and markers are counted from 0.

        Blockers are looked for twice within `lock_timeout` seconds. A lock timeout charges all of them to the budget.
        """
        if self._version != group[0].step.migration.version:
            self._blockers.wait = None
        self._version = group[0].step.migration.version
        self._lock_timeout = lock_timeout
        self._blockers.every = min(LOOK_AFTER, lock_timeout / 2) or LOOK_AFTER
        self.marks = self.crossed = 0
        # Of all scripts the beginning is told, of the first one the end, too.
        self._boundaries = deque((group[0], None, *group[1:]))
        self._marked.clear()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear the server's notices inside the block."""
        self.connection.add_log_listener(self._hear)
        try:
            yield
        finally:
            if not self.connection.is_closed():
                self.connection.remove_log_listener(self._hear)

    def _hear(self, _: object, notice: asyncpg.PostgresLogMessage) -> None:
        if notice.message == self._marker:
            self.marks += 1
            if self._marked:
                part = self._marked.popleft()
                self.tell_finished(part.claim.step, part.segment)
        elif notice.message == self._boundary:
            self.crossed += 1
            claim = self._boundaries.popleft() if self._boundaries else None
            if claim is not None:
                self.progress.begin(claim.step)
        elif notice.sqlstate != NO_TRANSACTION:
            _log.info("%s: %s", notice.severity, notice.message)

    def tell_finished(self, step: Step, segment: Segment) -> None:
        """Tell that a step is done up to the end of a segment."""
        self._blockers.wait = None
        version, name, total = step.migration.version, step.migration.name, step.script.statements
        done = segment.first + segment.statements - 1
        self.progress.tell(StatementFinished(version, name, step.direction, done, total))

    async def send(self, message: Message, meanwhile: Meanwhile | None = None) -> dict[str, Texts]:
        """Run a message of the simple protocol, and return the columns that it reads.

        `meanwhile` runs while the server is at work on it. Raises ConnectionLostError if the session is lost.
        """
        self._marked.extend(part for part in message.parts if part.marked)
        try:
            if message.reads:
                return await self.watch(partial(own.copied, self.connection, message.text), meanwhile)
            await self.watch(partial(own.execute, self.connection, message.text), meanwhile)
        except asyncpg.PostgresError as error:
            if self.connection.is_closed():
                raise lost(error) from error
            raise
        return {}

    async def send_apart(self, message: Message) -> None:
        """Run a message of ours, in a new session if this one has ended."""
        if self.connection.is_closed():
            async with open_session(self._blockers.connect, self.budget) as connection:
                await own.execute(connection, message.text)
        else:
            await self.send(message)

    async def roll_back(self, reset: str) -> None:
        """End an open transaction, if there is one, and run `reset`."""
        # The server goes on after a warning that cannot be read.
        with suppress(UnreadableError):
            await own.execute(self.connection, f"ROLLBACK;{reset}")
        self._boundaries.clear()

    async def watch(self, work: Callable[[], Awaitable[T]], meanwhile: Meanwhile | None = None) -> T:
        """Return the result of `work`, or raise its error; log the sessions that block it for long.

        `meanwhile` runs once `work` waits for the server.
        """
        failure: BaseException | None = None
        self._blockers.seen = ""
        async with anyio.create_task_group() as group:
            if meanwhile is not None:
                group.start_soon(meanwhile)
            group.start_soon(self._blockers.look_out)
            try:
                result = await work()
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - a task group would wrap it; it is raised again below
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return result

    async def retried(self, place: str, work: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `work`, which is repeated after temporary errors of the server.

        Raises the last error; no transaction is open then.
        """

        async def attempt() -> T:
            self.crossed = 0
            try:
                return await work()
            except asyncpg.PostgresError:
                await self.roll_back("")
                raise

        return await retry(attempt, Tries(), partial(self.before_retry, place))

    async def before_retry(self, what: str, error: asyncpg.PostgresError, attempt: int) -> None:
        """Tell that `what` has failed and is tried again, and pause."""
        if isinstance(error, asyncpg.LockNotAvailableError):
            self.budget.spend(self._lock_timeout)
        event = Retried(self._version, what, attempt + 1, describe(error), self._blockers.seen)
        self.progress.tell(event)
        await self.budget.pause(*backoff(attempt), event.why)


class Blockers:
    """The sessions that block a runner, looked up from a second session, in autocommit.

    `tell` gets a sentence about them. `seen` describes the last ones, empty if there were none; `every` is the time
    between looks in seconds; `wait` is the present wait for them, None if there is none. The runner is the server
    process `pid`; if that is None, as behind a pooler, it is the one that holds the lock `key`.
    """

    def __init__(self, connect: Connect, key: int, pid: int | None, tell: Callable[[str], None]) -> None:
        self.seen = ""
        self.every = 1.0
        self.connect = connect
        self._worker = key, pid
        self._tell = tell
        self.wait: Wait | None = None

    async def look_out(self) -> None:
        """Look until cancelled. An error here is logged, and disturbs nobody."""
        await anyio.sleep(self.every)
        try:
            async with open_session(partial(_unhurried, self.connect)) as connection:
                try:
                    while True:
                        rows = await own.fetch(connection, _BLOCKERS, *self._worker)
                        if seen := told(rows):
                            self.seen = seen
                            self.wait = self.wait or Wait()
                            if self.wait.is_new(seen):
                                self._tell(f"waiting since {self.wait.since:%H:%M:%SZ} for a lock held by {seen}")
                        await anyio.sleep(self.every)
                finally:
                    # Not close(): a cancelled run would have to wait for it.
                    connection.terminate()
        except Exception as error:  # noqa: BLE001 - a factory of connections may raise anything
            _log.debug("cannot look for blockers: %s", describe(error))


async def _unhurried(connect: Connect) -> Connection:
    """Return a connection, also if the caller is cancelled meanwhile; raises TimeoutError after `LONGEST_CONNECTING`.

    A cancelled asyncpg.connect() may leave a future behind, and asyncio logs that its exception was never retrieved.
    """
    with anyio.fail_after(LONGEST_CONNECTING, shield=True):
        return await connect()
