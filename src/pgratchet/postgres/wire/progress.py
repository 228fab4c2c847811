"""How far a run has come."""

from collections.abc import Collection, Iterable

from pgratchet.core.events import Tell
from pgratchet.core.model import Direction, Finished
from pgratchet.postgres.ledger.records import Claim

Group = tuple[Claim, ...]


class Progress:
    """`finished` grows as steps are known to be committed and durable; `tell` gets to know of all that happens.

    `flying` is what was sent and not answered yet: after a lost connection only the history knows what became of it.
    `launched` counts how often something was.
    """

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.finished: list[Finished] = []
        self.flying: Group = ()
        self.launched = 0

    def launch(self, group: Group) -> None:
        """Take a group for sent."""
        self.flying = group
        self.launched += 1

    def finish(self, steps: Iterable[Finished]) -> None:
        """Take steps for finished, and tell so."""
        for step in steps:
            self.finished.append(step)
            self.tell(step)

    def drop_lost(self, applied: Collection[str]) -> list[Finished]:
        """Drop, and return, the steps that a server has lost, given which versions it has, and nobody may change."""
        last = {step.version: step for step in self.finished}
        lost = [step for step in last.values() if (step.direction is Direction.UP) != (step.version in applied)]
        self.finished[:] = [step for step in self.finished if step not in lost]
        return lost
