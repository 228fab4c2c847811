"""One run's look at files and history, and its memory of what it has seen there."""

import logging
from collections.abc import Iterable, Sequence

from pgratchet.core.errors import MigrationFailedError
from pgratchet.core.events import looked
from pgratchet.core.model import Catalogue, Direction, Entry, Failure, HistoryRow, RecordState
from pgratchet.core.plan import planning
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.session import Connection
from pgratchet.postgres.wire.progress import Progress
from pgratchet.runs.comparing import compare
from pgratchet.runs.settings import Settings

_log = logging.getLogger("pgratchet")


class Observer:
    """Reads the history for one run, tells how it stands, and knows the failures of other runs from earlier ones."""

    def __init__(self, settings: Settings, catalogue: Catalogue, budget: Budget, progress: Progress) -> None:
        self._settings = settings
        self._budget = budget
        self._progress = progress
        self._history = settings.history
        self._migrations = {migration.version: migration for migration in catalogue.migrations}
        self._old_failures: dict[str, str | None] | None = None
        self._told: dict[str, str | None] = {}
        self._rows: dict[str, HistoryRow] = {}
        self._safe: bool | None = None

    async def look(self, connection: Connection, *, anybodys: bool = False) -> tuple[Entry, ...]:
        """Return what files and history say; raises HistoryError where they disagree.

        ForeignTableError where the history belongs to a role that is not trusted, unless it may be `anybodys`.
        """
        rows = await self._history.read_patiently(connection, self._budget, anybodys=anybodys)
        self._rows = {row.version: row for row in rows}
        entries = self._tell_look()
        if self._old_failures is None:
            failed = (entry.row for entry in entries if entry.row and entry.row.state is RecordState.FAILED)
            self._old_failures = {row.version: row.token for row in failed}
        settings = self._settings
        for warning in planning.refuse_disagreement(
            entries, settings.layout.rank, allow_late=settings.allow_late, strict=settings.strict
        ):
            _log.warning("%s", warning)
        return entries

    async def follow(self, connection: Connection, versions: Sequence[str]) -> tuple[HistoryRow, ...]:
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

    def _tell_look(self) -> tuple[Entry, ...]:
        entries = compare(self._settings, self._migrations.values(), self._rows.values())
        self._progress.tell(looked(entries))
        return entries

    def warn_of_failures(self, rows: Iterable[HistoryRow]) -> None:
        """Log each failure once."""
        for row in rows:
            if row.state is RecordState.FAILED and self._told.get(row.version, "") != row.token:
                self._told[row.version] = row.token
                _log.warning("%s %s failed: %s; waiting for it to be fixed", row.version, row.name, row.error)

    def raise_new_failure(self, rows: Iterable[HistoryRow]) -> None:
        """Raise MigrationFailedError for a version that another run has failed at since the first look.

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
                raise MigrationFailedError(failure, self._progress.finished)

    def drop_lost(self) -> None:
        """Report no step whose COMMIT was answered by a server that another has taken over from without it."""
        applied = {row.version for row in self._rows.values() if row.state is RecordState.APPLIED}
        for step in self._progress.drop_lost(applied):
            _log.warning("%s %s %s was committed, and the server has lost it", step.direction, step.version, step.name)


def all_applied(versions: Sequence[str], rows: Iterable[HistoryRow]) -> bool:
    """Say whether the rows have all the versions as applied."""
    return {row.version for row in rows if row.state is RecordState.APPLIED} >= set(versions)
