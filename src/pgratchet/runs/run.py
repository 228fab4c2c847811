"""One run: look, lock, compare again, apply. Nothing is ever applied on an unlocked read of the history.

Where a lock lasts for a transaction only, it is each step's own transaction that locks and compares.
"""

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from pgratchet.core.errors import ConnectionLostError, MigrationFailedError
from pgratchet.core.events import Locked, Tell, Waiting, looked
from pgratchet.core.model import (
    AppliedMigration,
    Catalogue,
    Direction,
    Entry,
    Failure,
    Lock,
    RecordState,
    State,
)
from pgratchet.core.plan import halfway, judging, planning
from pgratchet.postgres.ledger import lock
from pgratchet.postgres.ledger.records import Records
from pgratchet.postgres.link.budget import TELL_EVERY, Budget, Interval, backoff
from pgratchet.postgres.link.session import Connect, Connection, NotPrimaryError, open_session, refuse_statement_pooling
from pgratchet.postgres.wire.progress import Progress
from pgratchet.runs.comparing import compare
from pgratchet.runs.settings import Held, Settings

MOST_LOSSES = 5
"""How many sessions in a row a step may lose before it is taken for their end."""

PRIMARY_PAUSE = 0.5, 1.0
"""Bounds, in seconds, of the pause before a server that was a standby is looked at again."""

_log = logging.getLogger("pgratchet")


