"""Shared by the benchmarks: servers, databases, corpora, runs that take turns, and tables of results."""

import argparse
import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import asyncpg

from pgratchet import embedded

PGRATCHET = (sys.executable, "-m", "pgratchet")

YARDSTICK = (sys.executable, str(Path(__file__).with_name("yardstick.py")))

# An installed package has bytecode; without it, each process would compile a checkout again.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""The environment of the measured processes."""

_MEMORY = Path("/dev/shm")  # noqa: S108 - private directories are made in it

K = TypeVar("K")

_NUMBERS = count(1)

_KINDS = (
    (
        "create",
        """-- What is sold
CREATE TABLE {table} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    price numeric(12, 2) NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX {table}_created_at ON {table} (created_at);
""",
    ),
    (
        "alter",
        """ALTER TABLE {table}
    ADD COLUMN note text,
    ADD COLUMN active boolean NOT NULL DEFAULT true;
""",
    ),
    ("index", "CREATE INDEX {table}_name ON {table} (name) WHERE active;\n"),
    (
        "comment",
        """COMMENT ON TABLE {table} IS 'What is sold; number {index}';
COMMENT ON COLUMN {table}.note IS 'For the staff only';
""",
    ),
    ("fill", "INSERT INTO {table} (name, price) VALUES ('first', 1.50), ('second', 2.25), ('third', 3);\n"),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity: its samples, and the largest median that meets the target."""

    name: str
    samples: Sequence[float]
    unit: str = "s"
    target: float | None = None

    @property
    def median(self) -> float:
        """The number to quote."""
        return median(self.samples)

    @property
    def verdict(self) -> str:
        """Met or missed; empty if there is no target."""
        if self.target is None:
            return ""
        return "met" if self.median <= self.target else "MISSED"

    def cells(self) -> tuple[str, ...]:
        """Return a line of the table."""
        numbers = [f"{value:.4g}" for value in (self.median, min(self.samples), max(self.samples))]
        target = "" if self.target is None else f"<= {self.target:.4g}"
        return (self.name, *numbers, self.unit, str(len(self.samples)), target, self.verdict)


HEADINGS = ("", "median", "least", "most", "unit", "runs", "target", "")
Measure = Callable[[int], Iterable[Figure]]


class SkippedError(Exception):
    """The machine lacks a program that a benchmark needs."""


def take_turns(runs: int, subjects: Mapping[K, Callable[[], float]]) -> dict[K, list[float]]:
    """Return the results of each subject, by name. Each round calls every subject; every other round in reverse order.

    So other load on the machine affects all subjects alike.
    """
    samples: dict[K, list[float]] = {name: [] for name in subjects}
    for number in range(runs):
        for name in reversed(list(subjects)) if number % 2 else subjects:
            samples[name].append(subjects[name]())
    return samples


def ratio(name: str, over: Sequence[float], under: Sequence[float], target: float | None = None) -> Figure:
    """Return a figure of quotients, each of two samples of the same round."""
    return Figure(name, [a / b for a, b in zip(over, under, strict=True)], "x", target)


def seconds(command: Sequence[str]) -> float:
    """Return the seconds from the start of a process to its end; raises RuntimeError if it fails."""
    begun = time.perf_counter()
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - begun
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr[-2000:]}")
    return taken


def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return the seconds that asynchronous work takes, without making its event loop."""

    async def inside() -> float:
        begun = time.perf_counter()
        await work()
        return time.perf_counter() - begun

    return asyncio.run(inside())


def program(name: str) -> str:
    """Return the path of a program; raises SkippedError if it is missing."""
    found = shutil.which(name)
    if found is None:
        raise SkippedError(f"there is no {name} on this machine")
    return found


def up(dsn: str, folder: Path) -> tuple[str, ...]:
    """Return the command that applies the migrations of a folder.

    It shows the password to everybody on this machine, so the server must have no port.
    """
    return (*PGRATCHET, "up", "--dsn", dsn, "--dir", str(folder))


def yardstick(dsn: str, folder: Path | None = None) -> tuple[str, ...]:
    """Return the command of the yardstick: one SELECT, or the files of a folder applied by plain asyncpg."""
    return (*YARDSTICK, "--dsn", dsn, *(() if folder is None else ("--dir", str(folder))))


def database(server: embedded.Server) -> str:
    """Return the DSN of a new, empty database.

    It stays until the server ends. ext4 skips inodes that were freed in the last minutes, one by one: after a DROP
    DATABASE, the next run would need several times as long to make tables.
    """
    name = f"benchmark_{next(_NUMBERS)}"
    asyncio.run(execute(server.dsn, f"CREATE DATABASE {name} TEMPLATE template0"))
    return server.dsn_for(name)


async def execute(dsn: str, sql: str) -> None:
    """Run SQL in a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@contextmanager
def volatile() -> Iterator[embedded.Server]:
    """Yield a server with fsync off and default settings otherwise, in memory if there is a folder in memory.

    On a disk, making files would be a large and unsteady part of each sample.
    """
    with embedded.server(durable=True, settings={"fsync": "off"}, folder=_MEMORY if _MEMORY.is_dir() else None) as it:
        yield it


@contextmanager
def folder(files: Mapping[str, str]) -> Iterator[Path]:
    """Yield a directory of these files, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="pgratchet-benchmark-") as name:
        for file, text in files.items():
            (Path(name) / file).write_text(text)
        yield Path(name)


def migrations(number: int) -> dict[str, str]:
    """Return small migrations by file name: tables, columns, indexes, comments and rows, in turn."""
    return dict(_migration(index) for index in range(number))


def _migration(index: int) -> tuple[str, str]:
    table = f"item_{index // 5:04}"
    what, template = _KINDS[index % 5]
    return f"{index + 1:05}_{what}_{table}.sql", template.format(table=table, index=index)


def main(title: str | None, measure: Measure, runs: int) -> None:
    """Run one benchmark as a script: print its table, and with --json write its numbers to a file."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    parser.add_argument("--runs", type=int, default=runs, help=f"the number of rounds ({runs})")
    options = parser.parse_args()
    result = run(title, measure, options.runs)
    if options.json:
        options.json.write_text(json.dumps(surroundings() | result, indent=2) + "\n")


def run(title: str | None, measure: Measure, runs: int) -> dict[str, Any]:
    """Measure, print the table and return it as plain values."""
    heading = (title or "").partition("\n")[0]
    print(f"{heading}\n")
    try:
        figures = list(measure(runs))
    except SkippedError as error:
        print(f"skipped: {error}\n")
        return {"title": heading, "skipped": str(error)}
    table = [HEADINGS, *(figure.cells() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *cells in table:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *padded]).rstrip())
    print(flush=True)
    return {"title": heading, "figures": [_plain(figure) for figure in figures]}


def _plain(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "median": figure.median,
        "samples": list(figure.samples),
        "unit": figure.unit,
        "target": figure.target,
        "verdict": figure.verdict,
    }


def surroundings() -> dict[str, Any]:
    """Return the date, the versions and the machine, which explain the numbers."""
    postgres = subprocess.run(
        [embedded.find_binaries() / "postgres", "--version"], capture_output=True, text=True, check=True
    )
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "postgres": postgres.stdout.strip(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "packages": {name: version(name) for name in ("pgratchet", "asyncpg", "anyio", "typer")},
    }
