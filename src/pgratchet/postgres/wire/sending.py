"""A run's session in use: what is sent, what the server says meanwhile, and which sessions are in the way."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import anyio
import asyncpg

from pgratchet.core.events import Retried, StatementFinished, Tell
from pgratchet.core.model import Segment, Step
from pgratchet.postgres.ledger.lock import HOLDERS
from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import Budget, Tries, backoff, retry
from pgratchet.postgres.link.own import UnreadableError
from pgratchet.postgres.link.session import Connect, Connection, describe, lost, open_session
from pgratchet.postgres.link.sql import EQ
from pgratchet.postgres.wire.backends import SESSIONS, told
from pgratchet.postgres.wire.message import Message, Part

LOOK_AFTER = 2.0
"""Seconds that work may take before a second session looks who blocks it, and between two looks, at most."""

LONGEST_CONNECTING = 1.0
"""Seconds that finished work may have to wait for the second session, that looks who blocks it, to connect."""

NO_TRANSACTION = "25P01"
"""The server's warning that a ROLLBACK of ours has nothing to roll back."""

_BLOCKERS = (
    f"{SESSIONS} a.pid {EQ} ANY (SELECT pg_catalog.unnest(pg_catalog.pg_blocking_pids(w.pid)) FROM ("
    "SELECT $2::pg_catalog.int4 AS pid WHERE $2 IS NOT NULL "
    f"UNION ALL SELECT l.pid FROM {HOLDERS} AND $2 IS NULL) AS w)"
)

T = TypeVar("T")

Meanwhile = Callable[[], Coroutine[Any, Any, None]]
"""Work of ours that is done while the server does its own."""

_log = logging.getLogger("pgratchet")


class Wire:
    """One session. `budget` bounds its waiting; `tell` gets each retry and each finished statement.

    `blockers` are looked for while it is at work. `marks` counts the notices since the last `begin` whose whole text
    is `marker`.
    """

    def __init__(self, connection: Connection, blockers: "Blockers", budget: Budget, tell: Tell, marker: str) -> None:
        self.connection = connection
        self.marks = 0
        self.budget = budget
        self._blockers = blockers
        self._tell = tell
        self._marker = marker
        self._marked: deque[Part] = deque()
        self._version = ""
        self._lock_timeout = 0.0

    def begin(self, version: str, lock_timeout: float) -> None:
        """Begin a step: its version is that of retries, and its first marker is the next one.

        Blockers are looked for twice in `lock_timeout` seconds; each lock that it has not got costs all of them.
        """
        self._version = version
        self._lock_timeout = lock_timeout
        self._blockers.every = min(LOOK_AFTER, lock_timeout / 2) or LOOK_AFTER
        self.marks = 0
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

    async def send(self, message: Message, meanwhile: Meanwhile | None = None) -> None:
        """Run a message of the simple protocol; `meanwhile` runs while the server is at work on it.

        Raises ConnectionLostError if the session is lost.
        """
        self._marked.extend(part for part in message.parts if part.marked)
        try:
            await self.watch(partial(own.execute, self.connection, message.text), meanwhile)
        except asyncpg.PostgresError as error:
            if self.connection.is_closed():
                raise lost(error) from error
            raise

    async def send_apart(self, message: Message) -> None:
        """Run a message of ours, in a session of its own if this one has ended."""
        if self.connection.is_closed():
            async with open_session(self._blockers.connect, self.budget) as connection:
                await own.execute(connection, message.text)
        else:
            await self.send(message)

    async def roll_back(self, reset: str) -> None:
        """Leave any open transaction, and take back everything that a script has left in the session."""
        # The server goes on after a warning that cannot be read.
        with suppress(UnreadableError):
            await own.execute(self.connection, f"ROLLBACK;{reset}")

    async def watch(self, work: Callable[[], Awaitable[T]], meanwhile: Meanwhile | None = None) -> T:
        """Return the result of `work`, or raise its error; sessions that block it for long are logged.

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
        """Return the result of `work`, which is repeated while the server's errors are such that pass.

        Raises the last error; no transaction is open then.
        """

        async def attempt() -> T:
            try:
                return await work()
            except asyncpg.PostgresError:
                await self.roll_back("")
                raise

        return await retry(attempt, Tries(), partial(self.before_retry, place))

    async def before_retry(self, what: str, error: asyncpg.PostgresError, attempt: int) -> None:
        """Pause before another attempt at work that failed, and say what was in its way."""
        if isinstance(error, asyncpg.LockNotAvailableError):
            self.budget.spend(self._lock_timeout)
        event = Retried(self._version, what, attempt + 1, describe(error), self._blockers.seen)
        self._tell(event)
        await self.budget.pause(*backoff(attempt), event.why)


class Blockers:
    """The sessions that block a runner, looked up from a second session, in autocommit, only to be told.

    `seen` are those that were seen last, empty if there were none; a look comes `every` few seconds. The runner is
    the server process `pid`; None if each transaction may be another process's, as behind a pooler: then it is the
    one that holds the lock `key`.
    """

    def __init__(self, connect: Connect, key: int, pid: int | None) -> None:
        self.seen = ""
        self.every = 1.0
        self.connect = connect
        self._worker = key, pid

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
                            _log.warning("waiting for a lock held by %s", seen)
                        await anyio.sleep(self.every)
                finally:
                    # Nothing of it is worth a farewell, for which a run that is cancelled would wait as well.
                    connection.terminate()
        except Exception as error:  # noqa: BLE001 - a factory of connections may raise anything
            _log.debug("cannot see who blocks: %s", describe(error))


async def _unhurried(connect: Connect) -> Connection:
    """Return a connection, also where the caller is cancelled meanwhile, after `LONGEST_CONNECTING` at the latest.

    A cancelled asyncpg.connect() may leave a future behind, of which asyncio then logs that nobody has looked at it.
    """
    with anyio.fail_after(LONGEST_CONNECTING, shield=True):
        return await connect()
