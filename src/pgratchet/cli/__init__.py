"""The command line: it reads arguments, calls the migrator, and writes reports. It decides nothing."""

import gc
import sys

# Before the import below: it makes many objects, which all stay, and would search them for garbage several times.
gc.set_threshold(50_000)

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process, and exit."""
    try:
        from pgratchet.cli.program import main as program  # noqa: PLC0415 - an error of it is to be reported, too
    except BaseException as error:  # noqa: BLE001 - as above
        sys.exit(_unusable(error))
    program()


def _unusable(error: BaseException) -> int:
    """Report that the program cannot be imported, as far as that is possible without it; return the exit code."""
    message = f"pgratchet cannot start: {type(error).__name__}: {error}"
    sys.stderr.write(f"error: {message}\n")
    if "--json" in sys.argv:
        import json  # noqa: PLC0415 - needed only here

        document = {"ok": False, "error": {"type": type(error).__name__, "message": message}}
        sys.stdout.write(f"{json.dumps(document)}\n")
    return 130 if isinstance(error, KeyboardInterrupt) else 6
