"""Files beside history rows: the one place of a run where the layout's versions meet those of the server."""

from collections.abc import Iterable

from pgratchet.core.model import Entry, HistoryRow, Migration
from pgratchet.core.plan import planning
from pgratchet.postgres.ledger.spelling import refuse_misspelled
from pgratchet.runs.settings import Settings


def compare(settings: Settings, migrations: Iterable[Migration], rows: Iterable[HistoryRow]) -> tuple[Entry, ...]:
    """Return both sides of every version, in order; raises ServerError for a row that is spelled in another way."""
    rows = tuple(rows)
    refuse_misspelled(rows, settings.layout, settings.table)
    return planning.compare(migrations, rows, settings.layout.rank)
