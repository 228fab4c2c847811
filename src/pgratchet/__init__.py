"""PostgreSQL migrations for asyncio services: each applied exactly once, however many replicas start."""

from pgratchet.core.errors import (
    BehindError,
    BudgetExceededError,
    ConnectionLostError,
    FilesError,
    ForeignTableError,
    HistoryError,
    MigrationFailedError,
    PgratchetError,
    ScriptError,
    ServerError,
    UsageError,
)
from pgratchet.core.model import Adoption, Direction, Entry, Failure, Finished, Plan, Problem, State, Step, Verdict
from pgratchet.migrator import Migrator
from pgratchet.version import __version__
from pgratchet.web.lifespan import migrated

__all__ = [
    "Adoption",
    "BehindError",
    "BudgetExceededError",
    "ConnectionLostError",
    "Direction",
    "Entry",
    "Failure",
    "FilesError",
    "Finished",
    "ForeignTableError",
    "HistoryError",
    "MigrationFailedError",
    "Migrator",
    "PgratchetError",
    "Plan",
    "Problem",
    "ScriptError",
    "ServerError",
    "State",
    "Step",
    "UsageError",
    "Verdict",
    "__version__",
    "migrated",
]
