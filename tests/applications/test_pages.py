"""The pages of the documentation, worked through word for word: in a shell, in an empty folder, on a private server.

In their order, the files that a page shows are written, its shell blocks and its SQL are run, its Python is executed.
"""

import ast
import asyncio
import json
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
from contextlib import chdir, contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from fastapi import FastAPI

import pgratchet
from pgratchet import embedded
from pgratchet.testing.databases import Databases
from pgratchet.testing.dumps import find_pg_dump
from tests.pages import PAGES, ROOT, Block, blocks, signature, spans
from tests.support import connected, free_port, missing

END = "the end of a block, in "
PATIENCE = 40.0
NOTHING: Mapping[str, Any] = {}


class Reader:
    """A person who does what a page says: in one shell, in a folder, with a server where the pages have one."""

    def __init__(self, folder: Path, server: embedded.Server) -> None:
        self.cwd = folder / "work"
        self.server = server
        self.dsn = server.dsn_for("app")
        self.own_dsn = f"postgresql://app:secret@{urlsplit(self.dsn).netloc.rpartition('@')[2]}/app"
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
        before: Mapping[str, Callable[[], object]] = NOTHING,
        ends_with: Mapping[str, int] = NOTHING,
        but: Mapping[str, str] = NOTHING,
        names: Mapping[str, object] = NOTHING,
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
                self.write(block)
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

    def create(self, database: str) -> str:
        """Create another database of the role that the pages name; return its DSN."""
        sql(self.dsn, f"CREATE DATABASE {database} OWNER app")
        return f"{self.own_dsn.rpartition('/')[0]}/{database}"

    def enter(self, database: str) -> str:
        """Create another database, and name it as the pages name theirs; return its DSN."""
        self.run(f"export DATABASE_URL=postgresql://app:secret@localhost/{database}")
        return self.create(database)

    def write(self, block: Block) -> None:
        """Write the file that a block shows."""
        path = self.cwd / str(block.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.content)

    def run(self, text: str, code: int = 0) -> str:
        """Run shell commands; return their output."""
        assert self.shell.stdin
        assert self.shell.stdout
        checked = f"{{ {text.rstrip()}\n}} && false || [ $? = {code} ]" if code else text
        self.shell.stdin.write(f'{checked}\necho "{END}$PWD"\n')
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
        wait(self.ready, log.read_text)
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
    reader.run("export PIP_NO_INDEX=1 PIP_NO_BUILD_ISOLATION=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1")

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
    reader.run(f"cd {checkout}; {span_of('README.md', 'pip wheel')}; {span_of('README.md', 'pip install dist/')}")
    assert reader.run(f"cd {folder}; command -v pgratchet; pgratchet status").endswith("1 applied\n")
    assert "pgratchet[embedded] in" in reader.run(block_of("docs/testing.md", "pip install").text)


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
        before={f"-- {path}": partial(as_new_has_written, path) for path in (up, down)},
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


OLD_FILES = {
    "001_add_name.sql": "ALTER TABLE users ADD COLUMN IF NOT EXISTS name text;",
    "002_orders.sql": "CREATE TABLE IF NOT EXISTS orders (id int PRIMARY KEY, user_email text);",
    "003_index_orders.sql": "CREATE INDEX IF NOT EXISTS orders_by_user ON orders (user_email);",
    "003_add_locale.sql": "ALTER TABLE users ADD COLUMN IF NOT EXISTS locale text;",
    "004_add_total.sql": "ALTER TABLE orders ADD COLUMN total numeric;",
}
CREATE_ALL = "CREATE TABLE users (email text PRIMARY KEY)"
OLD_TABLE = (
    "CREATE TABLE schema_migrations (version integer, description text, filename text, "
    "executed_at timestamp DEFAULT now(), success boolean, error_message text)"
)


