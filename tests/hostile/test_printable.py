"""What others have written reaches terminal, log, history and JSON, and can do no harm there."""

import json
import logging
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
import unicodedata
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgratchet import (
    Direction,
    Event,
    Failed,
    Failure,
    FilesError,
    Finished,
    Gate,
    HistoryError,
    MigrationFailedError,
    Migrator,
    PgratchetError,
    Problem,
    Retried,
    ServerError,
    Started,
    StatementFinished,
    UsageError,
    Waiting,
)
from pgratchet.cli import program, reports, troubles
from pgratchet.core.model import Entry, Plan, State
from pgratchet.core.printing import printable, printable_lines, to_json
from pgratchet.runs import excerpts
from pgratchet.runs.journal import append
from pgratchet.runs.telling import fields
from pgratchet.runs.telling import tell as tell_event
from tests.support import (
    HISTORY,
    PASS_GATE,
    PATIENCE,
    Write,
    ask,
    failure_of,
    gate,
    history,
    states,
    tell,
    until,
    waiters,
)

FORGED = "13:00:00 INFO up 2 grant_admin: done"
EVIL = f"x\x1b[2J\x1b]0;title\x07\r\n{FORGED}\n\x9b31m\x85\u2028\u202e\u2066\u200b\ufeff\x7f"
"""What end users may write into a row."""

SHOWN = rf"x\x1b[2J\x1b]0;title\x07\r\n{FORGED}\n\x9b31m\x85\u2028\u202e\u2066\u200b\ufeff\x7f"
SURROGATE = "caf\udce9"
FINISHED = Finished("1", EVIL, Direction.UP, 1, 0.5)


def hides(text: str) -> list[str]:
    """Return the characters of a text that control, break lines, reorder or are not seen."""
    return [each for each in text if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]


def assert_harmless(text: str) -> None:
    """Hold a text against the rule: nothing in it controls a terminal but our own line feeds and an excerpt's tabs."""
    assert hides(text.replace("\n", "").replace("\t", "")) == []
    assert not any(line.startswith(("13:00:00", FORGED)) for line in text.split("\n"))


