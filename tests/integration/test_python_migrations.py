import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import asyncpg
import pytest

from pgratchet import FilesError, HistoryError, MigrationFailedError, Migrator
from tests.conftest import writing
from tests.support import Connection, Write, ask, column, deserted, exists, failure_of, history, states, tell, until

pytestmark = pytest.mark.anyio


def python(body: str, down: str = "pass") -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"async def up(connection):\n{lines}\n\n\nasync def down(connection):\n    {down}\n"


async def test_a_python_migration_runs_in_the_transaction_of_its_record(dsn: str, write: Write) -> None:
    body = "await connection.execute('CREATE TABLE seen AS SELECT pg_current_xact_id()::xid AS id')"
    (finished,) = await Migrator(dsn, write({"001_a.py": python(body)})).up()
    assert (finished.version, finished.statements) == ("1", 1)
    assert await ask(dsn, "SELECT id = (SELECT xmin FROM schema_migrations) FROM seen")


async def test_a_python_migration_may_use_all_of_asyncpg(dsn: str, write: Write) -> None:
    body = """
await connection.execute("CREATE TABLE t (n int, s text)")
await connection.copy_records_to_table("t", records=[(n, str(n)) for n in range(100)])
await connection.executemany("UPDATE t SET s = $2 WHERE n = $1", [(n, "x") for n in range(50)])
statement = await connection.prepare("SELECT count(*) FROM t WHERE s = $1")
assert await statement.fetchval("x") == 50
async for row in connection.cursor("SELECT n FROM t ORDER BY n LIMIT 3"):
    assert row["n"] < 3
await connection.set_type_codec("json", schema="pg_catalog", encoder=str, decoder=str)
"""
    await Migrator(dsn, write({"001_a.py": python(body), "002_b.sql": "SELECT 1;"})).up()
    assert await ask(dsn, "SELECT count(*) FROM t") == 100


async def test_a_python_migration_nests_transactions_as_savepoints(dsn: str, write: Write) -> None:
    body = """
async with connection.transaction():
    await connection.execute("CREATE TABLE kept ()")
try:
    async with connection.transaction():
        await connection.execute("CREATE TABLE lost ()")
        async with connection.transaction():
            raise KeyError
except KeyError:
    pass
transaction = connection.transaction()
await transaction.start()
await connection.execute("CREATE TABLE lost ()")
await transaction.rollback()
"""
    await Migrator(dsn, write({"001_a.py": python(body)})).up()
    assert await exists(dsn, "kept")
    assert not await exists(dsn, "lost")
    assert await states(dsn) == {"1": "applied"}


async def test_a_python_migration_goes_down_as_well(dsn: str, write: Write) -> None:
    code = python("await connection.execute('CREATE TABLE a ()')", "await connection.execute('DROP TABLE a')")
    migrator = Migrator(dsn, write({"001_a.py": code}))
    await migrator.up()
    assert [(step.version, step.direction) for step in await migrator.down()] == [("1", "down")]
    assert not await exists(dsn, "a")
    assert await states(dsn) == {}
    await migrator.up()
    await migrator.redo()


ERRORS = {
    "an exception": ("raise ValueError('no such luck')", "ValueError", None, 5),
    "an error of the operating system": ("open('/nowhere/at/all')", "FileNotFoundError", None, 5),
    "a timeout": ("raise TimeoutError('too slow')", "TimeoutError", None, 5),
    "a refused connection": ("raise ConnectionRefusedError('elsewhere')", "ConnectionRefusedError", None, 5),
    "a query's error": ("await connection.fetchval('SELECT 1/0')", "division", "22012", 5),
    "a helper's error": ("helper(connection)", "helper", None, 2),
    "an aborted transaction": (
        "try:\n    await connection.execute('SELECT nope')\nexcept Exception: pass",
        "aborted",
        "25P02",
        None,
    ),
    "an assertion": ("assert False, 'never'", "never", None, 5),
    "misuse of the driver": ("await connection.fetch('SELECT $1::int', 'x')", "invalid input", "22000", 5),
}


