"""One run's look at files and history, and its memory of earlier looks."""

import logging
from collections.abc import Collection, Iterable, Sequence

from pgratchet.core.errors import MigrationFailedError
from pgratchet.core.model import Catalogue, Direction, Entry, Failure, HistoryRow, Migration, Problem, RecordState
from pgratchet.core.plan import planning
from pgratchet.postgres.ledger.history import refuse_misspelled
from pgratchet.postgres.link.budget import LOOK_EVERY, Budget, Interval
from pgratchet.postgres.link.session import Connection
from pgratchet.postgres.wire import backends
from pgratchet.postgres.wire.progress import Progress
from pgratchet.runs.settings import Settings

_log = logging.getLogger("pgratchet")


class Observer:
    """Reads the history for one run, tells each state of it, and knows new failures of other runs from old ones."""

    def __init__(self, settings: Settings, catalogue: Catalogue, budget: Budget, progress: Progress) -> None:
        self._settings = settings
        self._budget = budget
        self._progress = progress
        self._migrations = {migration.version: migration for migration in catalogue.migrations}
        self._warnings = catalogue.warnings
        self._old_failures: dict[str, str | None] | None = None
        self._awaited = set[str]()
        self._heard = set[str | Problem]()
        self._told: dict[str, str | None] = {}
        self._rows: dict[str, HistoryRow] = {}
        self._at_work = frozenset[str]()
        self._often = Interval(LOOK_EVERY)
        self._safe: bool | None = None

    async def look(self, connection: Connection, *, anybodys: bool = False) -> tuple[Entry, ...]:
        """Return both sides of every version; raises HistoryError if they disagree.

        Raises ForeignTableError if the history belongs to a role that is not trusted, unless it may be `anybodys`.
        """
        settings = self._settings
        rows = await settings.history.read_patiently(connection, self._budget, anybodys=anybodys)
        self._rows = {row.version: row for row in rows}
        self._at_work = await backends.at_work(connection, rows, settings.history)
        if self._old_failures is None:
            self._old_failures = {row.version: row.token for row in rows if row.state is RecordState.FAILED}
        return self._compared()

    def _compared(self) -> tuple[Entry, ...]:
        """Return both sides of every version, and tell them; raises HistoryError if they disagree."""
        settings = self._settings
        entries = compare(settings, self._migrations.values(), self._rows.values(), self._at_work)
        self._progress.tell(planning.looked(entries))
        warnings = planning.refuse_disagreement(
            entries, settings.layout.rank, self._awaited, allow_late=settings.allow_late, strict=settings.strict
        )
        for warning in (*(planning.unheard(self._warnings, entries) if self._warnings else ()), *warnings):
            if warning not in self._heard:
                self._heard.add(warning)
                _log.warning("%s", warning)
        self._warnings = ()
        self._awaited |= set(planning.missing(entries))
        return entries

    async def follow(self, connection: Connection, versions: Sequence[str]) -> tuple[HistoryRow, ...]:
        """Return the rows of versions that other runs are to apply; tell the state of all if these have changed.

        Raises HistoryError if another run has applied other files than those here. A runner that dies changes no row:
        whether one is at work is asked again and again.
        """
        history = self._settings.history
        if self._safe is None:
            self._safe = await history.is_safe(connection)
        if self._safe is None:
            return ()  # there is no table yet
        rows = await history.read_patiently(connection, self._budget, versions if self._safe else None)
        rows = tuple(row for row in rows if row.version in versions)
        changed = set(rows) != {self._rows[version] for version in versions if version in self._rows}
        if changed or self._often.is_over():
            left = {version: row for version, row in self._rows.items() if version not in versions}
            self._rows = left | {row.version: row for row in rows}
            at_work = await backends.at_work(connection, self._rows.values(), history)
            if changed or at_work != self._at_work:
                self._at_work = at_work
                self._compared()
        return rows

    def warn_of_failures(self, rows: Iterable[HistoryRow]) -> None:
        """Log each failure once."""
        for row in rows:
            if row.state is RecordState.FAILED and self._told.get(row.version, "") != row.token:
                self._told[row.version] = row.token
                _log.warning("%s %s failed: %s; waiting for it to be fixed", row.version, row.name, row.error)

    def raise_new_failure(self, versions: Iterable[str]) -> None:
        """Raise MigrationFailedError for one of `versions` that another run has failed at since this run's first look.

        The same file would fail again, once for each waiting replica. A run that starts later tries it.
        """
        old = self._old_failures or {}
        for version in versions:
            migration, row = self._migrations.get(version), self._rows.get(version)
            if migration is None or row is None or row.state is not RecordState.FAILED:
                continue
            if row.checksum == migration.checksum and (version not in old or old[version] != row.token):
                message = f"{row.error} (in another runner: {row.applied_by})"
                failure = Failure(row.version, row.name, Direction.UP, migration.up.path, message)
                raise MigrationFailedError(failure, self._progress.finished)

    def drop_lost(self) -> None:
        """Report no step whose COMMIT was answered by a server that is gone, if its successor does not have it.

        To be called when nobody else may change the history.
        """
        applied = {row.version for row in self._rows.values() if row.state is RecordState.APPLIED}
        finished = self._progress.finished
        last = {step.version: step for step in finished}
        lost = [step for step in last.values() if (step.direction is Direction.UP) != (step.version in applied)]
        finished[:] = [step for step in finished if step not in lost]
        for step in lost:
            _log.warning("%s %s %s was committed, and the server has lost it", step.direction, step.version, step.name)


def compare(
    settings: Settings, migrations: Iterable[Migration], rows: Iterable[HistoryRow], at_work: Collection[str] = ()
) -> tuple[Entry, ...]:
    """Return both sides of every version, in order; raises ServerError for a row whose version is misspelled."""
    rows = tuple(rows)
    refuse_misspelled(rows, settings.layout, settings.history.table)
    return planning.compare(migrations, rows, settings.layout.rank, at_work)


def all_applied(versions: Sequence[str], rows: Iterable[HistoryRow]) -> bool:
    """Return whether the rows have all the versions as applied."""
    return {row.version for row in rows if row.state is RecordState.APPLIED} >= set(versions)
