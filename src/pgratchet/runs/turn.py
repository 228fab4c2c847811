"""A session whose turn it is, and what goes with it."""

from typing import NamedTuple

from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.session import Connection
from pgratchet.postgres.wire.progress import Progress
from pgratchet.runs.locking import RunnerLock
from pgratchet.runs.observing import Observer
from pgratchet.runs.settings import Settings


class Turn(NamedTuple):
    """One session of a run, while that holds the lock or may have it for each transaction."""

    connection: Connection
    settings: Settings
    budget: Budget
    progress: Progress
    lock: RunnerLock
    observer: Observer