@pytest.mark.parametrize("case", ERRORS.values(), ids=ERRORS.keys())
async def test_a_python_migration_that_fails_says_where_and_is_rolled_back(
    dsn: str, write: Write, case: tuple[str, str, str | None, int | None]
) -> None:
    body, word, sqlstate, line = case
    code = "def helper(_):\n    raise RuntimeError('helper')\n"
    code += python(f"await connection.execute('CREATE TABLE a ()')\n{body}")
    folder = write({"001_a.py": code, "002_b.sql": "CREATE TABLE b ();"})
    error = await failure_of(Migrator(dsn, folder, budget=1))
    failure = error.failure
    assert word in failure.message
    assert (failure.sqlstate, failure.path) == (sqlstate, str(folder / "001_a.py"))
    assert line in {None, failure.line}
    assert not await exists(dsn, "a")
    assert not await exists(dsn, "b")
    assert await states(dsn) == {"1": "failed"}
    assert word in (await history(dsn))["1"]["error"]
    write({"001_a.py": python("pass")})
    assert len(await Migrator(dsn, folder).up()) == 2


GROUPS = {
    "a failed task of asyncio": ("group.create_task(child())", 9),
    "a failed task beside a body that sleeps": ("group.create_task(child())\n    await asyncio.sleep(60)", 9),
    "a failed task beside a query": (
        "group.create_task(child())\n    await connection.execute('SELECT pg_sleep(60)')",
        9,
    ),
    "a failed body": ("raise LookupError('the reason')", 14),
}


@pytest.mark.parametrize(("body", "line"), GROUPS.values(), ids=GROUPS.keys())
async def test_a_task_group_that_fails_in_a_python_migration_is_a_failed_migration_with_the_reason(
    dsn: str, write: Write, body: str, line: int
) -> None:
    code = f"""
import asyncio


async def child():
    try:
        await asyncio.sleep(0.05)
    finally:
        raise LookupError('the reason')


async def up(connection):
    async with asyncio.TaskGroup() as group:
        {body.replace("    ", "        ")}


async def down(connection): ...
"""
    folder = write({"001_a.py": code})
    with anyio.fail_after(10):
        failure = (await failure_of(Migrator(dsn, folder))).failure
    assert (failure.message, failure.line) == ("LookupError: the reason", line)
    assert (await history(dsn))["1"]["error"] == f"LookupError: the reason, line {line}"
    write({"001_a.py": python("pass")})
    await Migrator(dsn, folder).up()


CANCELLED = {
    "one that is raised": "raise asyncio.CancelledError('the reason')",
    "one that is awaited": "task = asyncio.ensure_future(asyncio.sleep(60))\ntask.cancel('the reason')\nawait task",
    "one of its own task": "asyncio.current_task().cancel('the reason')\nawait asyncio.sleep(60)",
    "one in a query": "asyncio.current_task().cancel('the reason')\nawait connection.execute('SELECT pg_sleep(60)')",
    "one in a group": "raise BaseExceptionGroup('x', [asyncio.CancelledError('the reason')])",
}


@pytest.mark.parametrize("body", CANCELLED.values(), ids=CANCELLED.keys())
async def test_a_cancellation_of_a_python_migration_by_itself_is_a_failed_migration(
    dsn: str, write: Write, body: str
) -> None:
    folder = write({"001_a.py": python(f"import asyncio\n{body}")})
    with anyio.fail_after(10):
        failure = (await failure_of(Migrator(dsn, folder))).failure
    assert failure.message == "CancelledError: the reason"
    assert failure.hint
    assert "nobody has cancelled the run" in failure.hint
    assert (await history(dsn))["1"]["error"].startswith("CancelledError: the reason, line")
    with pytest.raises(MigrationFailedError):
        await Migrator(dsn, folder).rehearse()
    write({"001_a.py": python("pass")})
    await Migrator(dsn, folder).up()


