"""The command line: arguments in, the migrator called, results rendered. It decides nothing."""

from pgratchet.cli.program import main

__all__ = ["main"]
