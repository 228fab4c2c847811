"""One run: look, lock, compare again, apply. Nothing is ever applied on an unlocked read of the history.

Where a lock lasts for a transaction only, it is each step's own transaction that locks and compares.
"""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from pgratchet.core.events import Locked, Tell
from pgratchet.core.model import Catalogue, Direction, Entry
from pgratchet.core.plan import planning
from pgratchet.postgres.ledger import lock
from pgratchet.postgres.link.budget import TELL_EVERY, Budget, Interval
from pgratchet.postgres.link.session import Connection
from pgratchet.postgres.wire.progress import Progress
from pgratchet.runs.locking import RunnerLock
from pgratchet.runs.observing import Observer, all_applied
from pgratchet.runs.recovery import through_losses
from pgratchet.runs.settings import Settings
from pgratchet.runs.turn import Turn


class Run:
    """One run over a catalogue, through as many sessions as it takes; `progress` is right also after an error."""

    def __init__(self, settings: Settings, catalogue: Catalogue, budget: Budget, tell: Tell) -> None:
        self.progress = Progress(tell)
        self._settings = settings
        self._budget = budget
        self._lock = RunnerLock(settings)
        self._observer = Observer(settings, catalogue, budget, self.progress)

    async def look(self, connection: Connection, *, anybodys: bool = False) -> tuple[Entry, ...]:
        """Return what files and history say, as `Observer.look` does."""
        return await self._observer.look(connection, anybodys=anybodys)

    async def up(self, to: str | None = None) -> None:
        """Have everything up to `to` applied, by this run or meanwhile by another one."""
        phase = planning.Phase(Direction.UP, lambda entries: planning.plan_up(entries, to))

        async def work(connection: Connection) -> None:
            waiting = deque([phase])
            while True:
                missing = planning.missing(await self.look(connection), to)
                if not missing and await self._granted(connection):
                    break
                if await self._wait_for_turn(connection, missing) and await self._carry_out(connection, waiting):
                    return
            if self.progress.flying:
                from pgratchet.runs.turning import resolve  # noqa: PLC0415 - loaded before, where anything flies

                await resolve(self._turn(connection))

        await self._through_losses(work)

    async def _granted(self, connection: Connection) -> bool:
        settings = self._settings
        needless = settings.owner is None and not settings.readers
        return needless or await settings.history.is_granted(connection, settings.readers)

    async def turn(self, phases: Iterable[planning.Phase]) -> None:
        """Carry the phases out, in order, under one lock; one that is done is not begun again."""
        waiting = deque(phases)

        async def work(connection: Connection) -> None:
            await self.look(connection)
            while not (await self._wait_for_turn(connection) and await self._carry_out(connection, waiting)):
                pass

        await self._through_losses(work)

    async def rehearse(self, to: str | None = None) -> None:
        """Do what `up` would do, in one transaction, and roll it back."""

        async def work(connection: Connection) -> None:
            await self.look(connection)
            from pgratchet.runs import turning  # noqa: PLC0415 - as in _carry_out

            rehearsed = False
            while not rehearsed and await self._wait_for_turn(connection):
                try:
                    await turning.rehearse(self._turn(connection), to)
                    rehearsed = True
                except lock.BusyError:
                    await self._budget.poll("waiting for another runner")

        await self._through_losses(work)

    async def wait(self) -> None:
        """Return once everything is applied, by somebody else."""

        async def work(connection: Connection) -> None:
            often = Interval(TELL_EVERY)
            while missing := planning.missing(await self.look(connection, anybodys=True)):
                whom = f"somebody to apply {', '.join(missing)}"
                while not all_applied(missing, rows := await self._observer.follow(connection, missing)):
                    self._observer.warn_of_failures(rows)
                    if often.is_over():
                        self.progress.tell(await self._lock.waiting(connection, whom))
                    await self._budget.poll(f"waiting for {whom}")

        await through_losses(work, self._settings.connect, self._budget, self.progress)

    async def _through_losses(self, work: Callable[[Connection], Awaitable[None]]) -> None:
        await through_losses(work, self._settings.direct, self._budget, self.progress)

    async def _wait_for_turn(self, connection: Connection, missing: Sequence[str] = ()) -> bool:
        """Wait for this run's turn. True: it is. False: all that was missing is applied by others."""
        holder = "another session"
        began, often = time.monotonic(), Interval(TELL_EVERY)
        while not await self._lock.take(connection):
            await self._budget.poll(f"waiting for the lock of {holder}")
            if missing:
                # Before the next try: who has nothing left to do shall not take the lock from those who wait.
                rows = await self._observer.follow(connection, missing)
                if all_applied(missing, rows):
                    return False
                self._observer.raise_new_failure(rows)
            if often.is_over():
                waiting = await self._lock.waiting(connection, holder)
                holder = waiting.holder
                self.progress.tell(waiting)
        self.progress.tell(Locked(time.monotonic() - began))
        return True

    async def _carry_out(self, connection: Connection, waiting: deque[planning.Phase]) -> bool:
        """Do what the phases say. False: another runner came in between, and some are left."""
        # Most starts find nothing to do, and do not pay for the half of the package that does it.
        from pgratchet.runs import turning  # noqa: PLC0415

        try:
            await turning.carry_out(self._turn(connection), waiting)
        except lock.BusyError:
            # It was free a moment ago, and may be so at the next look.
            await self._budget.poll("waiting for another runner")
            return False
        return True

    def _turn(self, connection: Connection) -> Turn:
        return Turn(connection, self._settings, self._budget, self.progress, self._lock, self._observer)
