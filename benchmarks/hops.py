"""Count the functions, and the files, that one `up` of three plain files enters: how far a reader has to follow it.

Constructors, lambdas and comprehensions are left out. `--list` prints every function under its file.
"""

import argparse
import asyncio
import inspect
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import FrameType

import harness

import pgratchet
from pgratchet import Migrator, embedded

PACKAGE = Path(pgratchet.__file__).parent
FILES = {
    "001_users.sql": "CREATE TABLE users (id int);",
    "002_index.sql": "CREATE INDEX ON users (id);",
    "003_rows.sql": "INSERT INTO users VALUES (1);",
}


def entered(dsn: str, folder: Path) -> dict[Path, set[str]]:
    """Return the functions of the package that one `up` enters, by file."""
    found: dict[Path, set[str]] = defaultdict(set)

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        path = Path(code.co_filename)
        # The body of a class is no function: it has no fast locals.
        is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith(("<", "__init__", "__new__"))
        if event == "call" and is_function and PACKAGE in path.parents:
            found[path.relative_to(PACKAGE)].add(code.co_qualname)

    migrator = Migrator(dsn, folder)
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        asyncio.run(migrator.up())
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return dict(found)


def main() -> None:
    """Print the two numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print every function under its file")
    arguments = parser.parse_args()
    with harness.folder(FILES) as folder, embedded.server() as server:
        found = entered(server.dsn, folder)
    if arguments.list:
        for path, names in sorted(found.items()):
            print(path, *sorted(names), sep="\n    ")
    print(f"one up of {len(FILES)} files: {sum(map(len, found.values()))} functions in {len(found)} files")


if __name__ == "__main__":
    main()