async def test_a_cancellation_at_the_top_level_of_a_python_migration_is_a_failed_migration(
    dsn: str, write: Write
) -> None:
    folder = write({"001_a.py": "import asyncio\nraise asyncio.CancelledError('x')\nasync def up(connection): pass\n"})
    failure = (await failure_of(Migrator(dsn, folder))).failure
    assert (failure.message, failure.line) == ("CancelledError: x", 2)
    write({"001_a.py": python("pass")})
    await Migrator(dsn, folder).up()


async def test_a_python_migration_goes_on_after_failures_and_timeouts_that_it_handles(dsn: str, write: Write) -> None:
    body = """
import asyncio
import contextlib
async def child():
    raise LookupError
try:
    async with asyncio.TaskGroup() as group:
        group.create_task(child())
        await asyncio.sleep(60)
except* LookupError:
    pass
with contextlib.suppress(TimeoutError):
    async with asyncio.timeout(0.01):
        await asyncio.sleep(60)
"""
    with anyio.fail_after(10):
        await Migrator(dsn, write({"001_a.py": python(f"{body}\nasyncio.current_task().cancel()")})).up()
    assert await states(dsn) == {"1": "applied"}


INSIDE = {
    "the only one in a group": (
        "raise ExceptionGroup('x', [ExceptionGroup('y', [await thrown(connection)])])",
        "division by zero",
        "22012",
        "division by zero (22012)",
    ),
    "several in a group": (
        "both = ValueError('of a ' + 'row'), KeyError()\nraise ExceptionGroup('x', [await thrown(connection), *both])",
        "ExceptionGroup: x (3 sub-exceptions): division by zero (22012); ValueError: of a row; KeyError",
        None,
        "ExceptionGroup: x: division by zero (22012); ValueError; KeyError",
    ),
    "one that has a cause": (
        "raise RuntimeError('cannot fill it') from await thrown(connection)",
        "RuntimeError: cannot fill it: division by zero (22012)",
        None,
        "RuntimeError: cannot fill it: division by zero (22012)",
    ),
    "one that is its own cause": (
        "error = RuntimeError('x')\nraise error from error",
        "RuntimeError: x",
        None,
        "RuntimeError: x",
    ),
    "an exit in a group": (
        "raise BaseExceptionGroup('x', [SystemExit(3), GeneratorExit()])",
        "BaseExceptionGroup: x (2 sub-exceptions): SystemExit: 3; GeneratorExit",
        None,
        "BaseExceptionGroup: x: SystemExit; GeneratorExit",
    ),
}


@pytest.mark.parametrize("case", INSIDE.values(), ids=INSIDE.keys())
async def test_errors_inside_of_the_error_of_a_python_migration_are_told(
    dsn: str, write: Write, case: tuple[str, str, str | None, str]
) -> None:
    body, message, sqlstate, kept = case
    head = """async def thrown(connection):
    try:
        async with connection.transaction():
            await connection.execute('SELECT 1/0')
    except Exception as error:
        return error
"""
    folder = write({"001_a.py": head + python(body)})
    error = await failure_of(Migrator(dsn, folder))
    assert (error.failure.message, error.failure.sqlstate) == (message, sqlstate)
    assert message in str(error)
    line = error.failure.line
    assert line is not None
    assert (await history(dsn))["1"]["error"] == f"{kept}, line {line}"
    write({"001_a.py": python("pass")})
    await Migrator(dsn, folder).up()


@pytest.mark.parametrize("word", ["sys.exit(3)", "exit()"])
async def test_a_python_migration_that_exits_fails_without_ending_the_process(
    dsn: str, write: Write, word: str
) -> None:
    folder = write({"001_a.py": "import sys\n" + python(word)})
    failure = (await failure_of(Migrator(dsn, folder))).failure
    assert failure.message.startswith("SystemExit")
    assert await states(dsn) == {"1": "failed"}
    write({"001_a.py": python("pass")})
    await Migrator(dsn, folder).up()


