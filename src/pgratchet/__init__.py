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
from pgratchet.core.events import (
    Done,
    Event,
    Failed,
    Locked,
    Looked,
    Retried,
    Started,
    StatementFinished,
    Waiting,
)
from pgratchet.core.model import Adoption, Direction, Entry, Failure, Finished, Plan, Problem, State, Step, Verdict
from pgratchet.core.readiness import Condition, Readiness
from pgratchet.migrator import Migrator
from pgratchet.version import __version__
from pgratchet.web.gate import Gate, gate
from pgratchet.web.lifespan import migrated

__all__ = [
    "Adoption",
    "BehindError",
    "BudgetExceededError",
    "Condition",
    "ConnectionLostError",
    "Direction",
    "Done",
    "Entry",
    "Event",
    "Failed",
    "Failure",
    "FilesError",
    "Finished",
    "ForeignTableError",
    "Gate",
    "HistoryError",
    "Locked",
    "Looked",
    "MigrationFailedError",
    "Migrator",
    "PgratchetError",
    "Plan",
    "Problem",
    "Readiness",
    "Retried",
    "ScriptError",
    "ServerError",
    "Started",
    "State",
    "StatementFinished",
    "Step",
    "UsageError",
    "Verdict",
    "Waiting",
    "__version__",
    "gate",
    "migrated",
]
