"""The person who judges a statement that a run cannot judge: looks at the ledger, and gives a verdict."""

from pgratchet import HistoryError, Migrator, Verdict
from tests.chaos.history import History
from tests.support import ask


async def settle(migrator: Migrator, dsn: str, history: History, error: HistoryError) -> str:
    """Give the verdict on the error's statement; return a violation if the run should not have asked."""
    version = error.versions[0]
    done = await ask(dsn, "SELECT statements_done FROM schema_migrations WHERE version = $1", version)
    number = done + 1
    files = {str(file.version): file for file in history.files}
    query = "SELECT count(*) FROM ledger WHERE version = $1 AND statement = $2"
    there = await ask(dsn, query, int(version), number)
    await migrator.repair(version, Verdict.SKIP if there else Verdict.AGAIN, f"the ledger has {there} of it")
    return "" if number in files[version].calls else f"asked about statement {number}, which can be judged: {error}"
