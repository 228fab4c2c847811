"""What the pytest plugin does in a project of its own: real runs of pytest, in processes of their own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest

from pgratchet import Migrator
from pgratchet.testing.databases import Databases, run
from tests.pages import blocks
from tests.support import PASSWORD, column, connected, missing, tell

INI = "[pytest]\nfilterwarnings = error\naddopts = --import-mode=importlib -p no:cacheprovider -rA\n"
PYTEST = (sys.executable, "-P", "-m", "pytest", "-pno:hypothesispytest", "-pno:faker", "-pno:asyncio")
"""As plain `pytest`, for which the working directory is on no path, without what takes long to import."""

USERS = {
    "migrations/versions/001_users.sql": "CREATE TABLE users (email text UNIQUE);",
    "migrations/versions/001_users.down.sql": "DROP TABLE users;",
}
CHECKS = {
    "test_migrations.py": "from pgratchet.testing import test_every_down_undoes_its_up, test_every_migration_applies\n"
}
APPLIES, UNDOES = "test_every_migration_applies", "test_every_down_undoes_its_up"
HELPERS = """
import asyncio, os, sys, asyncpg, pytest

def sql(dsn, query):
    async def go():
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()
    return asyncio.run(go())
"""
OURS = "SELECT datname FROM pg_database WHERE datname LIKE 'pgratchet\\_test\\_%'"
NOBODY = "postgresql://nobody@127.0.0.1:1/nowhere"


class Outcome(NamedTuple):
    """How a run of pytest ended: its exit code, what its tests came to by name, and all that it said."""

    code: int
    tests: Mapping[str, str]
    text: str


class Project:
    """A project with tests of its own."""

    def __init__(self, folder: Path, server: str) -> None:
        self.folder = folder
        self.server = server
        self.write({"pytest.ini": INI})

    def write(self, files: Mapping[str, str | bytes]) -> None:
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "DATABASE_URL": self.server, **variables}
        return subprocess.Popen(
            [*PYTEST, *arguments],
            cwd=self.folder,
            env={name: value for name, value in environment.items() if value},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def test(self, *arguments: str, **variables: str) -> Outcome:
        """Run pytest there, on the server of these tests where the variables say nothing else."""
        process = self.start(*arguments, **variables)
        text, _ = process.communicate(timeout=120)
        found = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) \S+?::(\S+)", text, re.MULTILINE)
        return Outcome(process.returncode, {name: result.lower() for result, name in found}, text)


@pytest.fixture
def project(tmp_path: Path, maintenance_dsn: str) -> Project:
    return Project(tmp_path, maintenance_dsn)


async def leftovers(project: Project, outcome: Outcome | None = None) -> list[str]:
    """Return the databases that are still there, of those that the run has named."""
    there = await column(project.server, OURS)
    return [name for name in there if outcome is None or name in outcome.text]


def patiently(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.anyio
async def test_each_test_has_a_migrated_database_of_its_own(project: Project) -> None:
    tests = """
@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.parametrize("number", [1, 2])
def test_sync(pgratchet_dsn, number):
    print(pgratchet_dsn)
    sql(pgratchet_dsn, "INSERT INTO users VALUES ('a')")

@pytest.mark.anyio
async def test_async(pgratchet_dsn):
    connection = await asyncpg.connect(pgratchet_dsn)
    assert await connection.fetchval("SELECT count(*) FROM users") == 0
    await connection.close()

@pytest.mark.anyio
async def test_asked_for_in_a_running_loop(request):
    connection = await asyncpg.connect(request.getfixturevalue("pgratchet_empty_dsn"))
    assert await connection.fetchval("SELECT to_regclass('users')") is None
    await connection.close()

def test_whoever_is_still_connected(pgratchet_dsn):
    global kept
    print(pgratchet_dsn)
    runner = asyncio.Runner()
    kept = runner, runner.run(asyncpg.connect(pgratchet_dsn))

def test_the_connection_was_cut():
    runner, connection = kept
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        runner.run(connection.execute("SELECT 1"))
    runner.close()