@pytest.mark.parametrize("code", ["import nonexistent_module_of_ours\n", "1/0\n"])
async def test_a_python_migration_whose_top_level_fails_is_a_failed_migration(
    dsn: str, write: Write, code: str
) -> None:
    folder = write({"001_a.py": code + "async def up(connection): pass\n"})
    failure = (await failure_of(Migrator(dsn, folder))).failure
    assert failure.line == 1
    write({"001_a.py": python("pass")})
    await Migrator(dsn, folder).up()


@pytest.mark.parametrize(
    "code", ["def up(connection): pass\n", "async def upp(connection): pass\n", "async def up(:\n"]
)
async def test_a_python_migration_that_cannot_be_run_is_refused_before_anything_runs(
    dsn: str, write: Write, code: str
) -> None:
    with pytest.raises(FilesError):
        await Migrator(dsn, write({"001_a.sql": "CREATE TABLE a ();", "002_b.py": code})).up()
    assert not await exists(dsn, "a")


async def test_a_python_migration_that_commits_by_itself_is_noticed(dsn: str, write: Write) -> None:
    folder = write({"001_a.py": python("await connection.execute('CREATE TABLE a (); COMMIT')")})
    await failure_of(Migrator(dsn, folder))
    assert await states(dsn) == {"1": "running"}
    with pytest.raises(HistoryError):
        await Migrator(dsn, folder).up()


@pytest.mark.parametrize("call", ["close()", "terminate()"])
async def test_a_python_migration_that_closes_the_connection_fails_in_the_end(
    dsn: str, write: Write, call: str
) -> None:
    body = f"r = connection.{call}\nif r: await r"
    folder = write({"001_a.py": python(body)})
    with anyio.fail_after(10), pytest.raises(Exception, match=r".+"):
        await Migrator(dsn, folder, budget=0.5).up()
    assert await ask(dsn, "SELECT count(*) FROM schema_migrations WHERE state = 'applied'") == 0
    write({"001_a.py": python("pass")})
    await Migrator(dsn, folder).up()


async def test_a_cancelled_python_migration_leaves_nothing_behind(dsn: str, write: Write) -> None:
    body = "await connection.execute('CREATE TABLE a ()')\nawait connection.execute('SELECT pg_sleep(60)')"
    folder = write({"001_a.py": python(body)})
    sleeping = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Migrator(dsn, folder).up)

            async def asleep() -> bool:
                return bool(await column(dsn, sleeping))

            await until(asleep)
            tasks.cancel_scope.cancel()
    await deserted(dsn, 2)
    assert not await exists(dsn, "a")
    write({"001_a.py": python("pass")})
    await Migrator(dsn, folder).up()


async def test_a_python_migration_is_tried_again_after_a_temporary_error_in_a_group(dsn: str, write: Write) -> None:
    await tell(dsn, "CREATE SEQUENCE tries")
    sql = "DO $$BEGIN IF nextval('tries') < 3 THEN RAISE 'x' USING ERRCODE = '40001'; END IF; END$$"
    body = f"""import asyncio
async with asyncio.TaskGroup() as group:
    group.create_task(connection.execute({sql!r}))"""
    await Migrator(dsn, write({"001_a.py": python(body)})).up()
    assert await ask(dsn, "SELECT last_value FROM tries") == 3


@pytest.mark.parametrize("code", ["40001", "40P01", "55P03"])
async def test_a_python_migration_is_tried_again_after_a_temporary_error(dsn: str, write: Write, code: str) -> None:
    await tell(dsn, "CREATE SEQUENCE tries")
    sql = f"DO $$BEGIN IF nextval('tries') < 3 THEN RAISE 'x' USING ERRCODE = '{code}'; END IF; END$$"
    await Migrator(dsn, write({"001_a.py": python(f'await connection.execute("""{sql}""")')})).up()
    assert await ask(dsn, "SELECT last_value FROM tries") == 3


async def test_a_python_migration_hears_notices_and_leaves_no_listeners(dsn: str, write: Write) -> None:
    body = "connection.add_log_listener(print)\nawait connection.add_listener('x', print)"
    await Migrator(dsn, write({"001_a.py": python(body), "002_b.sql": "DO $$BEGIN RAISE NOTICE 'x'; END$$"})).up()
    assert await states(dsn) == {"1": "applied", "2": "applied"}


