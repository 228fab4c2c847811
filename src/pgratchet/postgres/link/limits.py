"""How long a statement may wait, and may take."""

from typing import NamedTuple

from pgratchet.core.model import Options


class Limits(NamedTuple):
    """How long statements may wait for a lock, and may take, in seconds; 0 means for ever."""

    lock_timeout: float
    statement_timeout: float

    def of(self, options: Options) -> "Limits":
        """Return the limits of one script: its own directives come first."""
        return Limits(
            self.lock_timeout if options.lock_timeout is None else options.lock_timeout,
            self.statement_timeout if options.statement_timeout is None else options.statement_timeout,
        )