"""
    project.write({**USERS, "test_them.py": HELPERS + tests})

    outcome = project.test()

    assert set(outcome.tests.values()) == {"passed"}, outcome.text
    assert len(outcome.tests) == 6
    assert "pgratchet_test_" in outcome.text
    assert await leftovers(project, outcome) == []


def test_tests_and_fixtures_of_pytest_asyncio_have_databases_beside_those_of_anyio(project: Project) -> None:
    if find_spec("pytest_asyncio") is None:
        missing("pytest-asyncio is not installed")
    tests = """
import pytest_asyncio

@pytest_asyncio.fixture
async def connection(pgratchet_dsn):
    connection = await asyncpg.connect(pgratchet_dsn)
    yield connection
    await connection.close()

@pytest.mark.asyncio
@pytest.mark.parametrize("number", [1, 2])
async def test_asyncio(connection, number):
    await connection.execute("INSERT INTO users VALUES ('a')")

@pytest.mark.asyncio
async def test_asked_for_in_a_running_loop(request):
    connection = await asyncpg.connect(request.getfixturevalue("pgratchet_empty_dsn"))
    assert await connection.fetchval("SELECT to_regclass('users')") is None
    await connection.close()

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_anyio(pgratchet_dsn):
    connection = await asyncpg.connect(pgratchet_dsn)
    assert await connection.fetchval("SELECT count(*) FROM users") == 0
    await connection.close()
"""
    project.write({**USERS, "test_them.py": HELPERS + tests})

    outcome = project.test("-pasyncio", "-oasyncio_default_fixture_loop_scope=function")

    assert set(outcome.tests.values()) == {"passed"}, outcome.text
    assert len(outcome.tests) == 4


def test_a_run_that_does_not_use_it_starts_and_imports_nothing(project: Project) -> None:
    tests = """
import sys

def test_nothing():
    assert [name for name in sys.modules if name.partition(".")[0] in ("pgratchet", "asyncpg")] == []
    assert "pgratchet_pytest" in sys.modules
"""
    project.write({"test_nothing.py": tests})

    assert project.test(DATABASE_URL=NOBODY).tests == {"test_nothing": "passed"}


def test_the_entry_point_leads_to_the_plugin() -> None:
    (plugin,) = entry_points(group="pytest11", name="pgratchet")

    assert plugin.load().pytest_addoption


def test_a_private_server_is_started_if_there_is_none_and_is_gone_afterwards(project: Project) -> None:
    tests = """
def test_private(pgratchet_server, pgratchet_dsn):
    assert sql(pgratchet_server, "SHOW listen_addresses") == ""
    folder = sql(pgratchet_server, "SHOW data_directory")
    assert os.path.isdir(folder)
    with open("folder", "w") as file:
        file.write(folder)
"""
    project.write({**USERS, "test_them.py": HELPERS + tests})

    outcome = project.test(DATABASE_URL="")

    assert outcome.tests == {"test_private": "passed"}, outcome.text
    assert not Path((project.folder / "folder").read_text()).exists()


def test_options_say_which_server_and_which_folder(project: Project) -> None:
    options = f"pgratchet_server = {project.server}\npgratchet_migrations = db/changes\n"
    project.write(
        {
            "pytest.ini": INI + options,
            "db/changes/1_a.sql": "CREATE TABLE a ();",
            "test_them.py": HELPERS + "def test_a(pgratchet_dsn): sql(pgratchet_dsn, 'SELECT 1 FROM a')",
        }
    )

    assert project.test(DATABASE_URL=NOBODY).tests == {"test_a": "passed"}


def test_each_worker_of_xdist_has_a_template_of_its_own(project: Project) -> None:
    tests = """
@pytest.mark.parametrize("number", range(6))
def test_one(pgratchet_template, pgratchet_dsn, number):
    with open("templates", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + " " + pgratchet_template + "\\n")
    sql(pgratchet_dsn, "INSERT INTO users VALUES ('a')")
"""
    project.write({**USERS, "test_them.py": HELPERS + tests})

    outcome = project.test("-n", "2")

    assert set(outcome.tests.values()) == {"passed"}, outcome.text
    assert len(outcome.tests) == 6
    told = {tuple(line.split()) for line in (project.folder / "templates").read_text().splitlines()}
    assert len(told) == len({worker for worker, _ in told}) == len({template for _, template in told}) == 2


def test_a_project_can_make_the_migrator_and_fill_the_template(project: Project) -> None:
    fixtures = """
from pgratchet import Migrator

