"""What surrounds a run: its settings, its streams, its signals, and errors that code raises on purpose."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import IO, Any
from urllib.parse import quote, urlsplit

import anyio
import asyncpg
import pytest

from pgratchet import Looked, Migrator, Retried, ServerError, UsageError, gate
from pgratchet.cli import main, settings
from pgratchet.core.events import Event, Started
from pgratchet.core.model import Direction, Finished
from pgratchet.core.readiness import Course
from pgratchet.files.layouts.own import own
from pgratchet.postgres.link.budget import MOST, Cause, Tries
from pgratchet.postgres.link.sql import Table
from tests.support import (
    PATIENCE,
    Write,
    a_role,
    as_role,
    ask,
    column,
    connected,
    deserted,
    exists,
    failure_of,
    states,
    tell,
    until,
    without_tls,
)

pytestmark = pytest.mark.anyio

SECRET = "h1dden"  # noqa: S105 - to be looked for where it must not be
NOWHERE = f"postgresql://somebody:{SECRET}@127.0.0.1:1/nothing"
ONE = {"1_a.sql": "CREATE TABLE a ();\n"}
FULL = "/dev/full"
needs_full = pytest.mark.skipif(not Path(FULL).exists(), reason=f"needs {FULL}")
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PGRATCHET_", "PG")) and name != "DATABASE_URL"
}


class Program:
    """The program in processes of its own, in an empty folder; none of them outlives the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        *arguments: str | Path,
        code: str = "",
        env: Mapping[str, str] = MappingProxyType({}),
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.PIPE,
    ) -> "subprocess.Popen[bytes]":
        """Start it; `code` runs before it, in the same process."""
        program = ["-c", f"{code}\nfrom pgratchet.cli import main\nmain()"] if code else ["-m", "pgratchet"]
        process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=self.folder,
            env={**CLEAN, **env},
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def run(self, *arguments: str | Path, **more: Any) -> "subprocess.CompletedProcess[str]":
        return ended(self.start(*arguments, **more))

    def stop(self) -> None:
        for process in self._started:
            # With what its migrations have started.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def ended(process: "subprocess.Popen[bytes]") -> "subprocess.CompletedProcess[str]":
    out, err = process.communicate(timeout=PATIENCE)
    texts = ((said or b"").decode(errors="replace") for said in (out, err))
    return subprocess.CompletedProcess(process.args, process.returncode, *texts)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path)
    yield program
    program.stop()


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs the program in this very process, in an empty folder, with variables of its own."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - CLEAN.keys():
        monkeypatch.delenv(name)

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["pgratchet", *arguments])
            with pytest.raises(SystemExit) as exit_:
                main()
        return subprocess.CompletedProcess(arguments, int(exit_.value.code or 0), *capsys.readouterr())

    return run


def document(result: "subprocess.CompletedProcess[str]") -> Any:
    """Return the one JSON document that all of stdout is."""
    return json.loads(result.stdout)


def refused(result: "subprocess.CompletedProcess[str]") -> str:
    """Show that a command was refused as wrong use, in one line and without a secret, and return that line.

    A line with the place of the database may come first.
    """
    *place, said = result.stderr.splitlines()
    assert all(line.startswith("database ") for line in place[:1]), place
    assert len(place) <= 1
    assert (result.returncode, said.startswith("error: ")) == (2, True), said
    assert SECRET not in result.stdout + result.stderr
    if result.stdout:
        assert document(result)["error"]["type"] == "UsageError"
    return said


def python(body: str, head: str = "") -> str:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"{head}\nasync def up(connection):\n{lines}"


UNSEEN = {
    "a newline at its end": "{}\n",
    "a newline before it": "\n{}",
    "a carriage return": "{}\r",
    "a blank at its end": "{} ",
    "a blank before it": " {}",
    "a tab": "{}\t",
    "a NUL": "{}\0",
    "an escape sequence": "{}\x1b[2J",
    "a delete": "{}\x7f",
    "a control character of the upper half": "{}\x85",
    "a no-break space": "{}\N{NO-BREAK SPACE}",
    "a space without width": "{}\N{ZERO WIDTH SPACE}",
    "a byte order mark": "\N{ZERO WIDTH NO-BREAK SPACE}{}",
    "a joiner": "{}\N{ZERO WIDTH JOINER}",
    "an override of the direction": "{}\N{RIGHT-TO-LEFT OVERRIDE}",
    "a line separator": "{}\N{LINE SEPARATOR}",
    "a filler": "{}\N{HANGUL FILLER}",
    "a variation selector": "{}\N{VARIATION SELECTOR-16}",
    "half a surrogate pair": "{}\udcff",
}
unseen = pytest.mark.parametrize("form", UNSEEN.values(), ids=UNSEEN.keys())


def shown(what: str, refuse: Callable[[], object]) -> str:
    """Return what an argument is refused with: it names the argument, and nothing in it is unseen."""
    with pytest.raises(UsageError, match=what) as caught:
        refuse()
    message = str(caught.value)
    assert message.isprintable()
    assert not set(message) & {"\N{HANGUL FILLER}", "\N{VARIATION SELECTOR-16}", "\N{BRAILLE PATTERN BLANK}"}
    return message


