"""The pages of the documentation, worked through word for word: in a shell, in an empty folder, on a private server.

In their order, the files that a page shows are written, its shell blocks and its SQL are run, its Python is executed.
"""

import ast
import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from fastapi import FastAPI

import pgratchet
from pgratchet import embedded
from tests.pages import ROOT, Block, blocks, signature, spans
from tests.support import connected, free_port, missing

END = "the end of a block, in "
PATIENCE = 40.0
Nothing: Mapping[str, Any] = {}


class Reader:
    """A person who does what a page says: in one shell, in a folder, with a server where the pages have one."""

    def __init__(self, folder: Path, server: embedded.Server) -> None:
        self.cwd = folder / "work"
        self.server = server
        self.dsn = server.dsn_for("app")
        self.address = f"http://127.0.0.1:{free_port()}"
        programs = folder / "programs"
        for made in (self.cwd, folder / "home", programs):
            made.mkdir()
        for name in ("pgratchet", "uvicorn"):
            (programs / name).write_text(f'#!/bin/sh\nexec python -m {name} "$@"\n')
            (programs / name).chmod(0o755)
        self.shell = subprocess.Popen(
            ["/bin/sh", "-eu"],
            cwd=self.cwd,
            env={
                "HOME": str(folder / "home"),
                "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
                # The pages give no port, because the usual one is right for their readers.
                "PGPORT": str(urlsplit(server.dsn).port),
                "UVICORN_PORT": self.address.rpartition(":")[2],
                "PYTHONPATH": str(ROOT / "src"),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def follow(
        self,
        page: str,
        *,
        before: Mapping[str, Callable[[], object]] = Nothing,
        ends_with: Mapping[str, int] = Nothing,
        but: Mapping[str, str] = Nothing,
        names: Mapping[str, object] = Nothing,
    ) -> dict[str, str]:
        """Do all that a page says; return the output of its shell blocks by their first lines.

        Blocks are known by the beginnings of their texts: what to do `before` one, the exit code that one `ends_with`
        if it is not 0, and why all are run `but` some. Python that is no file has the `names` that the page leaves out.
        """
        output, used = {}, set()

        def found(table: Mapping[str, Any], block: Block) -> Any:
            keys = [key for key in table if block.text.startswith(key)]
            used.update(keys)
            return table[keys[0]] if keys else None

        for block in blocks(page):
            if prepare := found(before, block):
                prepare()
            if found(but, block):
                continue
            if block.path:
                path = self.cwd / block.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.content)
            elif block.language == "sh":
                serves = "uvicorn app:app" in block.text
                code = found(ends_with, block) or 0
                output[block.first] = self.serve(block.text) if serves else self.run(block.text, code)
            elif block.language == "sql":
                sql(self.dsn, block.text)
            elif block.language == "python" and not signature(block):
                self.execute(block, names)
        assert used == {*before, *ends_with, *but}
        return output

    def run(self, text: str, code: int = 0) -> str:
        """Run shell commands; return their output."""
        assert self.shell.stdin
        assert self.shell.stdout
        tolerant = f"{text.rstrip()} || [ $? = {code} ]" if code else text
        self.shell.stdin.write(f'{tolerant}\necho "{END}$PWD"\n')
        self.shell.stdin.flush()
        output = ""
        for line in self.shell.stdout:
            if line.startswith(END):
                self.cwd = Path(line.removeprefix(END).rstrip("\n"))
                return output
            output += line
        raise AssertionError(f"{text}\nends with {self.shell.wait()}:\n{output}")

    def serve(self, text: str) -> str:
        """Run commands of which the last is a server; end it when it is ready, and return its output."""
        commands = re.sub(r"(?<!exec )uvicorn app:app", "exec uvicorn app:app", text.rstrip())
        self.run(f"( {commands} ) > {self.cwd}/serving 2>&1 & served=$!")
        log = self.cwd / "serving"
        deadline = time.monotonic() + PATIENCE
        while not self.ready():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        # A server that SIGTERM ends has the code that belongs to the signal, or 0.
        self.run("kill $served; wait $served || [ $? = 143 ]")
        return log.read_text()

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/readyz", timeout=5) as answer:  # noqa: S310 - ours
                return bool(answer.status == 200)
        except OSError:
            return False

    def execute(self, block: Block, names: Mapping[str, object]) -> None:
        """Execute Python that is no whole file."""
        known = {**vars(pgratchet), "asyncpg": asyncpg, "os": os, "sys": sys, "dsn": self.dsn, "FastAPI": FastAPI}
        code = compile(block.text, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with chdir(self.cwd):
            if coroutine := eval(code, {**known, **names}):  # noqa: S307 - it is our own
                asyncio.run(coroutine)

    def close(self) -> None:
        self.shell.kill()
        self.shell.communicate()


@pytest.fixture(scope="module")
def own_server(memory: Path | None) -> Iterator[embedded.Server]:
    """A server of these tests alone, because pages create roles, which belong to a server."""
    with embedded.server(tcp=True, folder=memory) as server:
        yield server


@pytest.fixture
def reader(own_server: embedded.Server, tmp_path: Path) -> Iterator[Reader]:
    sql(own_server.dsn, "CREATE ROLE app LOGIN PASSWORD 'secret'", "CREATE DATABASE app OWNER app")
    reader = Reader(tmp_path, own_server)
    try:
        yield reader
    finally:
        reader.close()
        empty(own_server.dsn)


def sql(dsn: str, *statements: str) -> None:
    async def run() -> None:
        async with connected(dsn) as connection:
            for statement in statements:
                await connection.execute(statement)

    asyncio.run(run())


def rows(dsn: str, query: str) -> list[Any]:
    """Return the first value of every row."""

    async def run() -> list[Any]:
        async with connected(dsn) as connection:
            return [row[0] for row in await connection.fetch(query)]

    return asyncio.run(run())


def empty(dsn: str) -> None:
    """Drop all databases and roles that a page has made."""
    databases = rows(dsn, "SELECT quote_ident(datname) FROM pg_database WHERE datname !~ '^(postgres|template.)$'")
    roles = rows(dsn, "SELECT quote_ident(rolname) FROM pg_roles WHERE rolname !~ '^(postgres$|pg_)'")
    sql(dsn, *(f"DROP DATABASE {name} WITH (FORCE)" for name in databases), *(f"DROP ROLE {name}" for name in roles))


def block_of(page: str, beginning: str) -> Block:
    (found,) = (block for block in blocks(page) if block.text.startswith(beginning))
    return found


def span_of(page: str, beginning: str) -> str:
    (found,) = (span for span in spans(page) if span.startswith(beginning))
    return found


def copy_the_checkout(folder: Path) -> None:
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("src", "migrations"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def test_the_readme_installs_a_checkout_or_a_wheel_migrates_and_serves(reader: Reader) -> None:
    found = [find_spec(name) for name in ("hatchling", "fastapi")]
    if None in found:
        missing("hatchling, which builds the package, is not installed (pip install --group test)")
    checkout = reader.cwd
    copy_the_checkout(checkout)
    # All that pip would take from a registry is here already.
    packages = {str(Path(spec.origin).parents[1]) for spec in found if spec and spec.origin}
    reader.run(f"export PYTHONPATH={os.pathsep.join(packages)}")
    reader.run("export PIP_NO_INDEX=1 PIP_NO_BUILD_ISOLATION=0 PIP_DISABLE_PIP_VERSION_CHECK=1")

    output = reader.follow(
        "README.md",
        but={
            "make demo": "they take an environment from a registry; test_demo.py runs the demo, the rest is this suite",
            "python3 -m venv .venv": "the same; tests/unit/test_pages.py compares these lines with the Makefile",
            "docker run": "few machines that run tests have a daemon of Docker; the server of this test stands for it",
        },
    )

    steps = output["export DATABASE_URL=postgresql://app:secret@localhost/app"]
    assert "would apply 1 create_users (1 statement, one transaction)" in steps
    assert "applied 1 create_users (1 statement," in steps
    assert steps.endswith("1 applied\n")
    assert "Application startup complete" in output["pip install fastapi uvicorn"]

    folder = reader.cwd
    assert str(folder) in reader.run("command -v pgratchet; pip uninstall --yes --quiet pgratchet")
    reader.run(f"cd {checkout}; {span_of('README.md', 'pip wheel')}; {span_of('README.md', 'pip install pgratchet-')}")
    assert reader.run(f"cd {folder}; command -v pgratchet; pgratchet status").endswith("1 applied\n")


def test_the_server_of_the_readme_has_the_address_that_follows() -> None:
    words = shlex.split(block_of("README.md", "docker run").text)
    made = dict(word.split("=") for option, word in pairwise(words) if option == "--env")
    address = urlsplit(block_of("README.md", "export DATABASE_URL=").first.partition("=")[2])

    assert made == {"POSTGRES_USER": address.username, "POSTGRES_PASSWORD": address.password}
    assert address.path == f"/{address.username}"  # as Docker's image names the database
    assert "5432:5432" in words


def test_the_tutorial_goes_on_from_the_first_steps_to_every_cure(reader: Reader) -> None:
    reader.run(block_of("README.md", "export DATABASE_URL=").text)

    def as_new_has_written(path: str) -> None:
        written = re.sub("Date: .*", "Date: 2026-11-30", (reader.cwd / path).read_text())
        assert block_of("docs/tutorial.md", f"-- {path}").content.startswith(written)

    up, down = (f"migrations/versions/002_add_names{way}.sql" for way in ("", ".down"))
    output = reader.follow(
        "docs/tutorial.md",
        before={f"-- {path}": lambda path=path: as_new_has_written(path) for path in (up, down)},
    )

    assert "rehearsed" in output["pgratchet up --dry-run      # show the plan"]
    assert rows(reader.dsn, "SELECT version FROM schema_migrations") == ["1"]

    reader.run("pgratchet up")
    edited = reader.run(f"echo '-- a comment' >> {up}; pgratchet up", 4)
    assert "edited after it had been applied" in edited
    reader.run(span_of("docs/tutorial.md", "pgratchet repair 2 --accept"))
    reader.run("pgratchet up; echo 'SELECT 1;' > migrations/versions/006_b.sql; pgratchet up")
    late = reader.run("echo 'SELECT 1;' > migrations/versions/005_a.sql; pgratchet up", 4)
    assert "is pending, but later versions are applied" in late
    reader.run(span_of("docs/tutorial.md", "pgratchet up --allow-late"))
    assert reader.run("pgratchet status").endswith("6 applied\n")
