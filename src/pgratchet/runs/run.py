"""One run: look, lock, compare again, apply. No step is ever applied on an unlocked read of the history.

If a lock lasts for a transaction only, each step's own transaction takes it and compares.
"""

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from pgratchet.core.errors import AbsentError, ConnectionLostError
from pgratchet.core.events import Locked, Tell, Waiting
from pgratchet.core.model import Catalogue, Direction, Entry, Lock
from pgratchet.core.plan import planning
from pgratchet.core.printing import ranges
from pgratchet.postgres.ledger.lock import BusyError, RunnerLock
from pgratchet.postgres.link.budget import LOOK_EVERY, Budget, Interval, backoff
from pgratchet.postgres.link.session import Connect, Connection, NotPrimaryError, OutdatedSessionError, open_session
from pgratchet.postgres.wire.backends import Wait
from pgratchet.postgres.wire.progress import Progress
from pgratchet.runs.observing import Observer, all_applied
from pgratchet.runs.settings import Settings
from pgratchet.runs.turn import Turn

PRIMARY_PAUSE = 0.5, 1.0
"""Bounds, in seconds, of the pause before a server that was a standby is asked again."""

LOOK_AT_ALL_EVERY = 10.0
"""Seconds between two looks of a waiting process at the whole history."""

_log = logging.getLogger("pgratchet")


class Run:
    """One run over a catalogue, in as many sessions as it takes; `progress` is right also after an error."""

    def __init__(self, settings: Settings, catalogue: Catalogue, budget: Budget, tell: Tell) -> None:
        self.progress = Progress(tell)
        self._observer = Observer(settings, catalogue, budget, self.progress)
        self._settings = settings
        self._budget = budget
        self._lock = RunnerLock(settings.history.table, settings.lock)

    async def look(self) -> tuple[Entry, ...]:
        """Return both sides of every version, read without a lock; raises HistoryError if they disagree."""
        async with open_session(self._settings.connect) as connection:
            return await self._observer.look(connection, anybodys=True)

    async def up(self, to: str | None = None) -> None:
        """Return once everything up to `to` is applied, by this run or meanwhile by another one."""
        phases = deque([planning.Phase(Direction.UP, lambda entries: planning.plan_up(entries, to))])

        async def work(connection: Connection) -> None:
            while True:
                missing = planning.missing(await self._observer.look(connection), to)
                if not missing and await self._is_readable_for_all(connection):
                    if self.progress.unanswered:
                        # Sent in a session that was lost: the module is loaded already.
                        from pgratchet.postgres.steps.execution import resolve  # noqa: PLC0415 - as in _carry_out

                        await resolve(connection, self._lock.records, self.progress, self._budget)
                    return
                turn = await self._wait_for_turn(connection, missing)
                if turn is not None and await self._carry_out(turn, phases):
                    return

        await through_losses(work, self._settings.direct, self._budget, self.progress)

    async def _is_readable_for_all(self, connection: Connection) -> bool:
        """Return whether each of `readers`, and the role that logs in beside an owner, may read the history."""
        history, readers = self._settings.history, self._settings.readers
        needless = history.owner is None and not readers
        return needless or await history.is_granted(connection, readers)

    async def carry_out(self, phases: Iterable[planning.Phase]) -> None:
        """Carry the phases out, in order, under one lock; a phase that is done is not begun again."""
        left = deque(phases)

        async def work(connection: Connection) -> None:
            await self._observer.look(connection)
            while (turn := await self._wait_for_turn(connection)) and not await self._carry_out(turn, left):
                pass

        await through_losses(work, self._settings.direct, self._budget, self.progress)

    async def rehearse(self, to: str | None = None) -> None:
        """Do everything that `up` would do, in one transaction, and roll it back."""

        async def work(connection: Connection) -> None:
            await self._observer.look(connection)
            while turn := await self._wait_for_turn(connection):
                from pgratchet.runs import turning  # noqa: PLC0415 - as in _carry_out

                try:
                    await turning.rehearse(turn, to)
                except BusyError:
                    await self._budget.poll("waiting for another runner")
                else:
                    return

        await through_losses(work, self._settings.direct, self._budget, self.progress)

    async def wait(self) -> None:
        """Return once everything is applied, by another runner."""

        async def work(connection: Connection) -> None:
            waiting = _Waiting(self.progress.tell, self._lock)
            while missing := planning.missing(entries := await self._observer.look(connection, anybodys=True)):
                whom = f"another runner to apply {ranges(missing, (entry.version for entry in entries))}"
                looked = time.monotonic()
                while not all_applied(missing, rows := await self._observer.follow(connection, missing)):
                    self._observer.warn_of_failures(rows)
                    await waiting.look(connection, whom)
                    await self._budget.poll(f"waiting for {whom}")
                    if time.monotonic() - looked > LOOK_AT_ALL_EVERY:
                        # Other releases may have given up a file that is here: nobody applies it any more.
                        break

        await through_losses(work, self._settings.connect, self._budget, self.progress)

    async def _wait_for_turn(self, connection: Connection, missing: Sequence[str] = ()) -> Turn | None:
        """Return this run's turn, as soon as it can be had; None once other runners have applied all that is `missing`.

        Raises MigrationFailedError if another runner fails at a missing version meanwhile.
        """
        began, waiting = time.monotonic(), None
        while not await self._lock.try_acquire(connection):
            waiting = waiting or _Waiting(self.progress.tell, self._lock)
            await self._budget.poll(f"waiting for the lock of {waiting.holder or 'another session'}")
            if missing:
                # Before the next try: a run that has nothing left to do must not take the lock from those that wait.
                rows = await self._observer.follow(connection, missing)
                if all_applied(missing, rows):
                    return None
                self._observer.raise_new_failure(missing)
            await waiting.look(connection)
        if self._lock.records.lock is not Lock.NONE:
            self.progress.tell(Locked(time.monotonic() - began))
        return Turn(connection, self._settings, self._budget, self.progress, self._lock, self._observer)

    async def _carry_out(self, turn: Turn, phases: deque[planning.Phase]) -> bool:
        """Carry the phases out. False: another runner came in between, and some phases are left."""
        # Most starts find nothing to do, and need not load this half of the package.
        from pgratchet.runs import turning  # noqa: PLC0415 - as above

        try:
            await turning.carry_out(turn, phases)
        except BusyError:
            # The lock was free a moment ago, and may be free at the next try.
            await self._budget.poll("waiting for another runner")
            return False
        return True