class TestANameWithSomethingUnseen:
    @unseen
    @pytest.mark.parametrize("name", ["public.schema_migrations", "schema_migrations"])
    def test_a_name_with_an_unseen_character_is_no_table(self, name: str, form: str) -> None:
        assert "which has" in shown("table", lambda: Migrator(NOWHERE, table=form.format(name)))

    @pytest.mark.parametrize("name", ["public. a", "public .a", ".  ", " . ", "public.\n", "a\n.b", "a.\u2800", "  "])
    def test_a_name_with_an_unseen_character_is_no_part_of_a_table(self, name: str) -> None:
        shown("table", lambda: Table.parse(name))

    @unseen
    def test_a_name_with_an_unseen_character_is_no_role(self, form: str) -> None:
        shown("owner", lambda: Migrator(NOWHERE, owner=form.format("app")))
        shown("readers", lambda: Migrator(NOWHERE, readers=["web", form.format("app")]))

    @pytest.mark.parametrize("form", [form for form in UNSEEN.values() if form.isprintable() or form.isascii()])
    def test_a_name_with_an_unseen_character_is_no_application(self, form: str) -> None:
        shown("application_name|NUL", lambda: Migrator(f"{NOWHERE}?application_name={quote(form.format('app'))}"))

    @pytest.mark.parametrize("form", ["{}\n", "{}\r\n", " {}", "{}\t", "{}\0", "a\0{}", "{}\x1b[2J", "{}\x85", "\n{}"])
    @pytest.mark.parametrize("kind", [str, Path])
    def test_a_name_with_an_unseen_character_is_no_path(self, form: str, kind: Callable[[str], Any]) -> None:
        shown("migrations is", lambda: Migrator(NOWHERE, kind(form.format("m"))))
        shown("journal", lambda: Migrator(NOWHERE, journal=kind(form.format("j"))))

    def test_an_unseen_character_in_a_name_is_shown_escaped_and_with_a_way_out(self) -> None:
        message = shown("table", lambda: Migrator(NOWHERE, table="public.schema\u200b_migrations\n"))

        assert r"schema\u200b_migrations\n" in message
        assert "remove it" in message

    def test_an_error_about_an_unseen_character_does_not_repeat_a_possible_password(self) -> None:
        for refuse in (
            partial(Migrator, NOWHERE, owner=f"{NOWHERE}\n"),
            partial(Migrator, NOWHERE, readers=[f"host=x password={SECRET} "]),
            partial(Migrator, NOWHERE, journal=f"{NOWHERE}\n"),
        ):
            assert SECRET not in shown("holds a password", refuse)

    async def test_a_name_with_an_unseen_character_makes_no_second_history(
        self, dsn: str, write: Write, program: Program, command: Command
    ) -> None:
        folder = write({"1_a.sql": "CREATE TABLE IF NOT EXISTS ledger (n int); INSERT INTO ledger VALUES (1);"})
        settings = {"DATABASE_URL": dsn, "PGRATCHET_DIR": str(folder)}
        name = "public.schema_migrations"
        await Migrator(dsn, folder).up()

        refusal = refused(command("up", "--json", **settings, PGRATCHET_TABLE=f"{name}\n"))
        assert r"schema_migrations\n" in refusal
        assert r"\udcff" in refused(command("up", "--table", f"{name}\udcff", **settings))
        (program.folder / "pyproject.toml").write_text(f'[tool.pgratchet]\ntable = " {name}"\n')
        assert "a blank" in refused(command("up", **settings))

        assert program.run("up", env=settings | {"PGRATCHET_TABLE": name}).returncode == 0
        assert await column(dsn, "SELECT n FROM ledger") == [1]
        assert len(await column(dsn, "SELECT 1 FROM pg_class WHERE relkind = 'r' AND relname ~ 'migrations'")) == 1

    @pytest.mark.parametrize("setting", ["owner", "dir", "journal", "lock"])
    def test_a_name_with_an_unseen_character_is_refused_from_the_environment(
        self, command: Command, setting: str
    ) -> None:
        value = {"lock": "session"}.get(setting, "app")
        result = command(
            "up", "--dry-run", "--json", "--dsn", NOWHERE, **{f"PGRATCHET_{setting.upper()}": f"{value}\n"}
        )

        assert result.returncode == 2
        assert rf"{value}\n" in result.stderr
        assert document(result)["error"]["type"] == "UsageError"

    def test_a_name_with_an_unseen_character_makes_no_folder_of_new_migrations(
        self, command: Command, tmp_path: Path
    ) -> None:
        refused(command("new", "add users", PGRATCHET_DIR="migrations\n"))
        assert list(tmp_path.iterdir()) == []


class TestANameThatIsOnlyUnusual:
    @pytest.mark.parametrize("table", ["Größe.A b", "public.tab'le", "шема.таблица", "日本.表", "e\u0301.x"])
    def test_an_unusual_name_is_a_table(self, table: str) -> None:
        Migrator(NOWHERE, table=table)

    def test_an_unusual_name_is_a_role(self) -> None:
        Migrator(NOWHERE, owner="Rôle mit Leerzeichen", readers=["none", "a'b", 'a"b', "x" * 63])

    @pytest.mark.parametrize("folder", ["My files", "\udcff\udcfe", "❤\N{VARIATION SELECTOR-16}", "a\u00a0b"])
    def test_an_unusual_name_is_a_folder(self, folder: str) -> None:
        Migrator(NOWHERE, folder, journal=f"{folder}/journal")


class TestARole:
    @pytest.mark.parametrize("name", ["x" * 64, "ö" * 32])
    def test_a_role_is_refused_if_postgresql_would_cut_its_name(self, name: str) -> None:
        shown("owner is 64 bytes long", lambda: Migrator(NOWHERE, owner=name))
        shown("readers is 64 bytes long", lambda: Migrator(NOWHERE, readers=[name]))
        shown("readers is 0 bytes long", lambda: Migrator(NOWHERE, readers=[""]))

    def test_a_role_is_refused_if_its_name_means_no_role(self, command: Command) -> None:
        shown("owner is 'none'", lambda: Migrator(NOWHERE, owner="none"))
        said = refused(command("up", "--dry-run", "--owner", "none", "--dsn", NOWHERE))
        assert "--owner (PGRATCHET_OWNER) is 'none'" in said

    async def test_a_role_that_is_called_default_is_a_role_like_any_other(self, dsn: str, write: Write) -> None:
        migrator = Migrator(dsn, write(ONE), owner="default", table="ours.history")
        with pytest.raises(ServerError, match='role "default" does not exist'):
            await migrator.up()
        await tell(dsn, f'CREATE ROLE "default"; GRANT CREATE ON DATABASE {urlsplit(dsn).path[1:]} TO "default"')
        try:
            await tell(dsn, 'GRANT CREATE ON SCHEMA public TO "default"')
            await migrator.up()
            assert await ask(dsn, "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'a'") == '"default"'
        finally:
            await tell(dsn, 'DROP OWNED BY "default" CASCADE; DROP ROLE "default"')


