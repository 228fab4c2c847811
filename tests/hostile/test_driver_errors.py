"""Answers that asyncpg cannot read, and texts that it cannot send."""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import anyio
import pytest

from pgratchet import Condition, HistoryError, MigrationFailedError, Migrator, UsageError, Verdict
from pgratchet.core.sql import scripts
from tests.support import HEAD, PATIENCE, Write, ask, column, connect, exists, failure_of, history, states, tell

pytestmark = pytest.mark.anyio

ENCODINGS = ["LATIN1", "EUC_JP", "GB18030", "WIN1252"]
ERROR = "DO $$BEGIN RAISE 'caf%', chr(233); END$$;\n"
NOTICE = "DO $$BEGIN RAISE NOTICE 'caf%', chr(233); END$$;\n"
PADDING = f"SELECT '{'x' * scripts.CHUNK}';\n" * 6
"""More than what one message holds."""

UNREADABLE = "the server's answer cannot be read"

every_encoding = pytest.mark.parametrize("encoding", ENCODINGS)


def other(encoding: str) -> str:
    return f"SET client_encoding = '{encoding}';\n"


def python(*lines: str) -> str:
    return "async def up(connection):\n" + "".join(f"    {line}\n" for line in lines)


def surrogate() -> str:
    """Return what os.listdir() makes of a name that is no UTF-8."""
    return os.fsdecode(b"caf\xe9")


class TestAnError:
    @every_encoding
    async def test_an_error_that_cannot_be_read_is_the_failure_of_its_migration(
        self, dsn: str, write: Write, encoding: str
    ) -> None:
        files = {"001_a.sql": "CREATE TABLE a ();", "003_c.sql": "CREATE TABLE c ();"}
        folder = write(files | {"002_b.sql": f'{other(encoding)}CREATE TABLE b ();\nDROP TABLE "café";\n'})
        migrator = Migrator(dsn, folder, budget=2)

        error = await failure_of(migrator)

        assert [step.version for step in error.finished] == ["1"]
        failure = error.failure
        assert (failure.version, failure.line, failure.statement) == ("2", 3, 3)
        assert failure.message.startswith(UNREADABLE)
        assert "caf" in failure.message
        assert failure.hint is not None
        assert "client_encoding" in failure.hint
        assert await states(dsn) == {"1": "applied", "2": "failed"}
        assert (await history(dsn))["2"]["error"] == f"{UNREADABLE}, line 3"
        assert migrator.readiness.state is Condition.FAILED
        write({"002_b.sql": "CREATE TABLE b ();"})
        assert [step.version for step in await migrator.up()] == ["2", "3"]

    @every_encoding
    async def test_an_unreadable_error_of_one_of_several_messages_fails_its_migration(
        self, dsn: str, write: Write, encoding: str
    ) -> None:
        folder = write({"001_a.sql": f"CREATE TABLE a ();\n{PADDING}{other(encoding)}{ERROR}"})

        error = await failure_of(Migrator(dsn, folder, budget=2))

        assert error.failure.message.startswith(UNREADABLE)
        assert await states(dsn) == {"1": "failed"}
        assert not await exists(dsn, "a")
        write({"001_a.sql": "CREATE TABLE a ();"})
        assert len(await Migrator(dsn, folder).up()) == 1

    @every_encoding
    async def test_an_unreadable_error_on_the_way_down_leaves_the_migration_applied(
        self, dsn: str, write: Write, encoding: str
    ) -> None:
        files = {"001_a.sql": "CREATE TABLE a ();", "001_a.down.sql": f'{other(encoding)}DROP TABLE "café";'}
        migrator = Migrator(dsn, write(files), budget=2)
        await migrator.up()

        with pytest.raises(MigrationFailedError, match=UNREADABLE):
            await migrator.down()

        assert await states(dsn) == {"1": "applied"}
        write({"001_a.down.sql": "DROP TABLE a;"})
        assert len(await migrator.down()) == 1

    @every_encoding
    async def test_an_unreadable_error_in_a_rehearsal_is_told_and_leaves_nothing(
        self, dsn: str, write: Write, encoding: str
    ) -> None:
        migrator = Migrator(dsn, write({"001_a.sql": f'{other(encoding)}SELECT 1;\nDROP TABLE "café";'}), budget=2)

        with pytest.raises(MigrationFailedError, match=UNREADABLE) as caught:
            await migrator.rehearse()

        assert caught.value.failure.line == 3
        assert not await exists(dsn, "schema_migrations")
        write({"001_a.sql": "CREATE TABLE a ();"})
        assert len(await migrator.rehearse()) == 1

    @pytest.mark.parametrize("lock", ["session", "transaction", "none"])
    async def test_an_unreadable_error_is_the_same_under_every_lock(
        self, dsn: str, write: Write, lock: Literal["session", "transaction", "none"]
    ) -> None:
        files = {"001_a.sql": other("LATIN1") + NOTICE, "002_b.sql": other("LATIN1") + ERROR}
        migrator = Migrator(dsn, write(files), lock=lock, budget=2)

        error = await failure_of(migrator)

        assert [step.version for step in error.finished] == ["1"]
        assert await states(dsn) == {"1": "applied", "2": "failed"}
        write({"002_b.sql": "SELECT 2;"})
        assert [step.version for step in await migrator.up()] == ["2"]

    async def test_an_error_after_an_unreadable_notice_is_no_success(self, dsn: str, write: Write) -> None:
        cheat = f"{other('LATIN1')}{NOTICE}DELETE FROM public.schema_migrations;"
        migrator = Migrator(dsn, write({"001_a.sql": cheat}), budget=2)

        await failure_of(migrator)

        assert await states(dsn) == {"1": "failed"}
        write({"001_a.sql": "CREATE TABLE a ();"})
        await migrator.up()

    async def test_an_unreadable_error_is_one_json_document_and_exit_code_1(
        self, dsn: str, write: Write, tmp_path: Path
    ) -> None:
        folder = write({"001_a.sql": f'{other("LATIN1")}DROP TABLE "café";'})
        command = [sys.executable, "-m", "pgratchet", "up", "--json", "--dsn", dsn, "--dir", str(folder)]

        ended = await anyio.run_process(command, cwd=tmp_path, check=False)

        assert (ended.returncode, b"Traceback" in ended.stderr) == (1, False)
        assert json.loads(ended.stdout)["error"]["failure"]["line"] == 2
        write({"001_a.sql": "CREATE TABLE a ();"})
        await anyio.run_process(command, cwd=tmp_path)


