"""The turn of a run: the time during which it may change the schema, in one session."""

from typing import NamedTuple

from pgratchet.postgres.ledger.lock import RunnerLock
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.session import Connection
from pgratchet.postgres.wire.progress import Progress
from pgratchet.runs.observing import Observer
from pgratchet.runs.settings import Settings


class Turn(NamedTuple):
    """One session of a run, while it holds the lock or may take it for each transaction."""

    connection: Connection
    settings: Settings
    budget: Budget
    progress: Progress
    lock: RunnerLock
    observer: Observer
