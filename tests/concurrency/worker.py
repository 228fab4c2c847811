"""One replica: waits for a line of input, migrates, and prints a JSON report; exits with 1 after a failure."""

import json
import os
import sys

import anyio

from pgratchet import Migrator, PgratchetError


async def main(*arguments: str) -> int:
    folder, options = arguments
    migrator = Migrator(os.environ["WORKER_DSN"], folder, **json.loads(options))
    try:
        finished = await migrator.up()
    except PgratchetError as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}))  # noqa: T201 - to the test
        return 1
    print(json.dumps({"finished": [step.version for step in finished]}))  # noqa: T201 - the same
    return 0


if __name__ == "__main__":
    print("ready", flush=True)  # noqa: T201 - the same
    sys.stdin.readline()
    sys.exit(anyio.run(main, *sys.argv[1:]))