class Run:
    """One run over a catalogue, through as many sessions as it takes; `progress` is right also after an error."""

    def __init__(self, settings: Settings, catalogue: Catalogue, budget: Budget, tell: Tell) -> None:
        self.progress = Progress(tell)
        self._settings = settings
        self._budget = budget
        self._by = settings.lock or Lock.SESSION
        self._records = lock.records(settings.table, self._by)
        self._migrations = {migration.version: migration for migration in catalogue.migrations}
        self._history = settings.history
        self._old_failures: dict[str, str | None] | None = None
        self._told: dict[str, str | None] = {}
        self._rows: dict[str, AppliedMigration] = {}
        self._safe: bool | None = None

    async def up(self, to: str | None = None) -> None:
        """Have everything up to `to` applied, by this run or meanwhile by another one."""
        phase = planning.Phase(Direction.UP, lambda entries: planning.plan_up(entries, to))

        async def work(connection: Connection) -> None:
            waiting = deque([phase])
            while (missing := planning.missing(await self.look(connection), to)) or not await self._granted(connection):
                if await self._lock(connection, missing) and await self._turn(connection, waiting):
                    return
            await self._resolve(connection)

        await self._through_losses(work)

    async def _granted(self, connection: Connection) -> bool:
        settings = self._settings
        needless = settings.owner is None and not settings.readers
        return needless or await self._history.is_granted(connection, settings.readers)

    async def turn(self, phases: Iterable[planning.Phase]) -> None:
        """Carry the phases out, in order, under one lock; one that is done is not begun again."""
        waiting = deque(phases)

        async def work(connection: Connection) -> None:
            await self.look(connection)
            while not (await self._lock(connection) and await self._turn(connection, waiting)):
                pass

        await self._through_losses(work)

    async def rehearse(self, to: str | None = None) -> None:
        """Do what `up` would do, in one transaction, and roll it back."""

        async def work(connection: Connection) -> None:
            await self.look(connection)
            from pgratchet.runs import turning  # noqa: PLC0415 - as in _turn

            rehearsed = False
            while not rehearsed and await self._lock(connection):
                try:
                    await turning.rehearse(self._held(connection), to)
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
                while not _all_applied(missing, rows := await self._follow(connection, missing)):
                    self._tell_failures(rows)
                    if often.is_over():
                        await self._tell_waiting(connection, whom)
                    await self._budget.poll(f"waiting for {whom}")

        await self._through_losses(work, self._settings.connect)

    def _tell_failures(self, rows: Iterable[AppliedMigration]) -> None:
        for row in rows:
            if row.state is RecordState.FAILED and self._told.get(row.version, "") != row.token:
                self._told[row.version] = row.token
                _log.warning("%s %s failed: %s; waiting for it to be mended", row.version, row.name, row.error)

    async def look(self, connection: Connection, *, anybodys: bool = False) -> tuple[Entry, ...]:
        """Return what files and history say; raises HistoryError where they disagree.

        ForeignTableError where the history belongs to a role that is not trusted, unless it may be `anybodys`.
        """
        rows = await self._history.read_patiently(connection, self._budget, anybodys=anybodys)
        self._rows = {row.version: row for row in rows}
        entries = self._tell_look()
        if self._old_failures is None:
            self._old_failures = {row.version: row.token for row in planning.failures(entries)}
        settings = self._settings
        for warning in judging.judge(
            entries, settings.layout.rank, allow_late=settings.allow_late, strict=settings.strict
        ):
            _log.warning("%s", warning)
        return entries

    def _tell_look(self) -> tuple[Entry, ...]:
        entries = compare(self._settings, self._migrations.values(), self._rows.values())
        self.progress.tell(looked(entries))
        return entries

    async def _follow(self, connection: Connection, versions: Sequence[str]) -> tuple[AppliedMigration, ...]:
        """Return the rows of versions that others are to apply; tell what has become of these since the last look."""
        if self._safe is None:
            self._safe = await self._history.is_safe(connection)
        rows = await self._history.read_patiently(connection, self._budget, versions if self._safe else None)
        rows = tuple(row for row in rows if row.version in versions)
        if set(rows) != {self._rows[version] for version in versions if version in self._rows}:
            left = {version: row for version, row in self._rows.items() if version not in versions}
            self._rows = left | {row.version: row for row in rows}
            self._tell_look()
        return rows

    async def _turn(self, connection: Connection, waiting: deque[planning.Phase]) -> bool:
        """Do what the phases say. False: another runner came in between, and some are left."""
        # Most starts find nothing to do, and do not pay for the half of the package that does it.
        from pgratchet.runs import turning  # noqa: PLC0415

        try:
            await turning.turn(self._held(connection), waiting)
        except lock.BusyError:
            # It was free a moment ago, and may be so at the next look.
            await self._budget.poll("waiting for another runner")
            return False
        return True

    def _held(self, connection: Connection) -> Held:
        look, heed = self._look_under_lock, self._raise_new_failure
        settings, records = self._settings, self._records
        return Held(connection, self._by, settings, records, self._budget, self.progress, look, heed, self._ensure)

    async def _ensure(self, connection: Connection, readers: Sequence[str]) -> Records:
        """Have the history, and return the SQL that writes it as it is now."""
        self._records = self._records._replace(seal=await self._history.ensure(connection, readers, self._budget))
        return self._records

    async def _resolve(self, connection: Connection) -> None:
        """Find out what became of the steps that a lost connection has left unanswered.

        To be asked when nobody is at work on them any more: the server may notice late that its client is gone,
        and finish what it was doing.
        """
        if self.progress.flying:
            from pgratchet.postgres.steps.execution import resolve  # noqa: PLC0415 - loaded before, where anything flies

            self.progress.finish(await resolve(connection, self._records, self.progress.flying, self._budget))
            self.progress.flying = ()

    async def _through_losses(
        self, work: Callable[[Connection], Awaitable[None]], connect: Connect | None = None
    ) -> None:
        """Do work in a session, and in a new one for as long as sessions are lost and the budget lasts."""
        losses, deaths, finished = 0, 0, 0
        while True:
            unanswered = self.progress.flying
            try:
                async with open_session(connect or self._settings.direct, self._budget) as connection:
                    return await work(connection)
            except NotPrimaryError as error:
                # A first contact is somebody's mistake. A run that has lost its server sees a failover, and the
                # standby may take over soon.
                if not losses:
                    raise
                _log.warning("%s; waiting for a primary", error)
                await self._budget.pause(*PRIMARY_PAUSE, str(error))
            except ConnectionLostError as error:
                if len(self.progress.finished) != finished:
                    losses, deaths, finished = 0, 0, len(self.progress.finished)
                losses += 1
                # What an earlier session has left unanswered was not under way in this one.
                deaths += self.progress.flying is not unanswered
                if deaths >= MOST_LOSSES and self.progress.flying:
                    raise self._deadly(deaths, error) from error
                _log.warning("%s; connecting again", error)
                await self._budget.pause(*backoff(losses - 1), str(error))

    def _deadly(self, losses: int, error: ConnectionLostError) -> MigrationFailedError:
        """Return the failure of a step that ends its session each time: tried for ever, it would end the server's."""
        step = self.progress.flying[0].step
        message = f"{error}; that was so {losses} times in a row while it ran"
        migration, path = step.migration, step.script.source.path
        failure = Failure(migration.version, migration.name, step.direction, path, message, step.script.mode)
        return MigrationFailedError(failure, self.progress.finished)

    async def _lock(self, connection: Connection, missing: Sequence[str] = ()) -> bool:
        """Wait for this run's turn. True: it is. False: all that was missing is applied by others."""
        holder = "another session"
        began, often = time.monotonic(), Interval(TELL_EVERY)
        while not await self._try(connection):
            await self._budget.poll(f"waiting for the lock of {holder}")
            if missing:
                # Before the next try: who has nothing left to do shall not take the lock from those who wait.
                rows = await self._follow(connection, missing)
                if _all_applied(missing, rows):
                    return False
                self._raise_new_failure(rows)
            if often.is_over():
                holder = await self._tell_waiting(connection, holder)
        self.progress.tell(Locked(time.monotonic() - began))
        return True

    async def _tell_waiting(self, connection: Connection, whom: str) -> str:
        """Tell, and return, who has the lock, `whom` where nobody has."""
        holder = str(await lock.holder(connection, self._settings.table.lock_key) or whom)
        self.progress.tell(Waiting(holder))
        return holder

    async def _try(self, connection: Connection) -> bool:
        """Say whether it is this run's turn: it holds the lock, or could have it for a transaction."""
        key = self._settings.table.lock_key
        if self._by is Lock.SESSION:
            pid = None if self._settings.lock else connection.get_server_pid()
            try:
                return await lock.acquire(connection, key, pid)
            except lock.PooledError:
                _log.info("a pooler is in between: the lock is taken by each transaction for itself")
                await refuse_statement_pooling(connection)
                self._by = Lock.TRANSACTION
                self._records = lock.records(self._settings.table, self._by)
        return self._by is Lock.NONE or await lock.is_free(connection, key)

    async def _look_under_lock(self, connection: Connection, direction: Direction) -> tuple[Entry, ...]:
        """Return what files and history say now that nobody else may change it; only this decides what is done.

        Where nothing is held that is not yet so: raises BusyError where another runner is at work.
        """
        await self._resolve(connection)
        entries = await self.look(connection)
        self._forget_lost(entries)
        if self._by is Lock.TRANSACTION and any(entry.state is State.RUNNING for entry in entries):
            await self._raise_if_busy(connection)
        halfway.refuse_interrupted(entries, direction)
        return entries

    def _forget_lost(self, entries: Iterable[Entry]) -> None:
        """Report no step whose COMMIT was answered by a server that another has taken over from without it."""
        rows = (entry.applied for entry in entries if entry.applied)
        applied = {row.version for row in rows if row.state is RecordState.APPLIED}
        for step in self.progress.drop_lost(applied):
            _log.warning("%s %s %s was committed, and the server has lost it", step.direction, step.version, step.name)

    async def _raise_if_busy(self, connection: Connection) -> None:
        if not await lock.is_free(connection, self._settings.table.lock_key):
            raise lock.BusyError

    def _raise_new_failure(self, rows: Iterable[AppliedMigration]) -> None:
        """Raise for a version that another run has failed at since this one first looked.

        The same file would fail again, once for each replica that waited; a run that starts later tries it.
        """
        old = self._old_failures or {}
        for row in rows:
            migration = self._migrations.get(row.version)
            if migration is None or row.state is not RecordState.FAILED or row.checksum != migration.checksum:
                continue
            if row.version not in old or old[row.version] != row.token:
                message = f"{row.error} (in another runner: {row.applied_by})"
                failure = Failure(row.version, row.name, Direction.UP, migration.up.path, message)
                raise MigrationFailedError(failure, self.progress.finished)


def _all_applied(versions: Sequence[str], rows: Iterable[AppliedMigration]) -> bool:
    return {row.version for row in rows if row.state is RecordState.APPLIED} >= set(versions)