class TestANotice:
    """A message that is carried out to its end, although nobody can read what the server says meanwhile."""

    @every_encoding
    async def test_a_notice_that_cannot_be_read_does_not_hide_a_commit(
        self, dsn: str, write: Write, encoding: str
    ) -> None:
        files = {f"00{number}_m.sql": f"CREATE TABLE t{number} ();" for number in (1, 3, 4)}
        migrator = Migrator(dsn, write(files | {"002_m.sql": other(encoding) + NOTICE}), budget=2)

        finished = await migrator.up()

        assert [step.version for step in finished] == ["1", "2", "3", "4"]
        assert all(step.seconds is not None for step in finished)
        assert migrator.readiness.ready
        assert set((await states(dsn)).values()) == {"applied"}
        assert await migrator.up() == ()

    async def test_an_unreadable_notice_before_a_readable_error_fails_the_right_migration(
        self, dsn: str, write: Write
    ) -> None:
        files = {"001_a.sql": other("LATIN1") + NOTICE, "002_b.sql": "SELECT 1;\nSELECT 1/0;", "003_c.sql": "SELECT 3;"}
        migrator = Migrator(dsn, write(files), budget=2)

        error = await failure_of(migrator)

        assert error.failure.version == "2"
        assert [step.version for step in error.finished] == ["1"]
        assert await states(dsn) == {"1": "applied", "2": "failed"}
        write({"002_b.sql": "SELECT 2;"})
        assert [step.version for step in await migrator.up()] == ["2", "3"]

    async def test_an_unreadable_notice_before_the_last_of_several_messages_fails_its_migration(
        self, dsn: str, write: Write
    ) -> None:
        migrator = Migrator(dsn, write({"001_a.sql": f"CREATE TABLE a ();{other('LATIN1')}{NOTICE}{PADDING}"}))

        error = await failure_of(migrator)

        assert error.failure.message.startswith(UNREADABLE)
        assert not await exists(dsn, "a")
        write({"001_a.sql": "CREATE TABLE a ();"})
        await migrator.up()
        assert await states(dsn) == {"1": "applied"}


