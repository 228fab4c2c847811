"""How far a run has come."""

from pgratchet.core.errors import ConnectionLostError
from pgratchet.core.events import Started, Tell
from pgratchet.core.model import Direction, Finished, State, Step
from pgratchet.postgres.ledger.records import Claim

Group = tuple[Claim, ...]


class Progress:
    """`finished` grows as steps are known to be committed and durable; `tell` gets each event of the run.

    `unanswered` are the steps that were sent last, as long as there is no answer: after a lost connection only the
    history knows whether they are done; `left` is the state in which an error now would leave the first of them, None
    for the state that it had before. `attempts` counts how often steps were sent; `losses` are the errors of the
    sessions that were lost in a row while the first of them was under way.
    """

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.finished: list[Finished] = []
        self.unanswered: Group = ()
        self.left: State | None = None
        self.attempts = 0
        self.losses: list[ConnectionLostError] = []
        self._begun: set[tuple[str, Direction]] = set()

    def begin(self, step: Step) -> None:
        """Tell that a step has begun, unless the run has told it before."""
        migration, direction = step.migration, step.direction
        if (migration.version, direction) not in self._begun:
            self._begun.add((migration.version, direction))
            self.tell(Started(migration.version, migration.name, direction, step.script.statements))
