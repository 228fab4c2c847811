"""The command line: it reads arguments, calls the migrator, and writes reports. It decides nothing."""

import gc

# Before the imports below: they make many objects, which all stay, and would search them for garbage several times.
gc.set_threshold(50_000)

from pgratchet.cli.program import main  # noqa: E402 - the line above must run first

__all__ = ["main"]