SET_CODECS = """
import json
await connection.execute("CREATE TYPE pair AS (a int, b int)")
await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
await connection.set_type_codec(typename="timestamptz", schema="pg_catalog", encoder=str, decoder=str, format="text")
await connection.set_type_codec("pair", encoder=tuple, decoder=list, format="tuple")
await connection.set_builtin_type_codec("json", schema="pg_catalog", codec_name="text")
assert await connection.fetchval("SELECT '[1]'::jsonb") == [1]
"""
SEES_NO_CODECS = "assert await connection.fetchval(\"SELECT '[1]'::jsonb\") == '[1]'"


class TestWhatOneSetsInItsConnection:
    async def test_settings_of_a_connection_are_gone_for_the_next_python_migration(
        self, dsn: str, write: Write
    ) -> None:
        files = {"001_a.py": python(SET_CODECS), "002_b.py": python(SEES_NO_CODECS)}
        migrator = Migrator(dsn, write(files | {"003_c.sql": "SELECT 1;", "004_d.sql": "SELECT 2;"}))
        await migrator.rehearse()
        report = await migrator.up()
        assert [step.version for step in report if step.seconds is not None] == ["1", "2", "3", "4"]

    async def test_settings_of_a_connection_are_gone_when_a_python_migration_is_tried_again(
        self, dsn: str, write: Write
    ) -> None:
        await tell(dsn, "CREATE SEQUENCE tries")
        sql = "DO $$BEGIN IF nextval('tries') < 3 THEN RAISE 'x' USING ERRCODE = '40001'; END IF; END$$"
        body = f'{SEES_NO_CODECS}\n{SET_CODECS}\nawait connection.execute("""{sql}""")'
        await Migrator(dsn, write({"001_a.py": python(body)})).up()
        assert await states(dsn) == {"1": "applied"}

    async def test_a_python_migration_may_set_a_codec_of_a_type_that_it_drops(self, dsn: str, write: Write) -> None:
        body = f"{SET_CODECS}\nawait connection.execute('DROP TYPE pair')"
        await Migrator(dsn, write({"001_a.py": python(body), "002_b.py": python(SEES_NO_CODECS)})).up()
        assert await states(dsn) == {"1": "applied", "2": "applied"}

    async def test_listeners_of_a_python_migration_end_with_it(
        self, dsn: str, write: Write, capsys: pytest.CaptureFixture[str]
    ) -> None:
        body = """
connection.add_log_listener(print)
connection.add_query_logger(print)
connection.add_termination_listener(lambda _: print("later"))
await connection.add_listener("news", callback=print)
"""
        later = "await connection.execute(\"NOTIFY news, 'later'; DO $$BEGIN RAISE NOTICE 'later'; END$$\")"
        await Migrator(dsn, write({"001_a.py": python(body), "002_b.py": python(later)})).up()
        assert "later" not in capsys.readouterr().out


LIKE_IMPORTED = """from __future__ import annotations

import importlib.resources
import inspect
import pickle
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

from . import _more
from ._helpers import create
from ._more import VALUE as value


@dataclass
class Row:
    number: int


async def up(connection):
    from ._late import LATE

    module = sys.modules[__name__]
    assert module.__dict__ is globals()
    assert pickle.loads(pickle.dumps(Row(value))) == Row(_more.VALUE) == Row(LATE)
    assert typing.get_type_hints(Row) == {"number": int}
    assert (__spec__.name, __spec__.parent, __spec__.origin) == (__name__, __package__, __file__)
    assert "number: int" in inspect.getsource(Row)
    assert (importlib.resources.files(__package__) / "_helpers.py").read_text() == __text__("_helpers.py")
    await create(connection, f"t_{Path(__file__).stem}")
    await connection.execute("SELECT pg_sleep(0.05)")


async def down(connection):
    await connection.execute(f"DROP TABLE t_{Path(__file__).stem}")


def __text__(name):
    return Path(__file__).with_name(name).read_text()
"""
HELPERS = {
    "_helpers.py": "async def create(connection, name): await connection.execute(f'CREATE TABLE {name} ()')\n",
    "_more.py": "VALUE = 1\n",
    "_late.py": "from ._more import VALUE as LATE\n",
}


