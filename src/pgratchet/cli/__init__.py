"""The command line: arguments in, the migrator called, results rendered. It decides nothing."""

import gc

# Before the imports below: a start makes many objects that all stay, and would look through them for garbage
# several times on its way.
gc.set_threshold(50_000)

from pgratchet.cli.program import main  # noqa: E402 - the line above is about this one

__all__ = ["main"]