class TestStatementByStatement:
    @every_encoding
    async def test_an_unreadable_error_belongs_to_its_statement(self, dsn: str, write: Write, encoding: str) -> None:
        text = f"{HEAD}{other(encoding)}CREATE TABLE a ();\n{ERROR}CREATE TABLE b ();"
        migrator = Migrator(dsn, write({"001_a.sql": text}), budget=2)

        error = await failure_of(migrator)

        assert (error.failure.line, error.failure.statement) == (4, 3)
        row = (await history(dsn))["1"]
        assert (row["state"], row["statements_done"]) == ("failed", 2)
        write({"001_a.sql": text.replace(ERROR, "SELECT 1;")})
        assert len(await migrator.up()) == 1
        assert await exists(dsn, "b")

    @every_encoding
    async def test_an_unreadable_notice_does_not_hide_that_its_statement_is_counted(
        self, dsn: str, write: Write, encoding: str
    ) -> None:
        text = f"{HEAD}{other(encoding)}CREATE TABLE a (n int);\n{NOTICE}INSERT INTO a VALUES (1);\n{NOTICE}"
        migrator = Migrator(dsn, write({"001_a.sql": text}), budget=2)

        (step,) = await migrator.up()

        assert step.statements == 5
        assert await column(dsn, "SELECT n FROM a") == [1]
        assert await states(dsn) == {"1": "applied"}

    @every_encoding
    async def test_the_next_run_settles_an_unreadable_error_of_an_index(
        self, dsn: str, write: Write, encoding: str
    ) -> None:
        await tell(dsn, "CREATE TABLE a (name text); INSERT INTO a VALUES ('café'), ('café')")
        migrator = Migrator(
            dsn,
            write({"001_a.sql": f"{HEAD}{other(encoding)}CREATE UNIQUE INDEX CONCURRENTLY i ON a (name);"}),
            budget=2,
        )

        error = await failure_of(migrator)

        assert error.failure.message.startswith(UNREADABLE)
        assert (await history(dsn))["1"]["error"].startswith(UNREADABLE)
        await tell(dsn, "TRUNCATE a")
        assert len(await migrator.up()) == 1
        assert await ask(dsn, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass")

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE INDEX CONCURRENTLY i ON a (n);",
            "DROP INDEX CONCURRENTLY j;",
            "ALTER TABLE p DETACH PARTITION q CONCURRENTLY;",
        ],
    )
    async def test_an_unreadable_notice_of_a_statement_that_can_be_looked_up_is_no_failure(
        self, dsn: str, write: Write, statement: str
    ) -> None:
        await tell(
            dsn,
            "CREATE TABLE a (n int); CREATE INDEX j ON a (n);"
            "CREATE TABLE p (n int) PARTITION BY LIST (n); CREATE TABLE q PARTITION OF p FOR VALUES IN (1);"
            f"CREATE FUNCTION talk() RETURNS event_trigger LANGUAGE plpgsql AS $f${NOTICE[5:-3].replace('$', '')}$f$;"
            "CREATE EVENT TRIGGER talk ON ddl_command_end EXECUTE FUNCTION talk()",
        )
        migrator = Migrator(dsn, write({"001_a.sql": HEAD + other("LATIN1") + statement}), budget=2)

        assert len(await migrator.up()) == 1

        assert await states(dsn) == {"1": "applied"}
        assert await migrator.up() == ()

    async def test_an_unreadable_notice_of_a_statement_that_cannot_be_looked_up_is_left_to_a_person(
        self, dsn: str, write: Write
    ) -> None:
        await tell(
            dsn,
            "CREATE TABLE ledger (n int); CREATE PROCEDURE p() LANGUAGE plpgsql AS "
            "$$BEGIN INSERT INTO ledger VALUES (1); COMMIT; RAISE NOTICE 'caf%', chr(233); END$$",
        )
        migrator = Migrator(dsn, write({"001_a.sql": f"{HEAD}{other('LATIN1')}CALL p();"}), budget=2)

        error = await failure_of(migrator)

        assert error.failure.message.startswith(UNREADABLE)
        with pytest.raises(HistoryError, match="nobody knows whether it took effect"):
            await migrator.up()
        await migrator.repair(1, Verdict.SKIP, "the ledger has it")
        assert len(await migrator.up()) == 1
        assert await column(dsn, "SELECT n FROM ledger") == [1]

    async def test_a_statement_with_names_that_cannot_be_read_fails(self, dsn: str, write: Write) -> None:
        await tell(dsn, 'CREATE TABLE a (n int); CREATE INDEX "café" ON a (n)')
        text = f"{HEAD}{other('SQL_ASCII')}CREATE INDEX CONCURRENTLY i ON a (n);"
        migrator = Migrator(dsn, write({"001_a.sql": text}), budget=2)

        error = await failure_of(migrator)

        assert error.failure.message.startswith(UNREADABLE)
        assert (await history(dsn))["1"]["error"] == UNREADABLE
        await migrator.repair(1, Verdict.NOT_APPLIED, "its encoding was wrong")
        write({"001_a.sql": HEAD + "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON a (n);"})
        await migrator.up()
        assert await states(dsn) == {"1": "applied"}


