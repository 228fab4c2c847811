"""How far a run has come."""

from pgratchet.core.events import Tell
from pgratchet.core.model import Finished
from pgratchet.postgres.ledger.records import Claim

Group = tuple[Claim, ...]


class Progress:
    """`finished` grows as steps are known to be committed and durable; `tell` gets each event of the run.

    `flying` are the steps that were sent and not answered yet: after a lost connection only the history knows whether
    they are done. `launched` counts how often steps were sent.
    """

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.finished: list[Finished] = []
        self.flying: Group = ()
        self.launched = 0