class _Waiting:
    """One wait for other runners: told when it begins, and with each change of what the holder of the lock does."""

    def __init__(self, tell: Tell, lock: RunnerLock) -> None:
        self.holder: str | None = None
        self._tell = tell
        self._lock = lock
        self._wait = Wait()
        self._often = Interval(LOOK_EVERY)

    async def look(self, connection: Connection, otherwise: str | None = None) -> None:
        """Look at the holder, from time to time, and tell a change; `otherwise` is whom a run waits for without one."""
        if not self._often.is_over():
            return
        holder = await self._lock.holder(connection)
        self.holder = str(holder) if holder else otherwise or self.holder
        if self.holder is not None and self._wait.is_new(self.holder):
            self._tell(Waiting(self.holder, self._wait.since))


async def through_losses(
    work: Callable[[Connection], Awaitable[None]], connect: Connect, budget: Budget, progress: Progress
) -> None:
    """Do `work` in a session; if the session is lost or outdated, do it again in a new one, while the budget lasts.

    `progress` says how many sessions one and the same step has lost in a row. Raises NotPrimaryError if the first
    server takes no changes, AbsentError unless the budget is for what is absent, too.
    """
    losses = finished = 0
    while True:
        attempts = progress.attempts
        try:
            async with open_session(connect, budget) as connection:
                return await work(connection)
        except OutdatedSessionError:
            _log.info("a migration may have changed the settings of new sessions: the run goes on in one")
        except AbsentError as error:
            await budget.wait_for(error)
        except NotPrimaryError as error:
            # At the first contact the address is wrong. After a loss this is a failover, and the standby may become the
            # primary soon.
            if not losses:
                raise
            budget.tell(f"{error}; waiting for a primary")
            await budget.pause(*PRIMARY_PAUSE, str(error))
        except ConnectionLostError as error:
            if finished != len(progress.finished):
                losses, progress.losses, finished = 0, [], len(progress.finished)
            losses += 1
            # A step that an earlier session has left unanswered was not under way in this one.
            if progress.unanswered and progress.attempts != attempts:
                progress.losses.append(error)
            budget.tell(f"{error}; connecting again")
            await budget.pause(*backoff(losses - 1), str(error))