class TestTheModuleOfAMigration:
    @pytest.fixture(autouse=True)
    def nothing_stays(self) -> Iterator[None]:
        before = set(sys.modules)
        yield
        assert not [name for name in set(sys.modules) - before if "migrations" in name or "_helpers" in name]

    async def test_a_python_migration_is_like_an_imported_module(self, dsn: str, write: Write) -> None:
        migrator = Migrator(dsn, write({"001_a.py": LIKE_IMPORTED, "002_b.py": LIKE_IMPORTED, **HELPERS}))
        await migrator.rehearse()
        assert len(await migrator.up()) == 2
        await migrator.redo()
        assert await exists(dsn, "t_001_a")
        assert await exists(dsn, "t_002_b")

    async def test_a_relative_folder_is_found_by_its_migrations(
        self, dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(write({"001_a.py": LIKE_IMPORTED, **HELPERS}))
        await Migrator(dsn, ".").up()
        monkeypatch.chdir("..")
        await Migrator(dsn, "migrations").redo()

    async def test_a_python_migration_in_an_archive_imports_what_lies_beside_it(self, dsn: str, tmp_path: Path) -> None:
        code = "from ._more import VALUE\nimport inspect\n" + python("assert 'VALUE' in inspect.getsource(up)")
        with zipfile.ZipFile(tmp_path / "wheel.zip", "w") as archive:
            for name, text in {"001_a.py": code, **HELPERS}.items():
                archive.writestr(f"package/versions/{name}", text)
        await Migrator(dsn, zipfile.Path(tmp_path / "wheel.zip", "package/versions/")).up()
        assert await states(dsn) == {"1": "applied"}

    async def test_runs_at_the_same_time_share_no_module(self, dsn: str, tmp_path: Path) -> None:
        folders = []
        for number in (1, 2):
            changed = HELPERS | {"_more.py": f"VALUE = {number}\n"}
            body = (
                f"from ._more import VALUE\nassert VALUE == {number}\nawait connection.execute('SELECT pg_sleep(.2)')"
            )
            code = python(f"{body}\nfrom . import _more\nassert _more.VALUE == {number}")
            folders.append(writing(tmp_path / f"{number}")({"001_a.py": code, **changed}))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Migrator(dsn, folders[0]).up)
            tasks.start_soon(Migrator(dsn, folders[0]).up)
            tasks.start_soon(Migrator(dsn, folders[1], table="others").up)

    async def test_a_new_helper_is_found_after_an_error(self, dsn: str, write: Write) -> None:
        folder = write({"001_a.py": "from . import _helpers\n" + python("raise LookupError")})
        failure = (await failure_of(Migrator(dsn, folder))).failure
        assert (failure.message.partition(":")[0], failure.line) == ("ImportError", 1)
        write(HELPERS)
        failure = (await failure_of(Migrator(dsn, folder))).failure
        assert failure.message == "LookupError"
        write({"001_a.py": "from . import _helpers\n" + python("pass")})
        await Migrator(dsn, folder).up()


@pytest.mark.parametrize("kind", ["timestamptz", "int4", "text"])
async def test_codecs_of_a_factory_do_not_fail_a_committed_migration(dsn: str, write: Write, kind: str) -> None:
    async def connect() -> Connection:
        connection = await asyncpg.connect(dsn)
        await connection.set_type_codec(kind, schema="pg_catalog", encoder=str, decoder=str, format="text")
        return connection

    files = {"001_a.py": python("pass"), "002_b.sql": "SELECT 1;", "003_c.sql": "SELECT 2;"}
    report = await Migrator(connect=connect, migrations=write(files)).up()
    assert len(report) == 3