class TestAnEncodingThatPythonDoesNotHave:
    @pytest.mark.parametrize("head", ["", HEAD])
    async def test_an_encoding_that_python_does_not_have_is_no_reason_to_fail(
        self, dsn: str, write: Write, head: str
    ) -> None:
        migrator = Migrator(dsn, write({"001_a.sql": f"{head}{other('EUC_TW')}CREATE TABLE a ();"}), budget=2)

        assert len(await migrator.up()) == 1

        assert await states(dsn) == {"1": "applied"}

    async def test_an_encoding_that_python_does_not_have_is_set_again_where_a_file_goes_on(
        self, dsn: str, write: Write
    ) -> None:
        text = f"{HEAD}{other('EUC_TW')}CREATE TABLE a ();\nSELECT 1/%d;"
        migrator = Migrator(dsn, write({"001_a.sql": text % 0}), budget=2)
        await failure_of(migrator)

        write({"001_a.sql": text % 1})
        assert len(await migrator.up()) == 1

        assert await states(dsn) == {"1": "applied"}


@asynccontextmanager
async def without_encoding(dsn: str) -> AsyncIterator[str]:
    """Yield a DSN to a database that keeps bytes as they come."""
    name = f"ascii_{urlsplit(dsn).path.rpartition('_')[2]}"
    await tell(dsn, f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    try:
        yield urlsplit(dsn)._replace(path=f"/{name}").geturl()
    finally:
        await tell(dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("head", ["", HEAD])
async def test_bytes_of_a_row_that_are_no_utf_8_fail_the_migration_that_meets_them(
    dsn: str, write: Write, head: str
) -> None:
    async with without_encoding(dsn) as raw:
        await tell(raw, r"CREATE TABLE a (name text); INSERT INTO a SELECT convert_from('\x636166e9', 'SQL_ASCII')")
        text = f"{head}{other('SQL_ASCII')}ALTER TABLE a ALTER name TYPE int USING name::int;"
        migrator = Migrator(raw, write({"001_a.sql": text}), budget=2)

        error = await failure_of(migrator)

        assert r"caf\xe9" in error.failure.message
        assert (await history(raw))["1"]["error"] == f"{UNREADABLE}, line {2 + bool(head)}"
        await tell(raw, "UPDATE a SET name = '1'")
        assert len(await migrator.up()) == 1


PYTHON = {
    "execute": python('await connection.execute("SET client_encoding = \'LATIN1\'; DROP TABLE \\"café\\"")'),
    "fetch": python(
        "await connection.execute(\"SET client_encoding = 'LATIN1'\")",
        "await connection.fetch('SELECT * FROM U&\"caf\\\\00e9\"')",
    ),
    "set_config": python(
        "await connection.fetchval(\"SELECT set_config('client_encoding', 'LATIN1', true)\")",
        "await connection.fetchrow('SELECT * FROM U&\"caf\\\\00e9\"')",
    ),
    "transaction": python(
        "async with connection.transaction():",
        "    await connection.execute(\"SET LOCAL client_encoding = 'LATIN1'\")",
        "    await connection.fetch('SELECT * FROM U&\"caf\\\\00e9\"')",
    ),
    "an encoding that Python does not have": python("await connection.execute(\"SET client_encoding = 'EUC_TW'\")"),
}


@pytest.mark.parametrize("code", PYTHON.values(), ids=PYTHON.keys())
@pytest.mark.parametrize("verb", ["up", "rehearse"])
async def test_a_python_migration_that_changes_the_encoding_fails(dsn: str, write: Write, code: str, verb: str) -> None:
    migrator = Migrator(dsn, write({"001_a.py": code, "002_b.sql": "CREATE TABLE b ();"}), budget=2)

    with anyio.fail_after(PATIENCE), pytest.raises(MigrationFailedError) as caught:
        await getattr(migrator, verb)()

    assert (caught.value.failure.version, caught.value.failure.path) == ("1", str(write({}) / "001_a.py"))
    assert verb == "rehearse" or await states(dsn) == {"1": "failed"}
    write({"001_a.py": python("pass")})
    assert len(await migrator.up()) == 2


@pytest.mark.parametrize("verb", ["up", "rehearse"])
async def test_a_python_migration_may_set_the_encoding_that_it_has(dsn: str, write: Write, verb: str) -> None:
    code = python(
        "await connection.execute(\"SET client_encoding = 'UTF8'\")",
        "await connection.execute(\"SET client_encoding = 'LATIN1'; SELECT 1; RESET client_encoding\")",
        "await connection.execute('CREATE TABLE \"café\" ()')",
    )
    finished = await getattr(Migrator(dsn, write({"001_a.py": code})), verb)()

    assert len(finished) == 1
    assert await exists(dsn, '"café"') == (verb == "up")


SURROGATES = {
    "an exception": ["raise ValueError(f'cannot read {name}')"],
    "an exception of another": [
        "try:",
        "    raise OSError(name)",
        "except OSError as error:",
        "    raise KeyError(name) from error",
    ],
    "a name of nothing": ["raise FileNotFoundError(2, 'No such file', name)"],
    "a statement": ["await connection.execute(f\"SELECT '{name}'\")"],
    "a query": ["await connection.fetch(f\"SELECT '{name}'\")"],
    "a statement, wrapped": [
        "try:",
        "    await connection.execute(f\"SELECT '{name}'\")",
        "except Exception as error:",
        "    raise RuntimeError('the import failed') from error",
    ],
    "a statement in a transaction": ["async with connection.transaction():", "    await connection.execute(name)"],
    "an argument": ["await connection.fetchval('SELECT $1::text', name)"],
    "many arguments": ["await connection.executemany('SELECT $1::text', [(name,)])"],
    "a NUL in a statement": ["await connection.execute('SELECT \\0')"],
    "a NUL in an exception": ["raise ValueError('a\\0b')"],
}


@pytest.mark.parametrize("body", SURROGATES.values(), ids=SURROGATES.keys())
async def test_a_migration_that_meets_a_name_in_no_encoding_runs_once_and_is_recorded_as_failed(
    dsn: str, write: Write, tmp_path: Path, body: list[str]
) -> None:
    runs = tmp_path / "runs"
    head = [f"with open({str(runs)!r}, 'a') as runs: runs.write('x')", "name = os.fsdecode(b'caf\\xe9')"]
    folder = write({"001_a.sql": "CREATE TABLE a ();", "002_b.py": "import os\n" + python(*head, *body)})
    migrator = Migrator(dsn, folder, budget=5)

    error = await failure_of(migrator)

    assert runs.read_text() == "x"
    assert [step.version for step in error.finished] == ["1"]
    failure = error.failure
    assert (failure.version, failure.path) == ("2", str(folder / "002_b.py"))
    assert failure.line is not None
    assert failure.line > 4
    assert "connection" not in failure.message.lower()
    str(error).encode()
    assert await states(dsn) == {"1": "applied", "2": "failed"}
    assert (await history(dsn))["2"]["error"]
    write({"002_b.py": python("pass")})
    assert [step.version for step in await migrator.up()] == ["2"]


async def test_a_rehearsal_that_meets_a_name_in_no_encoding_says_so(dsn: str, write: Write, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    head = [f"with open({str(runs)!r}, 'a') as runs: runs.write('x')", "name = os.fsdecode(b'caf\\xe9')"]
    folder = write({"001_a.py": "import os\n" + python(*head, "await connection.execute(name)")})

    with anyio.fail_after(PATIENCE), pytest.raises(MigrationFailedError, match="UnicodeEncodeError"):
        await Migrator(dsn, folder, budget=5).rehearse()

    assert runs.read_text() == "x"
    write({"001_a.py": python("pass")})
    assert len(await Migrator(dsn, folder).rehearse()) == 1


async def test_a_session_that_is_lost_in_a_python_migration_is_still_a_loss(
    dsn: str, write: Write, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    code = "import os\n" + python(
        f"with open({str(runs)!r}, 'a') as runs: runs.write('x')",
        f"if os.path.getsize({str(runs)!r}) == 1:",
        "    await connection.fetchval('SELECT pg_terminate_backend(pg_backend_pid())')",
    )
    assert len(await Migrator(dsn, write({"001_a.py": code}), budget=10).up()) == 1

    assert runs.read_text() == "xx"


async def test_a_host_whose_name_has_no_encoding_can_apply_repair_and_fail(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.node", surrogate)
    migrator = Migrator(dsn, write({"001_a.sql": "SELECT 1;", "002_b.sql": "SELECT 1/0;"}))
    await failure_of(migrator)

    await migrator.repair(2, Verdict.APPLIED, "done by hand")

    rows = await history(dsn)
    assert all(r"@caf\udce9 " in row["applied_by"] for row in rows.values())
    assert await migrator.up() == ()


@pytest.mark.parametrize("name", [surrogate(), "a\0b", "a\ud800"])
@pytest.mark.parametrize("option", ["owner", "readers", "table"])
def test_a_name_that_the_server_cannot_have_is_refused(name: str, option: str) -> None:
    with pytest.raises(UsageError) as caught:
        Migrator("postgresql://nobody@localhost/x", **{option: [name] if option == "readers" else name})  # type: ignore[arg-type]  # one of them

    assert str(caught.value).isprintable()


async def test_a_folder_whose_name_has_no_encoding_is_as_good_as_any(dsn: str, tmp_path: Path) -> None:
    folder = tmp_path / surrogate()
    folder.mkdir()
    (folder / "001_a.py").write_text(python("await connection.execute('CREATE TABLE a ()')"))
    (folder / "002_b.sql").write_text("SELECT nope;")

    error = await failure_of(Migrator(dsn, folder))

    assert error.failure.path == str(folder / "002_b.sql")
    assert r"caf\udce9/002_b.sql:1:8" in str(error)
    assert await states(dsn) == {"1": "applied", "2": "failed"}
    (folder / "002_b.sql").write_text("SELECT 1;")
    assert len(await Migrator(dsn, folder).up()) == 1


async def test_a_factory_s_session_that_is_closed_over_a_text_is_a_failure_as_well(dsn: str, write: Write) -> None:
    folder = write({"001_a.py": python("await connection.execute('SELECT \\udce9')")})
    error = await failure_of(Migrator(connect=partial(connect, dsn), migrations=folder, budget=5))

    assert error.failure.message.startswith("UnicodeEncodeError")
    assert await states(dsn) == {"1": "failed"}
    write({"001_a.py": python("pass")})
    assert len(await Migrator(connect=partial(connect, dsn), migrations=folder).up()) == 1