def strict(text: str | bytes) -> Any:
    """Return what a parser makes of a document that takes nothing but JSON, in UTF-8."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    document = json.loads(text, parse_constant=refuse)
    json.dumps(document, ensure_ascii=False).encode()
    return document


@pytest.mark.parametrize(
    "text",
    [
        "up 3 add_users",
        r"C:\new\x1b",
        "größe, naïve, Ελληνικά, Русский, עברית, العربية, हिन्दी, ไทย, 日本語, 한국어, አማርኛ",
        "e\u0301 and a\u0308, \u0915\u094d\u0937",
        "« n'existe\u00a0pas », 名\u3000前",
        "😀 👍🏽 🇩🇪 1\ufe0f\u20e3 ❤\ufe0f",
        "👩\u200d👩\u200d👧\u200d👦 ❤\ufe0f\u200d🔥 👩🏽\u200d⚕\ufe0f 🏴\u200d☠\ufe0f",
        "葛\U000e0100",
    ],
)
def test_ordinary_text_of_every_script_stays_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert printable_lines(f"{text}\n{text}") == f"{text}\n{text}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (EVIL, SHOWN),
        ("\0\a\b\t\n\v\f\r\x1b\x7f", r"\x00\x07\x08\t\n\x0b\x0c\r\x1b\x7f"),
        ("\x80\x85\x90\x9b\x9f", r"\x80\x85\x90\x9b\x9f"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069", None),
        ("\u00ad\u200b\u200c\u2060\u2061\u2062\u2063\u2064\ufeff\u180e\ufff9\ufffa\ufffb", None),
        ("a\u200db", r"a\u200db"),
        ("\u200d😀", r"\u200d😀"),
        ("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0", None),
        ("\U000e0041\U000e007f\U000e0001", r"\U000e0041\U000e007f\U000e0001"),
        ("a\ufe00\ufe01\U000e0100", "a\ufe00" + r"\ufe01\U000e0100"),
        ("caf\udce9\ud800", r"caf\udce9\ud800"),
        ("\ue000\U000f0000\U0010ffff\u0378", r"\ue000\U000f0000\U0010ffff\u0378"),
    ],
)
def test_controlling_and_hiding_characters_are_escaped(text: str, shown: str | None) -> None:
    expected = text.encode("unicode_escape").decode() if shown is None else shown

    assert printable(text) == expected


@given(st.text(st.characters(exclude_categories=[])))
def test_printable_text_stays_printable_and_holds_no_hidden_character(text: str) -> None:
    shown = printable(text)

    assert printable(shown) == shown
    assert set(hides(shown)) <= {"\u200d"}
    assert len(shown.splitlines()) <= 1
    shown.encode()
    assert len(printable(text, "?")) == len(text)


@settings(max_examples=50)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()), st.lists))
def test_a_document_of_anything_is_json(value: object) -> None:
    text = to_json({"value": value, SURROGATE: SURROGATE})

    assert text.isascii()
    assert text.isprintable()
    assert strict(text)[r"caf\udce9"] == r"caf\udce9"


def test_a_document_keeps_all_that_json_can_hold() -> None:
    document = {"a": EVIL, "b": ["größe", "😀", None, True, 1.5, {"c": "\\ud800"}]}

    assert strict(to_json(document)) == document
    assert strict(to_json({"n": [float("nan"), float("inf"), -float("inf")]})) == {"n": [None] * 3}


FAILURE = Failure("2", EVIL, Direction.UP, EVIL, EVIL, sqlstate="22P02", detail=EVIL, hint=EVIL, context=EVIL, line=1)


@pytest.mark.parametrize(
    "error",
    [
        PgratchetError(EVIL),
        UsageError(EVIL),
        ServerError(EVIL),
        MigrationFailedError(FAILURE),
        FilesError([Problem(EVIL, EVIL, EVIL)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_told_in_one_line(error: PgratchetError) -> None:
    assert_harmless(str(error))
    assert "\n" not in str(error)


def test_line_breaks_of_our_own_stay() -> None:
    files = FilesError([Problem("1.sql", EVIL, "fix it"), Problem("2.sql", EVIL, "fix it")])

    assert len(str(files).split("\n")) == 2
    assert str(HistoryError("1 was edited\n2 is late")).split("\n") == ["1 was edited", "2 is late"]
    assert str(ServerError("it did not start:", EVIL)) == f"it did not start:\n{SHOWN}"
    assert str(Failed("FilesError", str(files))).split("\n") == f"FilesError: {files}".split("\n")


EVENTS: list[Event] = [
    Waiting(EVIL, datetime.now(UTC)),
    Started("2", EVIL, Direction.UP, 1),
    StatementFinished("2", EVIL, Direction.UP, 1, 2),
    Retried("2", EVIL, 1, EVIL, EVIL),
    FINISHED,
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_one_line_of_the_log_and_whole_for_its_listener(
    event: Event, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pgratchet")
    heard: list[Event] = []

    tell_event(list[Event]().append, heard.append, event)

    (record,) = caplog.records
    assert hides(record.getMessage()) == []
    assert heard == [event]
    texts = [value for value in vars(record).values() if isinstance(value, str)]
    assert [hidden for text in texts for hidden in hides(text)] == []
    assert all(isinstance(value, str | int | float | tuple) for value in fields(event).values())


def test_a_failure_of_several_lines_keeps_them_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    text = str(FilesError([Problem("1.sql", EVIL, "fix it"), Problem("2.sql", EVIL, "fix it")]))

    tell_event(list[Event]().append, None, Failed("FilesError", text))

    assert caplog.messages == [f"FilesError: {text}"]
    assert caplog.records[0].migration_message == text  # type: ignore[attr-defined]  # a field of ours


def test_every_quotation_of_a_record_is_made_printable(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("pgratchet")

    logger.warning("%s of %d in %g s: %s", EVIL, 3, 0.5, Path(EVIL))
    logger.warning("%s", ValueError(EVIL))
    logger.warning("100 %")

    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"{SHOWN} of 3 in 0.5 s: {SHOWN}", SHOWN, "100 %"]


REPORTS = {
    "done": reports.done([FINISHED]),
    "rehearsed": reports.rehearsed([FINISHED]),
    "planned": reports.planned(Plan((), (EVIL,))),
    "status": reports.status([Entry("1", State.PENDING)]),
    "created": reports.created([Path(EVIL)]),
    "failed": troubles.report(MigrationFailedError(FAILURE._replace(excerpt=((1, EVIL),)), [FINISHED])),
    "usage": troubles.report(UsageError(EVIL)),
    "files": troubles.report(FilesError([Problem(EVIL, EVIL, EVIL)])),
    "history": troubles.report(HistoryError(printable(EVIL), [EVIL])),
}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())
def test_a_report_is_as_many_lines_as_are_our_own(report: reports.Report, capsys: pytest.CaptureFixture[str]) -> None:
    program._tell(report, ok=True, as_json=False)
    program._tell(report, ok=False, as_json=True)
    said = capsys.readouterr()

    assert said.out.count("\n") == len(report.lines) + 1
    assert_harmless(said.out)
    assert_harmless(said.err)
    strict(said.out.split("\n")[-2])


def test_an_excerpt_keeps_its_columns_and_shows_what_would_reorder_it() -> None:
    line, caret = excerpts.drawn([(1, "\tSELECT '\u202e\u2066\x1b' nope")], 1, 15)

    assert line == "> 1 | \tSELECT '\ufffd\ufffd\ufffd' nope"
    assert line[: caret.index("^")].endswith("' ")


def test_a_wrong_command_line_is_quoted_without_its_controls(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([EVIL], ["up", f"--{EVIL}"], ["up", "--budget", EVIL], ["status", EVIL, "--json"]):
        assert program._exit_code(arguments) == 2

    said = capsys.readouterr()
    assert_harmless(said.err)
    assert "x\\x1b[2J" in said.err
    strict(said.out)


def test_the_journal_is_json_whatever_names_it_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    append(tmp_path / "journal", [FINISHED, FINISHED._replace(name=SURROGATE, seconds=float("nan"))])
    append(tmp_path / "missing\n13:00:00" / "journal", [FINISHED])

    first, second = map(strict, (tmp_path / "journal").read_text(encoding="utf-8").splitlines())
    assert (first["name"], second["name"], second["seconds"]) == (EVIL, r"caf\udce9", None)
    assert "\n" not in caplog.records[-1].getMessage()


@pytest.mark.anyio
@pytest.mark.parametrize("error", [RuntimeError(EVIL), UsageError(EVIL), RuntimeError(SURROGATE)])
async def test_a_failed_start_tells_its_server_nothing_that_controls_it(error: Exception) -> None:
    async def application(*_: object) -> None:
        raise error

    sent: list[Mapping[str, Any]] = []

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {}

    migrator = Migrator("postgresql://nobody@localhost/x", "nowhere")
    await Gate(application, migrator)({"type": "lifespan"}, receive, send)

    assert hides(sent[0]["message"].replace("\n", "")) == []


# Below here is a real server.


def in_terminal(folder: Path, *arguments: str | Path, seconds: float = 30, columns: int = 1000) -> tuple[int, str]:
    """Run the command line in a terminal; return its exit code and all that it wrote there."""
    names = [name for name in os.environ if not name.startswith(("PGRATCHET_", "PG")) and name != "DATABASE_URL"]
    environment = {name: os.environ[name] for name in names}
    environment |= {"PYTHONUTF8": "1", "TERM": "xterm", "COLUMNS": ""}
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    try:
        command = [sys.executable, "-m", "pgratchet", *map(str, arguments)]
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        ) as process:
            os.close(theirs)
            said, deadline = b"", time.monotonic() + seconds
            while time.monotonic() < deadline:
                if not select.select([ours], [], [], 0.1)[0]:
                    continue
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # the other side is closed
                    break
                if not piece:
                    break
                said += piece
            else:
                process.kill()
        # The terminal itself writes each line feed so.
        return process.returncode, said.decode().replace("\r\n", "\n")
    finally:
        os.close(ours)


Terminal = Callable[..., tuple[int, str]]


@pytest.fixture
def terminal(dsn: str, tmp_path: Path) -> Terminal:
    """Runs a command on the database of the test in a terminal, and holds what it says against the rule."""

    def run(command: str, *arguments: str | Path, columns: int = 1000) -> tuple[int, str]:
        code, said = in_terminal(tmp_path, command, "--dsn", dsn, *arguments, columns=columns)
        assert_harmless(said)
        assert "Traceback" not in said
        return code, said

    return run


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


ROWS = {
    "a value in a cast": "ALTER TABLE users ALTER name TYPE int USING name::int;",
    "a duplicate": "CREATE UNIQUE INDEX ON users (name);",
    "a duplicate, concurrently": "CREATE UNIQUE INDEX CONCURRENTLY ON users (name);",
    "a check": "ALTER TABLE users ADD CHECK (name = 'x');",
    "a row in a detail": "ALTER TABLE users ADD m int CHECK (m > 0); INSERT INTO users SELECT name, 0 FROM users;",
    "words of a function": "DO $$BEGIN RAISE '%', (SELECT name FROM users LIMIT 1) USING HINT = 'a\nb';END$$;",
    "a statement that a function has made": "DO $$BEGIN EXECUTE (SELECT name FROM users LIMIT 1);END$$;",
    "a name from a row": "SELECT name::regclass FROM users;",
    "json": "SELECT name::json FROM users;",
    "a date": "SELECT name::date FROM users;",
}


@pytest.mark.anyio
@pytest.mark.parametrize("sql", ROWS.values(), ids=ROWS.keys())
async def test_a_value_of_a_row_controls_nothing_that_is_written_and_is_not_kept(
    dsn: str, write: Write, sql: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    await tell(dsn, f"CREATE TABLE users (name text); INSERT INTO users VALUES ({quoted(EVIL)}), ({quoted(EVIL)})")
    migrator = Migrator(dsn, write({"001_a.sql": sql}))

    error = await failure_of(migrator)

    program._tell(troubles.report(error), ok=False, as_json=True)
    program._tell(reports.status(await migrator.status()), ok=True, as_json=False)
    said = capsys.readouterr()
    for text in (str(error), said.out, said.err, *caplog.messages):
        assert_harmless(text)
    strict(said.out.split("\n")[0])
    kept = (await history(dsn))["1"]["error"]
    assert hides(kept) == []
    assert "grant_admin" not in kept + "".join(said.out.split("\n")[1:])
    write({"001_a.sql": "SELECT 1;"})
    await migrator.up()


@pytest.mark.anyio
async def test_the_failing_run_is_told_the_whole_value(dsn: str, write: Write, terminal: Terminal) -> None:
    await tell(dsn, f"CREATE TABLE users (name text); INSERT INTO users VALUES ({quoted(EVIL)}), ({quoted(EVIL)})")
    folder = write({"001_a.sql": "CREATE UNIQUE INDEX ON users (name);"})

    _, said = terminal("up", "--dir", folder)
    _, as_json = terminal("up", "--dir", folder, "--json")

    assert f"detail: Key (name)=({SHOWN}) is duplicated." in said
    document = next(line for line in as_json.split("\n") if line.startswith("{"))
    assert strict(document)["error"]["failure"]["detail"] == f"Key (name)=({EVIL}) is duplicated."
    assert 'unique index "users_name_idx" (23505)' in (await history(dsn))["1"]["error"]


@pytest.mark.anyio
async def test_notices_and_names_are_one_line_each(dsn: str, tmp_path: Path, terminal: Terminal) -> None:
    assert terminal("up", "--dir", tmp_path / EVIL)[0] == 2
    folder = tmp_path / f"m \u202e\u2066 {SURROGATE}"
    folder.mkdir()
    (folder / "001_a.sql").write_text(f"DO $f$BEGIN RAISE NOTICE '%', {quoted(EVIL)}; END$f$;")
    (folder / "002_b.sql").write_text("SELECT nope;")

    code, said = terminal("up", "--dir", folder)
    assert (code, "NOTICE: " + SHOWN in said) == (1, True)

    (folder / "002_b.sql").write_text("SELECT 1;")
    (folder / f"003_{EVIL}.sql").write_text("")
    (folder / f"004_{SURROGATE}.sql").write_text("")
    code, said = terminal("up", "--dir", folder, "--json")
    assert (code, said.count("\n")) == (4, 5)
    assert len(strict(said.strip().split("\n")[-1])["error"]["problems"]) == 2

    (folder / f"003_{EVIL}.sql").unlink()
    (folder / f"004_{SURROGATE}.sql").unlink()
    await Migrator(dsn, folder).up()
    await tell(dsn, f"UPDATE {HISTORY} SET name = {quoted(EVIL)}, version = '9' WHERE version = '2'")
    code, said = terminal("status", "--dir", folder)
    assert (code, SHOWN in said) == (0, True)
    code, said = terminal("up", "--dir", folder, "--allow-late")
    assert (code, f"9 {SHOWN} is in the database" in said) == (0, True)


@asynccontextmanager
async def a_role(dsn: str) -> AsyncIterator[str]:
    """Yield the name of a role that may log in, which is a line of the log."""
    name = f"r_{urlsplit(dsn).path.rpartition('_')[2]}\n13:00:00 \x1b[2J"
    await tell(dsn, f"""CREATE ROLE "{name}" LOGIN SUPERUSER PASSWORD 'secret'""")
    try:
        yield name
    finally:
        await tell(dsn, f'DROP OWNED BY "{name}" CASCADE; DROP ROLE "{name}"')


async def logged_in(dsn: str, role: str) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(dsn, user=role, password="secret", statement_cache_size=0)  # noqa: S106 - of a role here


@pytest.mark.anyio
async def test_a_blocker_is_told_in_one_line(dsn: str, write: Write, terminal: Terminal) -> None:
    await tell(dsn, "CREATE TABLE busy (n int)")
    folder = write({"001_a.sql": "ALTER TABLE busy ADD m int;"})
    async with a_role(dsn) as name:
        evil = await logged_in(dsn, name)
        try:
            await evil.execute(f"BEGIN; LOCK TABLE busy; SELECT {quoted(EVIL)}")
            options = ("--lock-timeout", "0.6", "--budget", "1.5")
            code, said = await anyio.to_thread.run_sync(lambda: terminal("up", "--dir", folder, *options))
        finally:
            evil.terminate()
        assert code == 5
        assert "for a lock held by pid" in said
        assert r"\n13:00:00 \x1b[2J" in said
    await Migrator(dsn, folder).up()


@pytest.mark.anyio
async def test_a_role_whose_name_is_a_line_of_the_log_applies_and_is_told_as_the_holder(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pgratchet")
    folder = write({"001_a.sql": PASS_GATE})
    async with a_role(dsn) as name:
        async with gate(dsn) as closed, anyio.create_task_group() as tasks:
            tasks.start_soon(Migrator(connect=partial(logged_in, dsn, name), migrations=folder, lock_timeout=0).up)
            await closed.reached()
            tasks.start_soon(Migrator(dsn, folder, lock_timeout=0).up)

            async def told() -> bool:
                return any("for up 1 a (role" in message for message in caplog.messages)

            await until(told)
            await closed.open()

        assert hides("".join(caplog.messages)) == []
        row = (await history(dsn))["1"]
        assert row["applied_by"].startswith(printable(name))
        assert hides(row["applied_by"]) == []
        await tell(dsn, f'REASSIGN OWNED BY "{name}" TO CURRENT_USER')


@pytest.mark.anyio
async def test_rows_of_older_releases_are_shown_without_their_controls(
    dsn: str, write: Write, terminal: Terminal
) -> None:
    folder = write({"001_a.sql": "SELECT 1;", "002_b.sql": "SELECT 1/0;", "003_c.sql": "SELECT 3;"})
    await failure_of(Migrator(dsn, folder))
    evil = quoted(EVIL)
    await tell(dsn, f"UPDATE {HISTORY} SET error = {evil}, reason = {evil}, applied_by = {evil}")

    code, said = terminal("status", "--dir", folder)
    assert (code, said.count(SHOWN)) == (0, 5)
    lines = said.split("\n")
    assert lines[1].startswith("version  state    name  when")
    code, said = terminal("status", "--dir", folder, columns=60)
    assert 50 < max(map(len, said.split("\n"))) <= 60
    code, said = terminal("status", "--dir", folder, "--json")
    assert {entry["error"] for entry in strict(said)["entries"]} == {EVIL, None}
    code, said = terminal("wait", "--dir", folder, "--budget", "0.5")
    assert (code, f"2 b failed: {SHOWN}; waiting" in said) == (5, True)
    write({"002_b.sql": "SELECT 2;"})
    await Migrator(dsn, folder).up()


@pytest.mark.anyio
async def test_a_reason_is_kept_in_one_line(dsn: str, write: Write, terminal: Terminal) -> None:
    folder = write({"001_a.sql": "SELECT 1/0;"})
    await failure_of(Migrator(dsn, folder))

    code, _ = terminal("repair", "1", "--applied", "--reason", EVIL, "--dir", folder)

    assert code == 0
    reason = (await history(dsn))["1"]["reason"]
    assert reason.startswith(f"{SHOWN} (applied, ")
    assert await Migrator(dsn, folder).up() == ()


@pytest.mark.anyio
async def test_rows_of_another_tool_s_table_are_told_in_one_line(dsn: str, write: Write, terminal: Terminal) -> None:
    await tell(
        dsn,
        "CREATE TABLE old (version int, description text, filename text, executed_at timestamptz, success bool, "
        f"error_message text); INSERT INTO old VALUES (1, {quoted(EVIL)}, {quoted(EVIL)}, now(), true, ''), "
        f"(2, {quoted(EVIL)}, {quoted(EVIL)}, now(), false, {quoted(EVIL)})",
    )
    folder = write({"003_c.sql": "SELECT 3;"})

    code, said = terminal("adopt", "--source", "public.old", "--dir", folder)
    assert (code, SHOWN in said) == (4, True)
    assert terminal("adopt", "--source", "public.old", "--dir", folder, "--yes", "--skip-failed")[0] == 0
    code, said = terminal("status", "--dir", folder)
    assert (code, "grant_admin" in said) == (0, True)


def test_a_setting_is_quoted_in_one_line(tmp_path: Path) -> None:
    for line in (f"{json.dumps(FORGED + chr(10))} = 1", 'table = "a\\n13:00:00.b\\u001b[2J\\u009b"'):
        (tmp_path / "pyproject.toml").write_text(f'[tool.pgratchet]\ndsn = "postgresql://x@localhost:1/x"\n{line}\n')

        code, said = in_terminal(tmp_path, "up", "--budget", "0")

        assert code == 2
        assert_harmless(said)


SECRET = "alice@example.com"  # noqa: S105 - what nobody but the one who migrates may read
VALUES = {
    "22P02": "ALTER TABLE t ALTER v TYPE int USING v::int",
    "22P02, in a function": "DO $$BEGIN PERFORM v::int FROM t; END$$",
    "22P02, of an enum": "CREATE TYPE mood AS ENUM ('a'); SELECT v::mood FROM t",
    "22P02, with marks in it": "UPDATE t SET v = 'a\" ' || v || ' \"b'; SELECT v::int FROM t",
    "22P02, of json": "SELECT ('{' || v)::json FROM t",
    "22P02, of an array": "SELECT v::int[] FROM t",
    "22P02, of a uuid": "SELECT v::uuid FROM t",
    "22007": "SELECT v::date FROM t",
    "22023": "SELECT extract('alice' FROM now()), date_trunc(v, now()) FROM t",
    "2201B": "SELECT 'x' ~ ('(' || v) FROM t",
    "22003": "SELECT 98765432109::bigint::int",
    "23505": "CREATE UNIQUE INDEX ON t ((1)); INSERT INTO t SELECT v FROM t",
    "23505, of rows": "INSERT INTO t SELECT v FROM t; CREATE UNIQUE INDEX ON t (v)",
    "23502": "CREATE TABLE u (v text, n int NOT NULL); INSERT INTO u SELECT v FROM t",
    "23503": "CREATE TABLE u (v text PRIMARY KEY); ALTER TABLE t ADD FOREIGN KEY (v) REFERENCES u",
    "23514": "CREATE TABLE u (v text CHECK (v = '')); INSERT INTO u SELECT v FROM t",
    "23P01": "INSERT INTO t SELECT v FROM t; ALTER TABLE t ADD EXCLUDE (v WITH =)",
    "42P01": "SELECT v::regclass FROM t",
    "42704": "SELECT v::regtype FROM t",
    "42601": "SELECT (v || ' (')::tsquery FROM t",
    "42601, of a made statement": "DO $$BEGIN EXECUTE (SELECT 'SELECT ' || v FROM t); END$$",
    "42P01, of a made statement": "DO $$BEGIN EXECUTE (SELECT format('SELECT FROM %I', v) FROM t); END$$",
    "P0001": "DO $$BEGIN RAISE '% is not welcome', (SELECT v FROM t); END$$",
    "P0001, with a code of its own": "DO $$BEGIN RAISE '%', (SELECT v FROM t) USING ERRCODE = 'AB123'; END$$",
    "P0001, as another": "DO $$BEGIN RAISE 'v % is wrong', (SELECT v FROM t) USING ERRCODE = '23505'; END$$",
    "P0004": "DO $$BEGIN ASSERT false, (SELECT v FROM t); END$$",
}


@pytest.mark.anyio
@pytest.mark.parametrize("sql", ["SELECT lo_get(v) FROM n", "SELECT chr(v::int) FROM n"])
async def test_the_history_keeps_no_number_of_a_row(dsn: str, write: Write, sql: str) -> None:
    await tell(dsn, "CREATE TABLE n (v oid); INSERT INTO n VALUES (41114111)")
    migrator = Migrator(dsn, write({"001_a.sql": sql}))
    assert "41114111" in (await failure_of(migrator)).failure.message
    assert "41114111" not in (await history(dsn))["1"]["error"]
    write({"001_a.sql": "SELECT 1"})
    assert len(await migrator.up()) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("sql", VALUES.values(), ids=VALUES.keys())
async def test_the_history_keeps_no_value_of_a_row(dsn: str, write: Write, sql: str) -> None:
    await tell(dsn, f"CREATE TABLE t (v text); INSERT INTO t VALUES ('{SECRET}')")
    migrator = Migrator(dsn, write({"001_a.sql": sql + ";"}))

    error = await failure_of(migrator)

    row = (await history(dsn))["1"]
    assert "alice" not in str(tuple(row.values()))
    assert "98765432109" not in row["error"]
    assert f"({error.failure.sqlstate}), line 1" in row["error"]
    assert re.match(r"\w[\w ]+", row["error"])
    write({"001_a.sql": "SELECT 1;"})
    await migrator.up()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("code", "kept"),
    [
        ("raise ValueError('no such luck')", "ValueError: no such luck, line 4"),
        ("raise ValueError(f'{value} has no e-mail')", "ValueError, line 4"),
        ("raise KeyError(value)", "KeyError, line 4"),
        ("int(value)", "ValueError, line 4"),
        ("assert value == 'x', value", "AssertionError, line 4"),
        ("await connection.execute('SELECT $1::int', value)", "invalid input for query argument $1 (22000), line 4"),
        (
            "await connection.execute(f\"SELECT '{value}'::int\")",
            "invalid input syntax for type integer (22P02), line 4",
        ),
        ("await connection.execute('SELECT 1/0')", "division by zero (22012), line 4"),
    ],
)
async def test_an_exception_is_kept_without_values(dsn: str, write: Write, code: str, kept: str) -> None:
    await tell(dsn, f"CREATE TABLE t (v text); INSERT INTO t VALUES ('{SECRET}')")
    head = "async def up(connection):\n    value = await connection.fetchval('SELECT v FROM t')\n    value += ''\n"
    migrator = Migrator(dsn, write({"001_a.py": f"{head}    {code}\n"}))

    await failure_of(migrator)

    assert (await history(dsn))["1"]["error"] == kept
    write({"001_a.py": "async def up(connection): pass"})
    await migrator.up()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("sql", "kept"),
    [
        ("SELECT 1/0;", "division by zero (22012), line 1"),
        ("SELECT 1;\nSELECT nope;", 'column "nope" does not exist (42703), line 2'),
        ("ALTER TABLE nope ADD n int;", 'relation "nope" does not exist (42P01), line 1'),
        ("SELEC 1;", 'syntax error at or near "SELEC" (42601), line 1'),
        ("CREATE TABLE a (n int PRIMARY KEY); INSERT INTO a VALUES (1), (1);", None),
        ("DO $$BEGIN RAISE 'there are orders left'; END$$;", "there are orders left (P0001), line 1"),
        ("DO $$BEGIN PERFORM 1/0; END$$;", "division by zero error (22012), line 1"),
    ],
)
async def test_the_history_keeps_words_of_the_file_and_names(
    dsn: str, write: Write, sql: str, kept: str | None
) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": sql}))

    await failure_of(migrator)

    duplicate = 'duplicate key value violates unique constraint "a_pkey" (23505), line 1'
    assert (await history(dsn))["1"]["error"] == (kept or duplicate)
    write({"001_a.sql": "SELECT 1;"})
    await migrator.up()


@pytest.mark.anyio
@pytest.mark.parametrize("sql", ["DO $$BEGIN RAISE 'no {}'; END$$;", 'SELECT "no {}" FROM pg_class;'])
async def test_words_of_the_file_are_kept_in_one_line(dsn: str, write: Write, sql: str) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": sql.format("a\x1b[2J\u202eb\nc")}))

    await failure_of(migrator)

    kept = (await history(dsn))["1"]["error"]
    assert r"no a\x1b[2J\u202eb\nc" in kept
    assert hides(kept) == []
    write({"001_a.sql": "SELECT 1;"})
    await migrator.up()


@pytest.mark.anyio
async def test_other_runners_readers_and_the_gate_see_no_value(
    dsn: str, write: Write, terminal: Terminal, caplog: pytest.LogCaptureFixture
) -> None:
    await tell(dsn, f"CREATE TABLE t (v text); INSERT INTO t VALUES ('{SECRET}')")
    folder = write({"001_a.sql": f"{PASS_GATE}SELECT v::int FROM t;"})
    runner, waiter = (Migrator(dsn, folder, lock_timeout=0) for _ in range(2))
    events: list[Event] = []
    reader = Migrator(dsn, folder, listener=events.append)
    failures: list[MigrationFailedError] = []

    async def fail(migrator: Migrator) -> None:
        with pytest.raises(MigrationFailedError) as caught:
            await migrator.up()
        failures.append(caught.value)

    async with gate(dsn) as closed, anyio.create_task_group() as tasks:
        tasks.start_soon(fail, runner)
        await closed.reached()
        tasks.start_soon(fail, waiter)
        tasks.start_soon(reader.wait)

        async def both_wait() -> bool:
            return waiter.readiness.pending == ("1",) and reader.readiness.pending == ("1",)

        await until(both_wait)
        await waiters(dsn, 2)
        caplog.clear()
        await closed.open()

        async def told() -> bool:
            return len(failures) == 2 and any("waiting for it" in message for message in caplog.messages)

        await until(told)
        tasks.cancel_scope.cancel()

    own, others = sorted(failures, key=lambda error: "another runner" in str(error))
    assert SECRET in str(own)
    assert "invalid input syntax for type integer (22P02), line 2 (in another runner:" in str(others)
    for text in (str(others), str(others.failure), str(events), *(m for m in caplog.messages if "waiting for it" in m)):
        assert "alice" not in text
    for migrator in (runner, waiter, reader):
        document = await ready(migrator)
        assert document["failed"] == ["1"]
        assert "alice" not in str(document)
    assert "alice" not in terminal("status", "--dir", folder)[1]
    assert "alice" not in terminal("status", "--dir", folder, "--json")[1]
    assert await states(dsn) == {"1": "failed"}
    write({"001_a.sql": "SELECT 1;"})
    await runner.up()
    assert await ask(dsn, f"SELECT error IS NULL FROM {HISTORY}")


async def ready(migrator: Migrator) -> Any:
    """Return what a gate answers on its own path."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def nothing(*_: object) -> Any:
        raise AssertionError

    with anyio.fail_after(PATIENCE):
        await Gate(nothing, migrator)({"type": "http", "path": "/readyz"}, nothing, send)
    return strict(sent[1]["body"])