class TestADsn:
    @pytest.mark.parametrize("form", ["{}\n", "{}\r\n", " {}", "{} ", "\t{}\n\n", "\N{ZERO WIDTH NO-BREAK SPACE}{}\n"])
    async def test_a_dsn_may_have_blanks_around_it(self, dsn: str, write: Write, form: str) -> None:
        await Migrator(form.format(dsn), write(ONE), direct_dsn=form.format(dsn)).up()
        assert await states(dsn) == {"1": "applied"}

    @pytest.mark.parametrize("harm", ["\n", "\t", "\r\n", "\x00", "%00", "\x1b[2J", "\u200b", "\u00a0", "\udcff"])
    @pytest.mark.parametrize("place", ["somebody", SECRET, "127", "nothing"])
    def test_a_dsn_with_an_unseen_character_inside_is_refused_and_not_shown(self, harm: str, place: str) -> None:
        dsn = NOWHERE.replace(place, place[:2] + harm + place[2:])
        for give in (lambda: Migrator(dsn), lambda: Migrator(NOWHERE, direct_dsn=dsn)):
            message = shown("dsn has", give)
            assert not any(part in message for part in (SECRET[2:], "somebody", "127", "nothing"))

    def test_a_dsn_with_a_port_that_does_not_exist_is_refused(self) -> None:
        with pytest.raises(UsageError, match="a port that there cannot be"):
            Migrator(NOWHERE.replace(":1/", ":1,127.0.0.1:99999/"))

    def test_a_dsn_that_is_no_utf_8_is_refused_at_once(self, command: Command) -> None:
        for name in ("PGRATCHET_DSN", "DATABASE_URL", "PGRATCHET_DIRECT_DSN"):
            variables = {"DATABASE_URL": NOWHERE, name: NOWHERE.replace("127", "\udcff127")}
            said = refused(command("up", "--dry-run", "--json", **variables))
            assert name in said
            assert r"has the character \udcff" in said


SECONDS = ("budget", "connect_budget", "lock_timeout", "statement_timeout")
NO_SECONDS = (*map(float, ("nan", "inf", "-inf", "-1", "1e10", "2147484")), 10**4000, True, "5", b"5", [], {}, 5j)


class TestADuration:
    @pytest.mark.parametrize("name", SECONDS)
    @pytest.mark.parametrize("value", NO_SECONDS, ids=lambda value: str(value)[:9])
    def test_a_duration_is_a_number_of_seconds_that_a_server_takes(self, name: str, value: Any) -> None:
        shown(f"{name} must be a number of seconds", lambda: Migrator(NOWHERE, **{name: value}))

    @pytest.mark.parametrize("value", [0, -0.0, 1e-9, 5, 2147483, 2147483.647])
    def test_a_duration_may_be_as_long_as_the_server_takes(self, value: float) -> None:
        Migrator(NOWHERE, budget=value, lock_timeout=value, statement_timeout=value)

    @pytest.mark.parametrize("name", SECONDS)
    @pytest.mark.parametrize("value", ["nan", "inf", "1e10"])
    def test_a_wrong_duration_is_refused_wherever_it_is_given(
        self, command: Command, tmp_path: Path, name: str, value: str
    ) -> None:
        flag, variable = f"--{name.replace('_', '-')}", f"PGRATCHET_{name.upper()}"
        spelled = f"{flag} ({variable}) must be a number"
        assert spelled in refused(command("up", "--dry-run", "--json", "--dsn", NOWHERE, flag, value))
        assert spelled in refused(command("up", "--dry-run", "--json", "--dsn", NOWHERE, **{variable: value}))
        (tmp_path / "pyproject.toml").write_text(f"[tool.pgratchet]\n{name} = {value}\n")
        assert f"'{name}' under [tool.pgratchet]" in refused(command("status", "--json", "--dsn", NOWHERE))

    async def test_the_longest_duration_is_no_failure(self, dsn: str, write: Write) -> None:
        longest = 2147483.647
        await Migrator(dsn, write(ONE), budget=longest, lock_timeout=longest, statement_timeout=longest).up()
        assert await states(dsn) == {"1": "applied"}

    @pytest.mark.parametrize("value", ["597h", "999999h", "99999min"])
    def test_a_duration_in_a_file_is_bounded_as_well(self, command: Command, write: Write, value: str) -> None:
        folder = write({"1_a.sql": f"-- pgratchet: lock-timeout={value}\nSELECT 1;\n"})
        result = command("up", "--dry-run", "--dsn", NOWHERE, "--dir", str(folder))

        assert (result.returncode, "1_a.sql:1: " in result.stderr, "596h" in result.stderr) == (4, True, True)


class TestAProject:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"tool = 1 # pgratchet", "'tool' in pyproject.toml must be a table"),
            (b"tool = [] # pgratchet", "'tool' in pyproject.toml must be a table"),
            (b'[tool]\npgratchet = "x"', "'pgratchet' in pyproject.toml must be a table"),
            (b"[tool]\npgratchet = 1", "'pgratchet' in pyproject.toml must be a table"),
            (b"[[tool.pgratchet]]\nstrict = true", "'pgratchet' in pyproject.toml must be a table"),
            (b"[tool.pgratchet]\ndir = " + b"[" * 3000 + b"]" * 3000, "nested too deeply"),
            (b"[tool.pgratchet]\ndir = " + b"{a=" * 3000 + b"1" + b"}" * 3000, "nested too deeply"),
            ("[tool.pgratchet]\nstrict = true".encode("utf-16"), "UTF-8"),
            ("[tool.pgratchet]\nstrict = true".encode("utf-16-le"), "UTF-8"),
            ("[tool.pgratchet]\nstrict = true".encode("utf-16-be"), "UTF-8"),
            ("[tool.pgratchet]\nstrict = true".encode("utf-32"), "UTF-8"),
            ('[tool.pgratchet]\ndir = "é"'.encode("latin-1"), "UTF-8"),
            (b"[tool.pgratchet]\nbudget = " + b"9" * 5000, "cannot read pyproject.toml"),
            (b"[tool.pgratchet]\nbudget = " + b"9" * 4000, "pyproject.toml must be a number of seconds"),
            (b'[tool.pgratchet]\ndir = "a\\u0000b"', r"a\x00b"),
            (b'[tool.pgratchet]\njournal = "a\\u0000b"', r"a\x00b"),
            (b'[tool.pgratchet]\nowner = "none"', "'owner' under [tool.pgratchet] in pyproject.toml is 'none'"),
        ],
    )
    def test_a_project_file_that_cannot_be_right_is_refused(
        self, command: Command, tmp_path: Path, content: bytes, said: str
    ) -> None:
        (tmp_path / "pyproject.toml").write_bytes(content)
        assert said in refused(command("up", "--dry-run", "--json", "--dsn", NOWHERE))

    def test_a_project_file_that_never_ends_is_refused_at_once(self, program: Program) -> None:
        project = program.folder / "pyproject.toml"
        os.mkfifo(project)
        assert "only regular files" in refused(program.run("up", "--json", "--dsn", NOWHERE))
        project.unlink()
        project.symlink_to("/dev/zero")
        assert "only regular files" in refused(program.run("up", "--json", "--dsn", NOWHERE))

    def test_a_project_file_that_cannot_be_read_is_refused(self, command: Command, tmp_path: Path) -> None:
        project = tmp_path / "pyproject.toml"
        project.mkdir()
        assert "only regular files" in refused(command("up", "--dry-run", "--json", "--dsn", NOWHERE))
        project.rmdir()
        project.symlink_to(project)
        assert "cannot read pyproject.toml" in refused(command("up", "--dry-run", "--json", "--dsn", NOWHERE))

    @pytest.mark.usefixtures("command")
    def test_a_project_file_with_a_byte_order_mark_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "pyproject.toml").write_text("[tool.pgratchet]\nstrict = true\n", encoding="utf-8-sig")
        assert settings.read({}) == {"strict": True}