def test_a_service_moves_from_its_home_made_runner(reader: Reader) -> None:
    """The old runner was keyed by file names, ran behind `create_all`, and went on after a failure."""
    page = "docs/migrating-from-a-home-made-runner.md"
    folder = reader.cwd / "migrations" / "versions"
    folder.mkdir(parents=True)
    for name, text in OLD_FILES.items():
        (folder / name).write_text(text)
    diary = folder.parent / ".migration_history"
    diary.write_text("001_add_name.sql: ok\n")
    sql(reader.own_dsn, CREATE_ALL, OLD_TABLE)
    columns = "version, filename, success, error_message"
    for name, text in OLD_FILES.items():
        if name.startswith("004"):
            row = f"({name[:3]}, '{name}', false, 'canceled')"
        else:
            row = f"({name[:3]}, '{name}', true, NULL)"
            sql(reader.own_dsn, text)
        sql(reader.own_dsn, f"INSERT INTO schema_migrations ({columns}) VALUES {row}")
    before = rows(reader.dsn, "SELECT schema_migrations::text FROM schema_migrations")

    def the_application_makes_its_tables() -> None:
        base = reader.create("base")
        sql(base, CREATE_ALL)
        reader.run(f"export BASE_URL={base}; PATH={find_pg_dump(Databases(base).server_major()).parent}:$PATH")

    def a_table_of_another_form(dsn: str = reader.dsn) -> None:
        sql(dsn, "CREATE TABLE migrations AS SELECT 1 AS number, 'add name' AS name, now() AS applied_at")

    output = reader.follow(
        page,
        ends_with={"pgratchet plan": 4, "pgratchet adopt\n": 4},
        before={"pg_dump": the_application_makes_its_tables, "CREATE TABLE old_history": a_table_of_another_form},
        names={"lifespan": None},
    )

    assert "version 3 is already" in output["pgratchet plan"]
    assert "004_add_total.sql) is recorded as failed: canceled" in output["pgratchet adopt"]
    assert "would apply 6 add_total" in output["pgratchet status"]
    assert rows(reader.dsn, "SELECT schema_migrations::text FROM schema_migrations") == before
    assert reader.run("unset PGRATCHET_TABLE; pgratchet up; pgratchet status").endswith("6 applied\n")

    reader.enter("fresh")
    assert reader.run("pgratchet up; pgratchet status").endswith("6 applied\n")

    other = reader.enter("other")
    a_table_of_another_form(other)
    sql(other, block_of(page, "CREATE TABLE old_history").text)
    reader.run(f"pgratchet adopt {span_of(page, '--source')} --yes")
    assert "1: adopted from public.old_history" in reader.run("pgratchet status")

    sql(reader.enter("tableless"), CREATE_ALL, *list(OLD_FILES.values())[:4])
    repair = span_of(page, "pgratchet repair 1 --applied")
    for version in (0, 1, 2, 3, 5):
        reader.run(repair.replace("repair 1", f"repair {version}"))
    assert "applied 6 add_total" in reader.run(f"pgratchet up {span_of(page, '--journal')}")
    assert reader.run("pgratchet check").endswith("everything is applied\n")
    assert [line[:5] for line in diary.read_text().splitlines()] == ["001_a", '{"at"']


def test_the_page_of_the_migrations_makes_and_applies_one(reader: Reader) -> None:
    copy_the_checkout(reader.cwd)
    output = reader.follow("migrations/README.md")

    assert "applied 9 add_user_locale" in output["export DATABASE_URL=postgresql://app:secret@localhost/app"]
    assert reader.run("pgratchet status").endswith("9 pending\n")


def test_documents_have_the_fields_that_the_page_of_the_command_line_shows(reader: Reader) -> None:
    done, behind = (json.loads(block.text) for block in blocks("docs/command-line.md", "json"))
    folder = reader.cwd / "migrations" / "versions"
    folder.mkdir(parents=True)
    (folder / "001_create_users.sql").write_text("CREATE TABLE users (); CREATE TABLE pets ()")
    reader.run(f"export DATABASE_URL={reader.own_dsn}")

    here = {"host": "db", "port": 5432}
    found = json.loads(reader.run("pgratchet up --json 2> log"))
    (step,) = found["finished"]
    assert {**found, **here, "finished": [{**step, "seconds": 0.004}]} == done

    (folder / "007_more.sql").write_text("SELECT 1")
    assert {**json.loads(reader.run("pgratchet check --json 2> log", 3)), **here} == behind


