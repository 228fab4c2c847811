"""One run: look, lock, compare again, apply. Nothing is ever applied on an unlocked read of the history."""

import logging
import platform
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pgratchet.core import planning
from pgratchet.core.errors import ConnectionLostError, MigrationFailedError, ServerError
from pgratchet.core.model import (
    AppliedMigration,
    Catalogue,
    Direction,
    Entry,
    Failure,
    Finished,
    Plan,
    RecordState,
    State,
)
from pgratchet.postgres import frames, lock, rehearsal, watch
from pgratchet.postgres.budget import Budget, backoff
from pgratchet.postgres.execution import Execution, Group, OvertakenError, resolve
from pgratchet.postgres.frames import Facts, Framing, Limits
from pgratchet.postgres.history import History, HistoryBusyError
from pgratchet.postgres.records import Records, Writer
from pgratchet.postgres.session import Connect, Connection, open_session
from pgratchet.postgres.sql import Table
from pgratchet.postgres.wire import Wire

TELL_EVERY = 5.0
"""Seconds between two lines of a waiter's log."""

WANTED = (*planning.RUNNABLE, State.RUNNING)
"""The states of the versions that stand between a replica and the schema it wants."""

_log = logging.getLogger("pgratchet")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that stays the same from run to run."""

    connect: Connect = field(repr=False)
    table: Table
    limits: Limits
    tool_version: str
    allow_late: bool = False
    strict: bool = False
    readers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Phase:
    """One direction of a run: `plan` decides, from what files and history say, what is to be done."""

    direction: Direction
    plan: Callable[[Sequence[Entry]], Plan]


class Run:
    """One run over a catalogue, through as many sessions as it takes.

    `finished` grows while it goes on, and is right also when it ends in an error.
    """

    def __init__(self, settings: Settings, catalogue: Catalogue, budget: Budget) -> None:
        self.finished: list[Finished] = []
        self._settings = settings
        self._migrations = {migration.version: migration for migration in catalogue.migrations}
        self._budget = budget
        self._key = settings.table.lock_key
        self._history = History(settings.table)
        self._records = Records(settings.table, lock.held(self._key))
        self._old_failures: dict[str, datetime | None] | None = None
        self._unanswered: Group = ()

    async def up(self, to: str | None = None) -> None:
        """Have everything up to `to` applied, by this run or meanwhile by another one."""
        phase = Phase(Direction.UP, lambda entries: planning.plan_up(entries, to))

        async def work(connection: Connection) -> None:
            while missing := wanted(await self.look(connection), to):
                if await self._lock(connection, missing):
                    await self._apply(connection, deque([phase]))

        await self._through_losses(work)

    async def turn(self, phases: Iterable[Phase]) -> None:
        """Carry the phases out, in order, under one lock; one that is done is not begun again."""
        waiting = deque(phases)

        async def work(connection: Connection) -> None:
            await self.look(connection)
            await self._lock(connection)
            await self._apply(connection, waiting)

        await self._through_losses(work)

    async def wait(self) -> None:
        """Return once everything is applied, by somebody else."""

        async def work(connection: Connection) -> None:
            while missing := wanted(await self.look(connection)):
                while not _all_applied(missing, await self._read(connection, missing)):
                    reason = f"waiting for somebody to apply {', '.join(missing)}"
                    await self._budget.pause(lock.LEAST_PAUSE, lock.MOST_PAUSE, reason)

        await self._through_losses(work)

    async def look(self, connection: Connection) -> tuple[Entry, ...]:
        """Return what files and history say; raises HistoryError where they disagree."""
        entries = planning.compare(self._migrations.values(), await self._read(connection))
        if self._old_failures is None:
            self._old_failures = {row.version: row.finished_at for row in _failures(entries)}
        settings = self._settings
        for warning in planning.judge(entries, allow_late=settings.allow_late, strict=settings.strict):
            _log.warning("%s", warning)
        return entries

    async def _read(
        self, connection: Connection, versions: Sequence[str] | None = None
    ) -> tuple[AppliedMigration, ...]:
        """Return history rows, waiting while a migration keeps the table locked."""
        while True:
            try:
                return await self._history.read(connection, versions)
            except HistoryBusyError as error:
                await self._budget.pause(lock.LEAST_PAUSE, lock.MOST_PAUSE, str(error))

    async def _through_losses(self, work: Callable[[Connection], Awaitable[None]]) -> None:
        """Do work in a session, and in a new one for as long as sessions are lost and the budget lasts."""
        attempt = 0
        while True:
            try:
                async with open_session(self._settings.connect, self._budget) as connection:
                    self.finished += await resolve(connection, self._records, self._unanswered)
                    self._unanswered, attempt = (), 0
                    return await work(connection)
            except ConnectionLostError as error:
                _log.warning("%s; connecting again", error)
                await self._budget.pause(*backoff(attempt), str(error))
                attempt += 1

    async def _lock(self, connection: Connection, missing: Sequence[str] = ()) -> bool:
        """Wait for the lock. True: it is held. False: all that was missing is applied, without it."""
        holder: object = "another session"
        told = -TELL_EVERY
        while not await lock.acquire(connection, self._key):
            if missing:
                rows = await self._read(connection, missing)
                if _all_applied(missing, rows):
                    return False
                self._raise_new_failure(rows)
            if time.monotonic() - told >= TELL_EVERY:
                holder = await watch.holder(connection, self._key) or holder
                told = time.monotonic()
                _log.info("waiting for %s", holder)
            await self._budget.pause(lock.LEAST_PAUSE, lock.MOST_PAUSE, f"waiting for the lock of {holder}")
        return True

    async def _apply(self, connection: Connection, waiting: deque[Phase]) -> None:
        """Do what the phases say, and drop each as it is done; the lock was taken."""
        facts = await self._facts(connection)
        if not await self._history.exists(connection):
            await self._history.create(connection)
        await self._history.grant(connection, self._settings.readers)
        wire = Wire(connection, self._settings.connect, facts.pid, self._budget)
        execution = Execution(wire, self._framing(facts), self.finished)
        while waiting:
            entries = await self._look_under_lock(connection, waiting[0].direction)
            try:
                await execution.run(waiting[0].plan(entries).steps, _failed_versions(entries))
            except OvertakenError:
                continue
            finally:
                self._unanswered = execution.flying
            waiting.popleft()

    async def rehearse(self, to: str | None = None) -> None:
        """Do what `up` would do, in one transaction, and roll it back."""

        async def work(connection: Connection) -> None:
            await self.look(connection)
            await self._lock(connection)
            facts = await self._facts(connection)
            entries = await self._look_under_lock(connection, Direction.UP)
            steps = planning.plan_up(entries, to).steps
            self.finished = await rehearsal.run(connection, self._framing(facts), steps, _failed_versions(entries))

        await self._through_losses(work)

    async def _facts(self, connection: Connection) -> Facts:
        facts = await frames.facts(connection, lock.held(self._key))
        _refuse_useless(facts, self._settings.table)
        return facts

    async def _look_under_lock(self, connection: Connection, direction: Direction) -> tuple[Entry, ...]:
        entries = await self.look(connection)
        self._raise_new_failure(_failures(entries))
        planning.refuse_interrupted(entries, direction)
        return entries

    def _framing(self, facts: Facts) -> Framing:
        by = f"{facts.role}@{platform.node()} {facts.application}"
        writer = Writer(by, facts.started, self._settings.tool_version)
        return Framing(self._records, writer, self._settings.limits, facts)

    def _raise_new_failure(self, rows: Iterable[AppliedMigration]) -> None:
        """Raise for a version that another run has failed at since this one first looked.

        The same file would fail again, once for each replica that waited; a run that starts later tries it.
        """
        old = self._old_failures or {}
        for row in rows:
            migration = self._migrations.get(row.version)
            if migration is None or row.state is not RecordState.FAILED or row.checksum != migration.checksum:
                continue
            if row.version not in old or old[row.version] != row.finished_at:
                message = f"{row.error} (in another runner: {row.applied_by})"
                failure = Failure(row.version, row.name, Direction.UP, migration.up.path, message)
                raise MigrationFailedError(failure, self.finished)


def wanted(entries: Iterable[Entry], to: str | None = None) -> tuple[str, ...]:
    """Return the versions that are not applied yet, up to and including `to`, whoever is to apply them."""
    limit = None if to is None else int(to)
    return tuple(
        entry.version for entry in entries if entry.state in WANTED and (limit is None or int(entry.version) <= limit)
    )


def _all_applied(versions: Sequence[str], rows: Iterable[AppliedMigration]) -> bool:
    return {row.version for row in rows if row.state is RecordState.APPLIED} >= set(versions)


def _failures(entries: Iterable[Entry]) -> list[AppliedMigration]:
    return [entry.applied for entry in entries if entry.applied and entry.applied.state is RecordState.FAILED]


def _failed_versions(entries: Iterable[Entry]) -> frozenset[str]:
    return frozenset(row.version for row in _failures(entries))


def _refuse_useless(facts: Facts, table: Table) -> None:
    if not facts.held:
        raise ServerError(
            f"the server does not hold the lock of {table} for this session, although it said so: a pooler in "
            "transaction mode, or an engine without advisory locks; give a DSN that leads straight to the server"
        )
    if facts.standby or facts.read_only:
        what = "a standby" if facts.standby else "read-only"
        raise ServerError(f"the server is {what}: nothing can be applied here; give the DSN of the primary")