class TestAWorkingDirectoryThatIsGone:
    GONE = "import os, tempfile; gone = tempfile.mkdtemp(); os.chdir(gone); os.rmdir(gone)"

    def test_a_working_directory_that_is_gone_is_no_traceback(self, program: Program) -> None:
        assert "is gone" in refused(program.run("up", "--json", "--dsn", NOWHERE, code=self.GONE))

    async def test_a_working_directory_that_is_gone_does_not_matter_for_an_absolute_folder(
        self, dsn: str, write: Write, program: Program
    ) -> None:
        assert program.run("up", "--dsn", dsn, "--dir", write(ONE), code=self.GONE).returncode == 0


UNEXPECTED = {
    "an error": (f"raise ZeroDivisionError('no {NOWHERE}')", "ZeroDivisionError"),
    "one without words": ("raise LookupError", "LookupError"),
    "a recursion": ("broken()", "RecursionError"),
    "an exit": ("raise SystemExit(1)", "SystemExit"),
    "a cancellation": ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
    "a generator's end": ("raise GeneratorExit", "GeneratorExit"),
    "a group": ("raise ExceptionGroup('x', [ValueError('y')])", "ExceptionGroup"),
    "one that cannot be shown": ("raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})", "Odd"),
    "one of the system": ("raise OSError(28, 'No space left on device')", "OSError"),
}


SIGNALLED = """
import os, signal, time
from pgratchet.cli import settings
settings.Migrator = lambda *_, **__: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(60))
"""
GROUPED = """
from pgratchet.cli import commands
def stop(_): raise BaseExceptionGroup("all", [KeyboardInterrupt(), BrokenPipeError()])
commands.reports.done, commands.run = stop, lambda *_, **__: ()
"""
ENDS = {
    "a package that is missing": ("import sys; sys.modules['typer'] = None", 6, "ModuleNotFoundError"),
    "an exit with words": ("import logging, sys; logging.StreamHandler = lambda: sys.exit('words')", 6, "SystemExit"),
    "a signal before the work": (SIGNALLED, 143, "InterruptedBySignalError"),
    "a group of anything": (GROUPED, 6, "BaseExceptionGroup"),
}
"""Ways in which the program ends that its commands do not see."""


