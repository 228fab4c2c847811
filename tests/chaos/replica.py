"""One replica: migrates, and says as JSON what it did, also where that failed; exits as a command line would."""

import json
import logging
import sys
from functools import partial

from pgratchet import Migrator, PgratchetError
from pgratchet.cli.interruption import InterruptedBySignalError, run

LOCK_TIMEOUT = 0.4


def main(dsn: str, folder: str, budget: str) -> int:
    migrator = Migrator(dsn, folder, budget=float(budget), lock_timeout=LOCK_TIMEOUT)
    try:
        finished = run(partial(migrator.up))
    except PgratchetError as error:
        _say([step.version for step in error.finished], type(error).__name__, str(error))
        return 1
    except InterruptedBySignalError as error:
        _say([], type(error).__name__, str(error))
        return 128 + error.signal
    _say([step.version for step in finished])
    return 0


def _say(finished: list[str], error: str = "", text: str = "") -> None:
    print(json.dumps({"finished": finished, "error": error, "text": text}), flush=True)  # noqa: T201 - to the trial


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sys.exit(main(*sys.argv[1:]))