@pytest.fixture(scope="session")
def pgratchet_migrator(pgratchet_migrations):
    return lambda dsn: Migrator(dsn, pgratchet_migrations, table="ops.history", readers=["pg_monitor"])

@pytest.fixture(scope="session")
def pgratchet_template(pgratchet_template):
    sql(pgratchet_template, "INSERT INTO users VALUES ('root')")
    return pgratchet_template
"""
    tests = """
def test_it(pgratchet_dsn):
    assert sql(pgratchet_dsn, "SELECT count(*) FROM ops.history") == 1
    assert sql(pgratchet_dsn, "SELECT email FROM users") == "root"
"""
    project.write({**USERS, **CHECKS, "conftest.py": HELPERS + fixtures, "test_them.py": HELPERS + tests})

    outcome = project.test()

    assert outcome.tests == {"test_it": "passed", APPLIES: "passed", UNDOES: "passed"}, outcome.text


@pytest.mark.anyio
@pytest.mark.parametrize("option", ["connect=elsewhere", "dsn, direct_dsn=OTHER"])
async def test_a_migrator_that_leads_elsewhere_is_refused_and_nothing_is_done_there(
    project: Project, dsn: str, option: str
) -> None:
    fixtures = f"""
from pgratchet import Migrator
OTHER = {dsn!r}

async def elsewhere():
    return await asyncpg.connect(OTHER, statement_cache_size=0)

@pytest.fixture(scope="session")
def pgratchet_migrator(pgratchet_migrations):
    return lambda dsn: Migrator({option}, migrations=pgratchet_migrations)
"""
    project.write(
        {**USERS, **CHECKS, "conftest.py": HELPERS + fixtures, "test_them.py": "def test_it(pgratchet_dsn): pass"}
    )
    await Migrator(dsn, project.folder / "migrations" / "versions").up()
    await tell(dsn, "INSERT INTO users VALUES ('somebody')")

    outcome = project.test()

    assert outcome.tests == {"test_it": "error", APPLIES: "failed", UNDOES: "failed"}, outcome.text
    assert outcome.text.count("let it use the DSN that it is given") >= 3
    assert await column(dsn, "SELECT email FROM users") == ["somebody"]


@pytest.mark.anyio
async def test_databases_that_a_killed_run_has_left_do_no_harm_and_are_swept_up_days_later(project: Project) -> None:
    tests = """
import time

def test_that_hangs(pgratchet_dsn):
    with open("name.part", "w") as file:
        file.write(pgratchet_dsn.rpartition("/")[2].partition("?")[0])
    os.rename("name.part", "name")
    time.sleep(100)