def test_what_the_page_of_the_servers_says_migrates_first_and_serves(reader: Reader) -> None:
    for beginning in ("export DATABASE_URL=", "# app.py"):
        block = block_of("README.md", beginning)
        reader.run(block.text) if block.language == "sh" else reader.write(block)
    migrator = pgratchet.Migrator(reader.dsn)

    (said,) = reader.follow("docs/servers.md", names={"migrator": migrator}).values()

    assert "nothing to do" in said
    # One of the four answers that the schema is ready, maybe before another one has started.
    assert "Application startup complete" in said


def test_the_python_of_the_api_page_works(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    folder = reader.cwd / "migrations" / "versions"
    folder.mkdir(parents=True)
    (folder / "012_orders.sql").write_text("CREATE TABLE orders ()")

    async def token() -> str:
        return "secret"

    reader.follow(
        "docs/python-api.md",
        before={"try:": lambda: (folder / "013_failing.sql").write_text("\nSELECT 1/0")},
        names={"app": FastAPI(), "token": token, "migrator": pgratchet.Migrator(reader.own_dsn)},
    )

    told = capsys.readouterr().out
    assert told.startswith("12 pending orders\n")
    assert "013_failing.sql:2: division by zero\napplied before it: []\n" in told
    assert "postgresql://postgres:" in told


IN_DOUBT = {"012_pay.sql": "-- pgratchet: no-transaction\nCALL pay();\nCREATE TABLE paid ();"}
PAY = "CREATE PROCEDURE pay() LANGUAGE plpgsql AS 'BEGIN COMMIT; PERFORM pg_advisory_lock_shared(1); END'"
VERDICTS = block_of("docs/production.md", "pgratchet repair 12 --again").text.splitlines()


def test_each_verdict_of_the_page_settles_a_step_whose_runner_was_killed(reader: Reader) -> None:
    folder = reader.cwd / "migrations" / "versions"
    folder.mkdir(parents=True)
    for name, text in IN_DOUBT.items():
        (folder / name).write_text(text)
    sql(reader.own_dsn, PAY)
    reader.run(f"export DATABASE_URL={reader.own_dsn}")
    kill_in_the_middle(reader)
    assert "nobody knows whether it took effect" in reader.run("pgratchet up", 4)
    sql(reader.server.dsn, "CREATE DATABASE doubt TEMPLATE app")

    for command in VERDICTS:
        sql(reader.server.dsn, "DROP DATABASE app WITH (FORCE)", "CREATE DATABASE app TEMPLATE doubt OWNER app")
        reader.run(command)
        reader.run("pgratchet up")
        (reason,) = re.findall('--reason "(.*)"', command)
        assert f"12: {reason}" in reader.run("pgratchet status")
        assert rows(reader.dsn, "SELECT to_regclass('paid') IS NOT NULL") == ["--applied" not in command]

    assert {command.split()[3] for command in VERDICTS} == {"--again", "--skip", "--applied", "--not-applied"}


def kill_in_the_middle(reader: Reader) -> None:
    """Kill a runner in mid-statement, and return when its session is gone."""
    calling = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%CALL pay()%' AND wait_event = 'advisory'"

    with holding(reader.dsn, 1):
        reader.run("pgratchet up > up 2>&1 & up=$!")
        wait(lambda: len(rows(reader.dsn, calling)) == 1)
        reader.run("kill -9 $up; wait $up || [ $? = 137 ]")
        wait(lambda: not rows(reader.dsn, calling))


@contextmanager
def holding(dsn: str, key: int) -> Iterator[int]:
    """Hold an advisory lock; yield the process of the server that has it."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(dsn))
        try:
            runner.run(connection.execute(f"SELECT pg_advisory_lock({key})"))
            yield connection.get_server_pid()
        finally:
            connection.terminate()


def wait(condition: Callable[[], bool], seen: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain; seen: {seen()}"
        time.sleep(0.05)


SHOW, END_IT = block_of("SECURITY.md", "SELECT a.pid").text.split("\n\n")


def test_the_statements_about_a_strangers_lock_show_and_end_it(reader: Reader) -> None:
    with holding(reader.own_dsn, 4711) as pid:
        assert rows(reader.dsn, SHOW) == [pid]
        sql(reader.dsn, END_IT.replace("<pid>", str(pid)))
        wait(lambda: rows(reader.dsn, SHOW) == [])


def test_the_page_about_production_makes_roles_that_suffice(reader: Reader) -> None:
    (reader.cwd / "migrations" / "versions").mkdir(parents=True)
    reader.run("echo 'CREATE TABLE orders (legacy_total int)' > migrations/versions/041_orders.sql")
    sql(reader.dsn, "ALTER DATABASE app OWNER TO postgres", "DROP ROLE app")

    def as_role(name: str) -> str:
        sql(reader.dsn, f"ALTER ROLE {name} PASSWORD 'secret'")
        return f"DATABASE_URL=postgresql://{name}:secret@localhost/app"

    def migrate(options: str = "") -> None:
        options = f"--table pgratchet.schema_migrations {options}"
        reader.run(f"{as_role('migrator')} pgratchet up {options} --reader app")
        reader.run(f"{as_role('app')} pgratchet check --table pgratchet.schema_migrations")

    def begin_again() -> None:
        migrate()
        sql(reader.dsn, "DROP OWNED BY migrator CASCADE; DROP OWNED BY app CASCADE; DROP ROLE migrator")

    reader.follow(
        "docs/production.md",
        before={"CREATE ROLE orders_owner": begin_again},
        but={"pgratchet repair 12": "four answers to one question: the test of each verdict gives them"},
        names={"os": SimpleNamespace(environ={"DATABASE_URL": reader.dsn, "DIRECT_URL": reader.dsn})},
    )

    migrate("--owner orders_owner")

    reader.run("mkdir others; echo 'SELECT 1' > others/001_one.sql")
    reader.run(f"DATABASE_URL={reader.dsn} pgratchet up --dir others")
    sql(reader.dsn, span_of("docs/production.md", "ALTER TABLE schema_migrations OWNER"))
    reader.run("echo 'SELECT 1' > others/002_two.sql")
    reader.run(f"{as_role('migrator')} pgratchet up --dir others --owner orders_owner")

    reader.run("rm migrations/versions/04*; echo 'SELECT 1' > migrations/versions/040_older.sql")
    assert "41" in reader.run(f"{as_role('app')} pgratchet check --table pgratchet.schema_migrations", 4)
    sql(reader.dsn, "DROP OWNED BY migrator, app, orders_owner CASCADE")


ELSEWHERE = {
    "docs/deployment.md": "its block is a part of the chart, which tests/unit/test_kubernetes_files.py compares",
    "benchmarks/README.md": "it measures for minutes; tests/unit/test_pages.py asks for the options that it gives",
    "docs/architecture.md": "its diagram is no code",
    "docs/frameworks.md": "each block is a file in examples/, which tests/frameworks runs",
    "docs/layouts.md": "tests/integration/test_layouts.py has the layout, and applies its files",
    "docs/protocol.md": "its block is the outline of a message, which tests/unit/test_message.py has in full",
    "docs/testing.md": "tests/applications/test_testing_plugin.py runs its files under pytest",
}


def test_every_page_with_a_block_is_followed_here_or_run_elsewhere() -> None:
    here = Path(__file__).read_text(encoding="utf-8")

    assert [page for page in PAGES if blocks(page) and f'"{page}"' not in here] == []