class TestAnErrorThatNobodyHasForeseen:
    @pytest.fixture
    def broken(self, monkeypatch: pytest.MonkeyPatch, command: Command) -> Command:
        """Runs the program where the migrator is such that this happens when it is made."""

        def run(statement: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
            scope: dict[str, Any] = {"__name__": "broken"}
            exec(f"def broken(*_, **__):\n    secret = '{SECRET}'; {statement}", scope)  # noqa: S102 - ours
            monkeypatch.setattr(settings, "Migrator", scope["broken"])
            return command(*arguments, "--dsn", NOWHERE)

        return run

    @pytest.mark.parametrize(("statement", "kind"), UNEXPECTED.values(), ids=UNEXPECTED.keys())
    def test_an_unexpected_error_has_an_exit_code_of_its_own_and_a_document(
        self, broken: Command, statement: str, kind: str
    ) -> None:
        result = broken(statement, "up", "--json")

        assert (result.returncode, document(result)["ok"], document(result)["error"]["type"]) == (6, False, kind)
        assert kind in document(result)["error"]["message"]
        assert "please report it" in result.stderr
        assert "Traceback" not in result.stderr
        assert SECRET not in result.stdout + result.stderr

    def test_an_unexpected_error_has_a_traceback_where_more_is_asked_for(self, broken: Command) -> None:
        result = broken(f"raise ZeroDivisionError('{NOWHERE}')", "status", "-v")

        assert (result.returncode, result.stdout) == (6, "")
        assert "Traceback (most recent call last)" in result.stderr
        assert "in open_migrator" in result.stderr
        assert SECRET not in result.stderr

    def test_an_unexpected_error_is_no_interruption(self, broken: Command) -> None:
        result = broken("raise KeyboardInterrupt", "up", "--json")

        assert (result.returncode, document(result)["error"]["signal"]) == (130, "SIGINT")

    @pytest.mark.parametrize(("code", "exit_code", "kind"), ENDS.values(), ids=ENDS.keys())
    def test_the_program_ends_with_a_document_wherever_it_ends(
        self, program: Program, command: Command, code: str, exit_code: int, kind: str
    ) -> None:
        (program.folder / "migrations").mkdir()

        result = program.run("up", "--json", "--dsn", NOWHERE, code=code)

        assert (result.returncode, document(result)["ok"], document(result)["error"]["type"]) == (
            exit_code,
            False,
            kind,
        )
        assert "Traceback" not in result.stderr
        assert command("new", "add users").returncode == 0

    def test_an_unexpected_error_ends_a_real_process_in_the_same_way(self, program: Program) -> None:
        code = "from pgratchet.cli import reports\nreports.created = lambda paths: 1 / 0"
        result = program.run("new", "add users", "--json", code=code)

        assert (result.returncode, document(result)["error"]["type"]) == (6, "ZeroDivisionError")
        assert program.run("new", "add users").returncode == 0


class TestADateThatPythonDoesNotHave:
    @pytest.mark.parametrize("date", ["0044-03-15 BC", "20000-01-01", "infinity", "-infinity"])
    @pytest.mark.parametrize("name", ["started_at", "finished_at", "backend_start"])
    async def test_a_date_in_the_history_that_python_does_not_have_is_no_traceback(
        self, dsn: str, write: Write, date: str, name: str
    ) -> None:
        migrator = Migrator(dsn, write(ONE))
        await migrator.up()
        await tell(dsn, f"UPDATE schema_migrations SET {name} = '{date}'")
        for work in (migrator.status, migrator.check, migrator.plan, migrator.up):
            if "infinity" in date:
                await work()
                continue
            with pytest.raises(ServerError, match=r"public\.schema_migrations has a value that cannot be read"):
                await work()
        await tell(dsn, f"UPDATE schema_migrations SET {name} = now()")
        await migrator.up()

    async def test_a_date_in_the_history_that_python_does_not_have_is_an_error_of_the_command_line(
        self, dsn: str, write: Write, program: Program
    ) -> None:
        arguments = ("up", "--json", "--dsn", dsn, "--dir", write(ONE))
        await Migrator(dsn, write(ONE)).up()
        await tell(dsn, "UPDATE schema_migrations SET started_at = '0044-03-15 BC'")
        result = program.run(*arguments)
        assert (result.returncode, document(result)["error"]["type"]) == (2, "ServerError")
        await tell(dsn, "UPDATE schema_migrations SET started_at = NULL")
        assert program.run(*arguments).returncode == 0

    async def test_a_date_in_another_tools_table_that_python_does_not_have_is_no_traceback(
        self, dsn: str, write: Write
    ) -> None:
        rest = "description text, filename text, executed_at timestamp, success bool, error_message text"
        await tell(dsn, f"CREATE TABLE old (version int, {rest})")
        await tell(dsn, "INSERT INTO old VALUES (1, 'a', '1_a.sql', '0044-03-15 BC', true)")
        migrator = Migrator(dsn, write(ONE))
        with pytest.raises(ServerError, match=r"public\.old has a value that cannot be read"):
            await migrator.adopt("public.old")
        await tell(dsn, "UPDATE old SET executed_at = now()")
        assert (await migrator.adopt("public.old")).adopted == ("1",)


NOISE = """
import atexit, ctypes, logging, os, subprocess, sys, threading
print("top level")
OUT = sys.stdout

async def up(connection):
    atexit.register(print, "farewell")
    print("print")
    print("no newline", end="")
    sys.stdout.write("write\\n")
    sys.__stdout__.write("original\\n")
    OUT.write("kept\\n")
    os.write(1, b"descriptor\\n")
    subprocess.run(["echo", "subprocess"], check=True)
    os.system("echo shell")
    ctypes.CDLL(None).printf(b"library\\n")
    thread = threading.Thread(target=print, args=("thread",))
    thread.start()
    thread.join()
    logging.getLogger("theirs").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("theirs").warning("handler")

async def down(connection):
    print("print")
"""
NOISES = ["top level", "print", "no newline", "write", "original", "kept", "thread", "handler"]
NOISES += ["descriptor", "subprocess", "shell", "library", "farewell"]


class TestWhatAMigrationPrints:
    def loud(self, write: Write, more: str = "") -> Path:
        return write(
            {"1_a.sql": "CREATE TABLE a ();", "2_b.py": NOISE.replace("\nasync def down", f"{more}\nasync def down")}
        )

    @pytest.mark.parametrize("arguments", [["up"], ["up", "--rehearse"], ["up", "-v"]])
    async def test_prints_of_a_migration_are_not_in_the_document(
        self, dsn: str, write: Write, program: Program, arguments: list[str]
    ) -> None:
        result = program.run(*arguments, "--json", "--dsn", dsn, "--dir", self.loud(write))

        assert (result.returncode, document(result)["ok"]) == (0, True)
        assert [noise for noise in NOISES if noise not in result.stderr] == []

    async def test_prints_of_a_migration_are_not_in_the_document_of_a_failure(
        self, dsn: str, write: Write, program: Program
    ) -> None:
        folder = self.loud(write, "    sys.stdout.close()\n    raise LookupError('no')")
        result = program.run("up", "--json", "--dsn", dsn, "--dir", folder)

        assert (result.returncode, document(result)["error"]["failure"]["version"]) == (1, "2")
        self.loud(write)
        reverted = [program.run(verb, "--json", "--dsn", dsn, "--dir", folder) for verb in ("up", "down")]
        assert [(result.returncode, document(result)["ok"]) for result in reverted] == [(0, True)] * 2

    async def test_prints_of_a_migration_are_not_in_the_document_of_an_interruption(
        self, dsn: str, write: Write, program: Program
    ) -> None:
        folder = write(
            {"1_a.py": python("print('ready', flush=True)\nawait connection.execute('SELECT pg_sleep(600)')")}
        )
        process = program.start("up", "--json", "--dsn", dsn, "--dir", folder)
        said(process, b"ready")
        process.send_signal(signal.SIGTERM)
        result = ended(process)

        assert (result.returncode, document(result)["error"]["signal"]) == (143, "SIGTERM")

    async def test_prints_of_a_migration_are_on_stdout_without_a_document(
        self, dsn: str, write: Write, program: Program
    ) -> None:
        result = program.run("up", "--dsn", dsn, "--dir", self.loud(write))

        assert result.returncode == 0
        assert [noise for noise in NOISES if noise not in result.stdout] == []
        assert "applied 2 b" in result.stdout


BLOCKED = "print('blocked', file=sys.stderr, flush=True)\n"
BLOCKING = {
    "a sleep": "time.sleep(600)",
    "a loop": "while True: pass",
    "a subprocess": "subprocess.run(['sleep', '600'])",
    "a lock": "threading.Event().wait()",
    "a pipe": "os.read(os.pipe()[0], 1)",
    "a loop that catches everything": "while True:\n    try: time.sleep(600)\n    except BaseException: pass",
    "a shielded wait": "import anyio\nwith anyio.CancelScope(shield=True): await anyio.sleep(600)",
    "a thread that is waited for": "import anyio\nawait anyio.to_thread.run_sync(time.sleep, 600)",
    "a thread that is left behind": "import asyncio\nawait asyncio.to_thread(time.sleep, 600)",
}
IMPORTS = "import os, subprocess, sys, threading, time"


def said(process: "subprocess.Popen[bytes]", what: bytes) -> None:
    """Return once a process has said something on stderr."""
    assert process.stderr is not None
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    read = b""
    while what not in read:
        more = os.read(process.stderr.fileno(), 4096)
        assert more, f"it has ended, and said {read!r}"
        read += more
    watchdog.cancel()


async def noticed(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Return once a process has taken notice of its first signal: it does not catch the next one any more."""

    async def is_default() -> bool:
        status = await anyio.Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
        return not int(caught, 16) >> (number - 1) & 1

    await until(is_default)


@needs_proc
class TestASecondSignal:
    @pytest.mark.parametrize(
        ("body", "number"),
        [
            pytest.param(body, (signal.SIGINT, signal.SIGTERM)[each % 2], id=name)
            for each, (name, body) in enumerate(BLOCKING.items())
        ],
    )
    async def test_a_second_signal_ends_a_blocked_process(
        self, dsn: str, write: Write, program: Program, body: str, number: signal.Signals
    ) -> None:
        blocking = python(f"await connection.execute('CREATE TABLE a ()')\n{BLOCKED}{body}", IMPORTS)
        folder = write({"1_a.py": blocking})
        process = program.start("up", "--json", "--dsn", dsn, "--dir", folder)
        said(process, b"blocked")
        process.send_signal(number)
        await noticed(process, number)
        assert process.poll() is None
        process.send_signal(number)

        assert process.wait(PATIENCE) == -number
        await deserted(dsn)
        assert not await exists(dsn, "a")
        write({"1_a.py": python("await connection.execute('CREATE TABLE a ()')")})
        await Migrator(dsn, folder).up()
        assert await states(dsn) == {"1": "applied"}

    @pytest.mark.parametrize(("first", "second"), [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
    async def test_a_second_signal_may_be_the_other_one(
        self, dsn: str, write: Write, program: Program, first: signal.Signals, second: signal.Signals
    ) -> None:
        folder = write({"1_a.py": python(f"{BLOCKED}time.sleep(600)", IMPORTS)})
        process = program.start("up", "--dsn", dsn, "--dir", folder)
        said(process, b"blocked")
        process.send_signal(first)
        await noticed(process, second)
        process.send_signal(second)

        assert ended(process).returncode == -second
        await deserted(dsn)
        write({"1_a.py": python("pass")})
        await Migrator(dsn, folder).up()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    async def test_a_second_signal_ends_a_read_of_files_that_never_ends(
        self, program: Program, number: signal.Signals
    ) -> None:
        os.mkfifo(program.folder / "pipe")
        read = f"import sys\nfrom pgratchet.files import directory\ndef read(_):\n    {BLOCKED}    open('pipe')"
        process = program.start("up", "--dsn", NOWHERE, code=f"{read}\ndirectory.read = read")
        said(process, b"blocked")
        process.send_signal(number)
        await noticed(process, number)
        process.send_signal(number)

        assert ended(process).returncode == -number

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    async def test_a_second_signal_is_not_needed_where_nothing_blocks(
        self, dsn: str, write: Write, program: Program, number: signal.Signals
    ) -> None:
        folder = write({"1_a.py": python(f"{BLOCKED}await connection.execute('SELECT pg_sleep(600)')", IMPORTS)})
        process = program.start("up", "--json", "--dsn", dsn, "--dir", folder)
        said(process, b"blocked")
        process.send_signal(number)
        result = ended(process)

        assert (result.returncode, document(result)["error"]["signal"]) == (128 + number, number.name)
        write({"1_a.py": python("pass")})
        await Migrator(dsn, folder).up()


REPORTS = [("--help",), ("--version",), ("up", "--help"), ("up",), ("up", "--json")]


class TestAFullDisk:
    @needs_full
    @pytest.mark.parametrize("arguments", REPORTS)
    async def test_a_full_disk_behind_stdout_is_told_and_is_no_failed_migration(
        self, dsn: str, write: Write, program: Program, arguments: tuple[str, ...]
    ) -> None:
        settings = {"DATABASE_URL": dsn, "PGRATCHET_DIR": str(write(ONE))}
        with open(FULL, "wb") as full:  # noqa: ASYNC230, PTH123 - nothing else runs
            result = program.run(*arguments, env=settings, stdout=full)

        assert result.returncode == 7
        assert "error: stdout has not taken the whole report: " in result.stderr
        assert "Traceback" not in result.stderr
        assert "Exception ignored" not in result.stderr
        await Migrator(dsn, write(ONE)).up()
        assert await states(dsn) == {"1": "applied"}

    @needs_full
    @pytest.mark.parametrize("both", [False, True])
    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (("check",), 3),
            (("up", "--budgte"), 2),
            (("up", "--verbose"), 0),
        ],
    )
    async def test_a_full_disk_behind_stderr_leaves_the_exit_code_as_it_is(  # noqa: PLR0913 - fixtures, and the cases
        self, dsn: str, write: Write, program: Program, arguments: tuple[str, ...], code: int, *, both: bool
    ) -> None:
        settings = {"DATABASE_URL": dsn, "PGRATCHET_DIR": str(write(ONE))}
        with open(FULL, "wb") as full:  # noqa: ASYNC230, PTH123 - nothing else runs
            more = {"stdout": full} if both else {}
            result = program.run(*arguments, env=settings, stderr=full, **more)

        assert result.returncode == (7 if both and not code else code)
        await Migrator(dsn, write(ONE)).up()

    @needs_full
    async def test_a_full_disk_does_not_hide_a_failed_migration(self, dsn: str, write: Write, program: Program) -> None:
        noise = "print('x' * 100_000)\nraise LookupError('no')"
        folder = write({"1_a.py": python(noise)})
        settings = {"DATABASE_URL": dsn, "PGRATCHET_DIR": str(folder)}
        with open(FULL, "wb") as full:  # noqa: ASYNC230, PTH123 - nothing else runs
            plain = program.run("up", env=settings, stdout=full)
            as_json = program.run("up", "--json", env=settings, stdout=full)

        assert (plain.returncode, as_json.returncode) == (1, 1)
        assert "LookupError" in plain.stderr
        write({"1_a.py": python("pass")})
        await Migrator(dsn, folder).up()


class TestAStream:
    @pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
    @pytest.mark.parametrize("flags", [(), ("--json",)])
    async def test_a_closed_stream_is_one_that_nobody_reads(
        self, dsn: str, write: Write, program: Program, closed: str, flags: tuple[str, ...]
    ) -> None:
        files = {"2_b.py": NOISE.replace("sys.__stdout__", "OUT")}
        settings = {"DATABASE_URL": dsn, "PGRATCHET_DIR": str(write(ONE | files))}
        shell = ["sh", "-c", f'exec "$0" -m pgratchet "$@" {closed}', sys.executable]
        codes = []
        for command in ("check", "up"):
            process = await anyio.run_process(
                [*shell, command, *flags], cwd=program.folder, env=CLEAN | settings, check=False
            )
            codes.append(process.returncode)

        assert codes == [3, 0]
        assert await states(dsn) == {"1": "applied", "2": "applied"}

    @pytest.mark.parametrize("arguments", REPORTS)
    async def test_a_stream_whose_reader_has_gone_wants_no_more(
        self, dsn: str, write: Write, program: Program, arguments: tuple[str, ...]
    ) -> None:
        read, write_ = os.pipe()
        os.close(read)
        settings = {"DATABASE_URL": dsn, "PGRATCHET_DIR": str(write(ONE))}
        try:
            result = program.run(*arguments, env=settings, stdout=write_, stderr=write_)
        finally:
            os.close(write_)

        assert result.returncode == 0
        assert await exists(dsn, "a") == (arguments in REPORTS[3:])

    @pytest.mark.parametrize("encoding", ["ascii:strict", "cp1252", "utf-16"])
    async def test_a_stream_whose_encoding_lacks_a_character_shows_it_escaped(
        self, dsn: str, write: Write, program: Program, encoding: str
    ) -> None:
        folder = write({"1_größe_日本.sql": "DO $$BEGIN RAISE NOTICE '🦀 größe'; END$$;"})
        settings = {"DATABASE_URL": dsn, "PGRATCHET_DIR": str(folder), "PYTHONIOENCODING": encoding}
        results = [program.run(*command, env=settings) for command in (["plan"], ["up", "--json"], ["status"])]

        assert [result.returncode for result in results] == [0, 0, 0]
        assert all(result.stdout and "Traceback" not in result.stderr for result in results)


class TestReadiness:
    def test_readiness_is_a_snapshot_in_every_thread(self) -> None:
        versions = tuple(map(str, range(2000)))
        course = Course(own.rank)
        course.take(Looked(5, versions, (), (), ("9999",)))
        over = threading.Event()
        wrong: list[object] = []

        def look() -> None:
            try:
                while not over.is_set():
                    now = course.readiness
                    if now.applied + len(now.pending) + len(now.running) != 5 + len(versions):
                        wrong.append(now)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is wrong
                wrong.append(error)

        threads = [threading.Thread(target=look) for _ in range(4)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for version in versions:
                course.take(Started(version, "x", Direction.UP, 1))
                course.take(Finished(version, "x", Direction.UP, 1, None))
        finally:
            over.set()
            for thread in threads:
                thread.join()
            sys.setswitchinterval(interval)

        assert wrong == []
        assert (course.readiness.applied, course.readiness.pending) == (5 + len(versions), ())

    def test_readiness_is_summed_up_once_for_each_change(self) -> None:
        course = Course(own.rank)
        course.take(Looked(0, tuple(map(str, range(10_000))), (), (), ()))
        before = course.readiness

        assert course.readiness is before
        course.take(Started("1", "x", Direction.UP, 1))
        assert course.readiness.running == ("1",)

    def test_a_signal_handler_may_ask_for_readiness_at_each_line_that_takes_an_event(self) -> None:
        course = Course(own.rank)
        course.take(Looked(0, ("1", "2"), (), (), ()))
        asked = []

        def ask(frame: FrameType, *_: object) -> Any:
            """Ask as a signal handler does, which runs between two lines of the thread that it interrupts."""
            if frame.f_code is not Course.take.__code__:
                return None
            asked.append(course.readiness)
            return ask

        before = sys.gettrace()
        sys.settrace(ask)
        try:
            course.take(Started("1", "x", Direction.UP, 1))
            started = course.readiness
            course.take(Finished("1", "x", Direction.UP, 1, None))
            finished = course.readiness
            course.take(Looked(0, ("1", "2"), (), (), ()))
        finally:
            sys.settrace(before)

        assert len(asked) > 10
        assert (started.pending, started.running) == (("2",), ("1",))
        assert (finished.applied, finished.pending, finished.running) == (1, ("2",), ())
        assert (course.readiness.applied, course.readiness.pending) == (0, ("1", "2"))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for before another try."""
    monkeypatch.setattr("pgratchet.postgres.wire.sending.backoff", lambda _: (0, 0))


COUNTED = "CREATE SEQUENCE tries"
CODES = ["40001", "40P01", "55P03"]
RAISE = "DO $$BEGIN RAISE 'again and again' USING ERRCODE = '{}'; END$$"
BY_HAND = {
    "40001": "raise asyncpg.SerializationError('again and again')",
    "40P01": "raise asyncpg.DeadlockDetectedError('again and again')",
    "55P03": "raise type('Mine', (asyncpg.LockNotAvailableError,), {})('again and again')",
}
RAISING = {
    "a transaction": lambda code: {"1_a.sql": f"SELECT nextval('tries'); {RAISE.format(code)};"},
    "a function": lambda code: {
        "1_a.sql": "SELECT nextval('tries');"
        f"CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $f$BEGIN RAISE SQLSTATE '{code}'; END$f$; SELECT f();"
    },
    "a statement": lambda code: {
        "1_a.sql": f"-- pgratchet: no-transaction\nDO $$BEGIN PERFORM nextval('tries'); RAISE SQLSTATE '{code}'; END$$;"
    },
    "a bare statement": lambda code: {
        "1_a.sql": "-- pgratchet: no-transaction\nCREATE TABLE t (n int); INSERT INTO t VALUES (1);"
        "CREATE FUNCTION f(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS "
        f"$f$BEGIN PERFORM nextval('public.tries'); RAISE SQLSTATE '{code}'; END$f$;"
        "CREATE INDEX CONCURRENTLY i ON t (f(n));"
    },
    "Python": lambda code: {
        "1_a.py": python(f"await connection.execute(\"SELECT nextval('tries'); {RAISE.format(code)}\")")
    },
    "Python, by hand": lambda code: {
        "1_a.py": python(f"await connection.execute(\"SELECT nextval('tries')\")\n{BY_HAND[code]}", "import asyncpg")
    },
}


def error(code: str, **fields: str) -> asyncpg.PostgresError:
    """Return what asyncpg makes of an error of the server, by the letters of its fields."""
    made = asyncpg.PostgresError.new({"S": "ERROR", "C": code, "M": "no"} | fields)
    assert isinstance(made, asyncpg.PostgresError)
    return made


@pytest.mark.usefixtures("hurried")
class TestAnErrorThatMayPass:
    @pytest.mark.parametrize("files", RAISING.values(), ids=RAISING.keys())
    @pytest.mark.parametrize("code", CODES)
    async def test_a_temporary_error_that_code_raises_is_tried_again_a_few_times(
        self, dsn: str, write: Write, code: str, files: Callable[[str], Mapping[str, str]]
    ) -> None:
        await tell(dsn, COUNTED)
        migrator = Migrator(dsn, write(files(code)))
        assert (await failure_of(migrator)).failure.sqlstate == code
        assert await ask(dsn, "SELECT last_value FROM tries") == 1 + MOST[Cause.CODE]
        for path in write({}).iterdir():
            path.unlink()
        write({"1_a.sql": "SELECT 1;"})
        await tell(dsn, "DELETE FROM schema_migrations")
        await migrator.up()
        assert await states(dsn) == {"1": "applied"}

    async def test_a_lock_timeout_is_tried_again_for_as_long_as_somebody_has_the_lock(
        self, dsn: str, write: Write
    ) -> None:
        """And one lost race after that is not taken for one of many."""
        lost = "'tuple concurrently updated' USING ERRCODE = 'XX000'"
        raced = f"DO $$BEGIN IF nextval('tries') = 1 THEN RAISE {lost}; END IF; END$$;"
        await tell(dsn, f"CREATE TABLE busy (n int); {COUNTED}")
        folder = write({"1_a.sql": f"ALTER TABLE busy ADD m int; {raced}"})
        retries: list[Retried] = []

        def listen(event: Event) -> None:
            if isinstance(event, Retried):
                retries.append(event)

        async def many() -> bool:
            return len(retries) > 5 * MOST[Cause.CODE]

        with anyio.fail_after(PATIENCE):
            async with connected(dsn) as batch, anyio.create_task_group() as tasks:
                await batch.execute("BEGIN; LOCK TABLE busy IN ACCESS SHARE MODE")
                tasks.start_soon(Migrator(without_tls(dsn), folder, lock_timeout=0.01, listener=listen).up)
                await until(many)
                await batch.execute("COMMIT")
        assert await states(dsn) == {"1": "applied"}
        assert await ask(dsn, "SELECT last_value FROM tries") == 2

    @pytest.mark.parametrize("code", CODES)
    async def test_a_temporary_error_that_a_trigger_raises_where_the_history_is_made_fails_in_the_end(
        self, dsn: str, write: Write, code: str
    ) -> None:
        raising = f"RETURNS event_trigger LANGUAGE plpgsql AS $f$BEGIN RAISE SQLSTATE '{code}'; END$f$"
        await tell(
            dsn, f"CREATE FUNCTION f() {raising}; CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION f()"
        )
        migrator = Migrator(dsn, write(ONE))
        with anyio.fail_after(PATIENCE), pytest.raises(ServerError, match=code):
            await migrator.up()
        await tell(dsn, "DROP EVENT TRIGGER e")
        await migrator.up()
        assert await states(dsn) == {"1": "applied"}

    @pytest.mark.parametrize(
        ("cause", "failed"),
        [
            (Cause.LOCK, error("55P03", R="ProcessInterrupts")),
            (Cause.LOCK, error("55P03", R="RangeVarGetRelidExtended")),
            (Cause.CONFLICT, error("40P01", R="DeadLockReport")),
            (Cause.CONFLICT, error("40001", R="ExecUpdate")),
            (Cause.RACE, error("XX000", M="tuple concurrently updated", R="simple_heap_update")),
            (Cause.RACE, error("23505", s="pg_catalog", R="_bt_check_unique")),
            (Cause.CODE, error("40001", R="exec_stmt_raise")),
            (Cause.CODE, error("55P03")),
            (Cause.CODE, error("55P03", R="dblink_res_error")),
            (Cause.CODE, asyncpg.DeadlockDetectedError("by hand")),
        ],
    )
    def test_each_temporary_error_is_tried_again_so_often(self, cause: Cause, failed: asyncpg.PostgresError) -> None:
        tries, often = Tries(), min(1000, MOST[cause])
        count = 0
        while count < 1000 and tries.may_succeed_after(failed):
            count += 1

        assert count == often
        if cause is not Cause.LOCK:
            assert tries.may_succeed_after(error("55P03", R="ProcessInterrupts"))

    @pytest.mark.parametrize("code", ["57014", "P0001", "23505", "XX000", "42P07"])
    def test_any_other_error_is_not_tried_again_at_all(self, code: str) -> None:
        assert not Tries().may_succeed_after(error(code, R="exec_stmt_raise"))


class TestAReadOnlyServer:
    async def test_a_read_only_server_is_told_from_a_standby(self, dsn: str, write: Write) -> None:
        async with a_role(dsn) as role:
            await tell(dsn, f"GRANT CREATE ON SCHEMA public TO {role}")
            await tell(dsn, f"ALTER ROLE {role} SET default_transaction_read_only = on")
            migrator = Migrator(as_role(dsn, role), write(ONE))
            with pytest.raises(ServerError, match="default_transaction_read_only is on") as caught:
                await migrator.up()
            assert "primary" not in str(caught.value)
            await tell(dsn, f"ALTER ROLE {role} RESET default_transaction_read_only")
            await migrator.up()
            assert await states(dsn) == {"1": "applied"}


class TestAMigratorWhoseArgumentsWereRefused:
    @pytest.mark.parametrize(
        "given", [{"table": "a.b.c"}, {"budget": -1}, {"lock": "x"}, {"owner": "none"}, {"dsn": "x"}]
    )
    def test_a_migrator_whose_arguments_were_refused_has_a_representation(self, given: dict[str, Any]) -> None:
        migrator = Migrator.__new__(Migrator)
        with pytest.raises(UsageError):
            migrator.__init__(**({"dsn": NOWHERE} | given))  # type: ignore[misc]  # what a call of the class does
        assert repr(migrator) == "Migrator(), whose arguments were refused"
        assert SECRET not in repr(Migrator(NOWHERE))


@pytest.mark.parametrize("extensions", [{}, {"extensions": None}, {"extensions": {}}])
async def test_a_websocket_whose_extensions_are_none_is_refused(extensions: dict[str, Any]) -> None:
    async def application(*_: object) -> None:
        raise AssertionError("nothing is served")

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/"} | extensions
    await gate(application, Migrator(NOWHERE))(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


class TestARepair:
    @pytest.mark.parametrize("reason", ["a\0b", "a\udcffb"])
    async def test_a_repair_takes_no_reason_that_cannot_be_stored(self, dsn: str, write: Write, reason: str) -> None:
        migrator = Migrator(dsn, write(ONE))
        with pytest.raises(UsageError, match="reason"):
            await migrator.repair(1, "applied", reason)  # type: ignore[arg-type]  # as a caller without types has it
        await migrator.repair(1, "applied", "größe\n🦀")  # type: ignore[arg-type]  # the same
        assert await states(dsn) == {"1": "applied"}