"""
    project.write({**USERS, "test_them.py": HELPERS + tests})
    with project.start() as process:
        patiently((project.folder / "name").exists)
        process.send_signal(signal.SIGKILL)
    left = (project.folder / "name").read_text()
    old, used = (left.replace(left[15:23], day) for day in ("20200101", "20200102"))
    await tell(project.server, f"ALTER DATABASE {left} RENAME TO {old}")
    await tell(project.server, f"CREATE DATABASE {used}")
    project.write({"test_them.py": HELPERS + "def test_next(pgratchet_dsn): pass"})

    async with connected(Databases(project.server).dsn_of(used)):
        assert project.test().tests == {"test_next": "passed"}
        there = await leftovers(project)

    assert old not in there
    assert used in there
    template = left.rpartition("_")[0] + "_1"
    assert template in there
    for name in (used, template):
        await tell(project.server, f"DROP DATABASE {name}")


@contextmanager
def server_as(project: Project, role: str, *options: str) -> Iterator[str]:
    """Yield the server's DSN for a role that is dropped afterwards."""
    name = f"{role}_{os.getpid()}"
    run(partial(tell, project.server, f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}' {' '.join(options)}"))
    try:
        yield f"postgresql://{name}:{PASSWORD}@{project.server.rpartition('@')[2]}"
    finally:
        run(partial(tell, project.server, f"DROP ROLE {name}"))


def test_a_role_that_may_make_no_database_is_told_so(project: Project) -> None:
    project.write({"test_them.py": "def test_it(pgratchet_empty_dsn): pass"})

    with server_as(project, "plain") as dsn:
        outcome = project.test(DATABASE_URL=dsn)

    assert outcome.tests == {"test_it": "error"}
    assert "ALTER ROLE ... CREATEDB" in outcome.text


def test_a_database_whose_user_cannot_be_ended_is_left_to_a_later_run(project: Project) -> None:
    tests = """
def test_superuser(pgratchet_empty_dsn):
    global kept
    name = pgratchet_empty_dsn.rpartition("/")[2]
    runner = asyncio.Runner()
    kept = runner, runner.run(asyncpg.connect(os.environ["SUPERUSER"], database=name.partition("?")[0]))

def test_end():
    runner, connection = kept
    print(runner.run(connection.fetchval("SELECT current_database()")))
    connection.terminate()
    runner.close()
"""
    project.write({"test_them.py": HELPERS + tests})

    with server_as(project, "tester", "CREATEDB") as dsn:
        outcome = project.test(DATABASE_URL=dsn, SUPERUSER=project.server)
        left = run(partial(leftovers, project, outcome))
        for name in left:
            run(partial(tell, project.server, f"DROP DATABASE {name} WITH (FORCE)"))

    assert outcome.tests == {"test_superuser": "passed", "test_end": "passed"}, outcome.text
    assert len(left) == 1


class TestUpAndDown:
    def test_checks_pass_on_good_migrations_of_every_kind(self, project: Project) -> None:
        more = {
            "002_note.sql": "ALTER TABLE users ADD COLUMN note text, ADD COLUMN last text;",
            "003_index.sql": "CREATE INDEX CONCURRENTLY users_note ON users (note);",
            "003_index.down.sql": "DROP INDEX CONCURRENTLY users_note;",
            "004_without_note.sql": "ALTER TABLE users DROP COLUMN note;",
            "004_without_note.down.sql": (
                "ALTER TABLE users ADD COLUMN note text; CREATE INDEX users_note ON users (note);"
            ),
            "005_python.py": (
                "async def up(c):\n    await c.execute('CREATE TABLE p ()')\n\n"
                "async def down(c):\n    await c.execute('DROP TABLE p')\n"
            ),
            "006_python_without_a_way_back.py": "async def up(c):\n    await c.execute('CREATE TABLE q ()')\n",
        }
        project.write({**USERS, **CHECKS, **{f"migrations/versions/{name}": text for name, text in more.items()}})

        outcome = project.test()

        assert outcome.tests == {APPLIES: "passed", UNDOES: "passed"}, outcome.text

    def test_downs_that_forget_something_or_fail_are_all_reported(self, project: Project) -> None:
        more = {
            "002_note.sql": "ALTER TABLE users ADD COLUMN note text, ADD COLUMN age int;",
            "002_note.down.sql": "ALTER TABLE users DROP COLUMN age;",
            "003_view.sql": "CREATE VIEW notes AS SELECT note FROM users;",
            "003_view.down.sql": "DROP VIEW note;",
            "004_good.sql": "CREATE TABLE good ();",
            "004_good.down.sql": "DROP TABLE good;",
        }
        project.write({**USERS, **CHECKS, **{f"migrations/versions/{name}": text for name, text in more.items()}})

        outcome = project.test()

        assert outcome.tests == {APPLIES: "passed", UNDOES: "failed"}
        assert "002_note.down.sql: down 2 note leaves another schema than its up found" in outcome.text
        assert re.search(r"users; Type: TABLE;.*\n.*\n +\+ +note text\n", outcome.text), outcome.text
        assert re.search(r'003_view.down.sql:1:1: down 3 failed: view "note" does not exist', outcome.text)
        assert "004_good" not in outcome.text
        assert "Traceback" not in outcome.text
        assert "schema_migrations" not in outcome.text

    def test_a_way_down_that_no_run_would_take_is_reported(self, project: Project) -> None:
        downs = {
            "002_assigned.py": "down = up",
            "003_annotated.py": "down: object = up",
            "004_imported.py": "from asyncio import sleep as down",
            "005_plain.py": "def down(connection): pass",
            "006_used_elsewhere.py": "def other(down): return down",
        }
        up = "async def up(connection): pass\n"
        project.write({f"migrations/versions/{name}": up + down for name, down in downs.items()})
        project.write({**USERS, **CHECKS})

        outcome = project.test()

        assert outcome.tests == {APPLIES: "passed", UNDOES: "failed"}, outcome.text
        reported = re.findall(r"versions/(\S+\.py).*; write 'async def down\(connection\)'", outcome.text)
        assert set(reported) == downs.keys() - {"006_used_elsewhere.py"}, outcome.text

    def test_a_migration_that_does_not_apply_is_named_with_its_line(self, project: Project) -> None:
        project.write({**USERS, **CHECKS, "migrations/versions/002_bad.sql": "SELECT 1;\nCREATE TABLE users ();"})
        project.write({"test_other.py": "def test_other(pgratchet_dsn): pass"})

        outcome = project.test()

        assert outcome.tests == {APPLIES: "failed", UNDOES: "failed", "test_other": "error"}
        assert re.search(r'002_bad.sql:2:\d+: up 2 failed: relation "users" already exists \(42P07\)', outcome.text)
        assert "statement: 2" in outcome.text

    def test_a_folder_that_is_not_there_fails(self, project: Project) -> None:
        project.write(CHECKS)

        outcome = project.test()

        assert outcome.tests == {APPLIES: "failed", UNDOES: "failed"}
        assert "cannot read" in outcome.text

    @pytest.mark.parametrize("there", [True, False])
    def test_a_pg_dump_older_than_the_server_or_none_fails_with_the_cure(self, project: Project, there: bool) -> None:  # noqa: FBT001 - a case
        project.write({"bin/pg_dump": "#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.1'\n"} if there else {})
        folder = project.folder / "bin"
        folder.mkdir(exist_ok=True)
        if there:
            (folder / "pg_dump").chmod(0o755)
        # The machine's own are out of sight.
        project.write({"conftest.py": "from pgratchet import embedded\n\nembedded.candidates = lambda: ()\n"})
        project.write({**USERS, **CHECKS})

        outcome = project.test("-k", UNDOES, PGRATCHET_POSTGRES_BIN="", PATH=str(folder))

        assert outcome.tests == {UNDOES: "failed"}
        assert "needs a pg_dump that is as new" in outcome.text
        assert ("bin/pg_dump is 9" in outcome.text) is there
        assert "name the folder that has pg_dump in PGRATCHET_POSTGRES_BIN" in outcome.text


def test_the_pages_examples_pass(project: Project) -> None:
    project.write({block.path: block.content for block in blocks("docs/testing.md") if block.path})
    (project.folder / "pytest.ini").unlink()

    outcome = project.test(
        "-rA", "-Werror", "--deselect=tests/test_migrations.py::test_no_released_migration_was_edited"
    )

    assert set(outcome.tests.values()) == {"passed"}, outcome.text
    assert len(outcome.tests) == 5


def test_the_page_shows_how_the_server_gets_a_port(project: Project) -> None:
    (fixture,) = (block.text for block in blocks("docs/testing.md", "python") if "tcp=True" in block.text)
    tests = """
def test_it(pgratchet_server, pgratchet_empty_dsn):
    assert pgratchet_server.rpartition("@")[2].startswith("127.0.0.1:")
    assert sql(pgratchet_empty_dsn, "SELECT inet_server_port()")
"""
    project.write({"conftest.py": fixture, "test_them.py": HELPERS + tests})

    assert project.test().tests == {"test_it": "passed"}


def test_an_interrupt_cancels_what_is_under_way() -> None:
    ended = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await anyio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        run(work)

    assert ended


def test_files_are_compared_with_what_is_released(project: Project) -> None:
    project.write(
        {
            **USERS,
            "test_them.py": "from pgratchet.testing import test_no_released_migration_was_edited as test_released\n",
        }
    )
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=first"]):
        settings = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", *settings, *arguments], cwd=project.folder, check=True)

    unknown = project.test(DATABASE_URL=NOBODY)

    assert unknown.tests == {"test_released": "failed"}
    assert unknown.text.count("\nthis checkout has no origin/main to compare with") == 1
    assert "Traceback" not in unknown.text

    option = ("-o", "pgratchet_released=HEAD")
    assert project.test(*option, DATABASE_URL=NOBODY).tests == {"test_released": "passed"}

    project.write({"migrations/versions/001_users.sql": "CREATE TABLE users ();"})
    edited = project.test(*option, DATABASE_URL=NOBODY)

    assert edited.tests == {"test_released": "failed"}
    assert "001_users.sql: version 1 was edited after its release (in HEAD); restore the file" in edited.text
