"""A database's schema as pg_dump writes it, object by object, and what two of them differ in."""

import difflib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pgratchet import embedded
from pgratchet.core.errors import ServerError
from pgratchet.postgres.sql import Table

_HEAD = re.compile(r"-- (?:Name: )?(.+; Type: .+)")
_NOISE = re.compile(r"\\(un)?restrict |--$|$")
"""The key behind \\restrict is another one in each dump."""

Dump = Mapping[str, tuple[str, ...]]
"""The lines of each object, by what pg_dump calls it."""


def find_pg_dump(major: int) -> Path:
    """Return a pg_dump that can read a server of that major version; raises ServerError where there is none."""
    found = {}
    for path in _candidates():
        found[path] = _major(path)
        if found[path] >= major:
            return path
    there = ", ".join(f"{path} is {its_major}" for path, its_major in found.items() if its_major) or "there is none"
    raise ServerError(
        f"the server is PostgreSQL {major}, and needs a pg_dump that is as new: {there}; install PostgreSQL's client "
        f"programs {major}, or pgratchet[embedded], or name the folder that has pg_dump in {embedded.VARIABLE}"
    )


def _candidates() -> Iterator[Path]:
    if named := os.environ.get(embedded.VARIABLE):
        yield Path(named, "pg_dump")
    if on_path := shutil.which("pg_dump"):
        yield Path(on_path)
    yield from (folder / "pg_dump" for folder in embedded.candidates())


def _major(pg_dump: Path) -> int:
    """Return its major version, 0 where it does not run."""
    with suppress(OSError):
        shown = subprocess.run([str(pg_dump), "--version"], capture_output=True, text=True, check=False)  # noqa: S603 - found above
        if number := re.search(r"\) (\d+)", shown.stdout):
            return int(number[1])
    return 0


def dump(pg_dump: Path, dsn: str, history: Table) -> Dump:
    """Return the schema without the history table; raises ServerError with what pg_dump says where it fails."""
    parts = urlsplit(dsn)
    user, at, hosts = parts.netloc.rpartition("@")
    # Not within the command, which everybody on this machine may read.
    password = {"PGPASSWORD": unquote(parts.password)} if parts.password else {}
    address = f"postgresql://{user.partition(':')[0]}{at}{hosts}{parts.path}?{parts.query}"
    command = [str(pg_dump), "--schema-only", f"--exclude-table={history.quoted}", f"--dbname={address}"]
    done = subprocess.run(  # noqa: S603 - found above
        command, capture_output=True, check=False, encoding="utf-8", env={**os.environ, "LC_ALL": "C", **password}
    )
    if done.returncode != 0:
        raise ServerError(f"{pg_dump} failed: {done.stderr.strip()}")
    return _objects(done.stdout)


def _objects(text: str) -> Dump:
    objects: dict[str, list[str]] = {}
    lines = objects.setdefault("settings", [])
    for line in text.splitlines():
        if head := _HEAD.fullmatch(line):
            lines = objects.setdefault(head[1], [])
        elif not _NOISE.match(line):
            lines.append(line)
    return {name: _in_any_order(lines) for name, lines in objects.items()}


def _in_any_order(lines: list[str]) -> tuple[str, ...]:
    """Return a table with its columns sorted: one that is dropped can come back as the last one only."""
    if lines and lines[0].startswith("CREATE TABLE ") and ");" in lines:
        end = lines.index(");")
        lines = [lines[0], *sorted(line.removesuffix(",") for line in lines[1:end]), *lines[end:]]
    return tuple(lines)


def differences(before: Dump, after: Dump) -> Iterator[str]:
    """Yield the lines of a diff, each object under its name; none where both are the same."""
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name, ()), after.get(name, ())
        if old != new:
            yield f"  {name}"
            # Behind two lines of names and one of numbers for each hunk.
            for line in list(difflib.unified_diff(old, new, n=1, lineterm=""))[2:]:
                if not line.startswith("@@"):
                    yield f"    {line}"
