"""How far a run has come."""

from pgratchet.core.model import Finished
from pgratchet.postgres.records import Claim

Group = tuple[Claim, ...]


class Progress:
    """`finished` grows as steps are known to be committed and durable.

    `flying` is what was sent and not answered yet: after a lost connection only the history knows what became of it.
    """

    def __init__(self) -> None:
        self.finished: list[Finished] = []
        self.flying: Group = ()
