"""One run's lock: how it is taken, and the SQL that writes the history under it."""

import logging

from pgratchet.core.events import Waiting
from pgratchet.core.model import Lock
from pgratchet.postgres.ledger import lock
from pgratchet.postgres.link.session import Connection, refuse_statement_pooling
from pgratchet.runs.settings import Settings

_log = logging.getLogger("pgratchet")


class RunnerLock:
    """What keeps this run apart from others: `by` says how, and changes where a pooler turns out to be in between.

    `records` is the SQL of the history that goes with it.
    """

    def __init__(self, settings: Settings) -> None:
        self.by = settings.lock or Lock.SESSION
        self.records = lock.records(settings.table, self.by)
        self._settings = settings
        self._key = settings.table.lock_key

    async def take(self, connection: Connection) -> bool:
        """Say whether it is this run's turn: it holds the lock, or could have it for a transaction."""
        if self.by is Lock.SESSION:
            pid = None if self._settings.lock else connection.get_server_pid()
            try:
                return await lock.acquire(connection, self._key, pid)
            except lock.PooledError:
                _log.info("a pooler is in between: the lock is taken by each transaction for itself")
                await refuse_statement_pooling(connection)
                self.by = Lock.TRANSACTION
                self.records = lock.records(self._settings.table, self.by)
        return self.by is Lock.NONE or await lock.is_free(connection, self._key)

    async def raise_if_busy(self, connection: Connection) -> None:
        """Raise BusyError where another runner holds the lock, and this one takes it for each transaction."""
        if self.by is Lock.TRANSACTION and not await lock.is_free(connection, self._key):
            raise lock.BusyError

    async def waiting(self, connection: Connection, otherwise: str) -> Waiting:
        """Return the event that this run waits for the holder of the lock, `otherwise` where nobody holds it."""
        return Waiting(str(await lock.holder(connection, self._key) or otherwise))
