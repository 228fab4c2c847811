"""Going on in a new session where one is lost."""

import logging
from collections.abc import Awaitable, Callable

from pgratchet.core.errors import ConnectionLostError, MigrationFailedError
from pgratchet.core.model import Failure
from pgratchet.postgres.link.budget import Budget, backoff
from pgratchet.postgres.link.session import Connect, Connection, NotPrimaryError, open_session
from pgratchet.postgres.wire.progress import Progress

MOST_LOSSES = 5
"""How many sessions in a row a step may lose before it is taken for their end."""

PRIMARY_PAUSE = 0.5, 1.0
"""Bounds, in seconds, of the pause before a server that was a standby is looked at again."""

_log = logging.getLogger("pgratchet")


async def through_losses(
    work: Callable[[Connection], Awaitable[None]], connect: Connect, budget: Budget, progress: Progress
) -> None:
    """Do work in a session, and in a new one for as long as sessions are lost and the budget lasts.

    Raises MigrationFailedError for a step that has lost its session too often, NotPrimaryError where the first server
    takes no changes.
    """
    losses = _Losses(progress)
    while True:
        losses.begin()
        try:
            async with open_session(connect, budget) as connection:
                return await work(connection)
        except NotPrimaryError as error:
            # A first contact is somebody's mistake. A run that has lost its server sees a failover, and the
            # standby may take over soon.
            if not losses.in_a_row:
                raise
            _log.warning("%s; waiting for a primary", error)
            await budget.pause(*PRIMARY_PAUSE, str(error))
        except ConnectionLostError as error:
            losses.count()
            if losses.of_one_step >= MOST_LOSSES:
                raise _deadly(losses.of_one_step, progress, error) from error
            _log.warning("%s; connecting again", error)
            await budget.pause(*backoff(losses.in_a_row - 1), str(error))


class _Losses:
    """How many sessions were lost `in_a_row`, and how many of them while the same step was under way."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._finished = 0
        self._launched = 0
        self.in_a_row = 0
        self.of_one_step = 0

    def begin(self) -> None:
        """Take note that a session begins."""
        self._launched = self._progress.launched

    def count(self) -> None:
        """Count the loss of the session that has begun last."""
        if len(self._progress.finished) != self._finished:
            self.in_a_row, self.of_one_step, self._finished = 0, 0, len(self._progress.finished)
        self.in_a_row += 1
        # A step that an earlier session has left unanswered was not under way in this one.
        if self._progress.flying and self._progress.launched != self._launched:
            self.of_one_step += 1


def _deadly(losses: int, progress: Progress, error: ConnectionLostError) -> MigrationFailedError:
    """Return the failure of a step that ends its session each time: tried for ever, it would end the server's."""
    step = progress.flying[0].step
    message = f"{error}; that was so {losses} times in a row while it ran"
    migration, path = step.migration, step.script.source.path
    failure = Failure(migration.version, migration.name, step.direction, path, message, step.script.mode)
    return MigrationFailedError(failure, progress.finished)
