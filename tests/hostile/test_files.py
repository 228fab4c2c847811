"""Files, names and rows as nobody would write them on purpose: each is read as it is meant, or refused in words."""

import ast
import errno
import importlib.resources
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgratchet import HistoryError, MigrationFailedError, Migrator, ServerError, Verdict
from pgratchet.cli.settings import read as read_settings
from pgratchet.core.errors import FilesError, UsageError
from pgratchet.core.model import (
    Catalogue,
    Direction,
    Entry,
    File,
    Finished,
    ForeignRow,
    HistoryRow,
    Kind,
    Options,
    Problem,
    RecordState,
    Source,
    State,
)
from pgratchet.core.plan import planning
from pgratchet.core.sql.scripts import compile_script
from pgratchet.core.sql.statements import scan
from pgratchet.files import directory, parsing
from pgratchet.files.layouts.own import own
from pgratchet.migrator import new
from pgratchet.postgres.ledger.foreign import homemade
from pgratchet.runs import journal
from pgratchet.testing.released import NotComparableError, edits
from tests.support import exists, states, tell

Write = Callable[[Mapping[str, str | bytes]], Path]

FORMS: tuple[Literal["NFC"], Literal["NFD"]] = ("NFC", "NFD")
NOBODY = 65534
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
LINE_BREAKS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A test that waits for a pipe fails, instead of waiting for ever."""

    def give_up(_: int, __: FrameType | None) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def program(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pgratchet", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=30, check=False)


def parsed(contents: Mapping[str, str | bytes]) -> Catalogue:
    bodies = {name: text.encode() if isinstance(text, str) else text for name, text in contents.items()}
    return own.parse(File(name, f"m/{name}", body) for name, body in bodies.items())


def problem_of(contents: Mapping[str, str | bytes]) -> Problem:
    with pytest.raises(FilesError) as caught:
        parsed(contents)
    (problem,) = caught.value.problems
    return problem


def options_of(text: str, kind: Kind = Kind.SQL) -> Options:
    found = parsing.read(File("1_a.sql", "m/1_a.sql", text.encode()), kind, "1", own)
    assert found.problems == ()
    return found.source.options


# What is in the folder


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as endless, contextmanager(_inside)(path.parent):
        endless.bind(path.name)  # by its name alone: the path of a socket may have 100 bytes


def _inside(folder: Path) -> Iterator[None]:
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link_to_a_folder(path: Path) -> None:
    path.symlink_to(path.parent)


def a_link_to_a_device_without_end(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_link_to_a_device_without_content(path: Path) -> None:
    path.symlink_to("/dev/null")


def a_link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.parent / "pipe")
    path.symlink_to("pipe")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def links_in_a_circle(path: Path) -> None:
    path.symlink_to("other")
    (path.parent / "other").symlink_to(path.name)


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere/b.sql")


THINGS = [
    (a_pipe, "a named pipe"),
    (a_socket, "a socket"),
    (a_folder, "a folder"),
    (a_link_to_a_folder, "a folder"),
    (a_link_to_a_device_without_end, "a device"),
    (a_link_to_a_device_without_content, "a device"),
    (a_link_to_a_pipe, "a named pipe"),
    (a_link_to_itself, "leads back to itself"),
    (links_in_a_circle, "leads back to itself"),
    (a_link_to_nothing, "a link to nothing"),
]
CURES = ("move it away, or rename it", "put the file in its place", "remove it, or restore the file")


@pytest.mark.parametrize("name", ["002_b.sql", "002_b.down.sql", "002_b.py"])
@pytest.mark.parametrize(("make", "kind"), THINGS)
def test_an_entry_that_is_no_file_is_refused_with_its_path_its_kind_and_a_cure(
    tmp_path: Path, make: Callable[[Path], None], kind: str, name: str
) -> None:
    make(tmp_path / name)

    with pytest.raises(UsageError, match=re.escape(str(tmp_path / name))) as caught:
        list(directory.read(tmp_path))

    assert kind in str(caught.value)
    assert any(cure in str(caught.value) for cure in CURES)


@pytest.mark.parametrize(("make", "kind"), THINGS)
def test_nothing_is_written_beside_an_entry_that_is_no_file(
    tmp_path: Path, make: Callable[[Path], None], kind: str
) -> None:
    make(tmp_path / "002_b.sql")
    before = sorted(tmp_path.iterdir())

    with pytest.raises(UsageError, match=kind):
        new(tmp_path, "next")

    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", [".002_b.sql", "_002_b.sql", "002_b.txt", "README"])
@pytest.mark.parametrize(("make", "_"), THINGS)
def test_a_file_without_a_migrations_name_is_not_even_opened(
    tmp_path: Path, make: Callable[[Path], None], _: str, name: str
) -> None:
    make(tmp_path / name)

    assert list(directory.read(tmp_path)) == []


def test_a_run_does_not_wait_for_a_pipe_and_goes_on_once_it_is_gone(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a ();"})
    a_pipe(folder / "002_b.sql")
    monkeypatch.setenv("PGRATCHET_DSN", dsn)
    arguments = ("up", "--dir", str(folder), "--budget", "1")

    refused = program(*arguments)
    (folder / "002_b.sql").unlink()
    (folder / "002_b.sql").write_text("CREATE TABLE b ();")
    done = program(*arguments)

    assert refused.returncode == 2
    assert f"'{folder / '002_b.sql'}': it is a named pipe" in refused.stderr
    assert (done.returncode, done.stdout.count("applied")) == (0, 2)


def test_a_file_that_nobody_may_read_is_refused_with_a_cure() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "001_a.sql")
        path.write_text("SELECT 1;")
        path.chmod(0)
        Path(folder).chmod(0o755)
        root = os.geteuid() == 0
        if root:
            os.seteuid(NOBODY)
        try:
            with pytest.raises(UsageError, match=r"001_a\.sql.*Permission denied; allow the user that runs"):
                list(directory.read(folder))
        finally:
            if root:
                os.seteuid(0)
        path.chmod(0o644)

        assert [file.content for file in directory.read(folder)] == [b"SELECT 1;"]


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "001_a.sql"
    path.write_text("SELECT 1;")
    read = os.read

    def grown(descriptor: int, most: int) -> bytes:
        with path.open("a") as file:
            file.write("SELECT 2;\n" * 10)
        return read(descriptor, most)

    monkeypatch.setattr("os.read", grown)
    with pytest.raises(UsageError, match=r"001_a\.sql.*written to while it was read"):
        list(directory.read(tmp_path))
    monkeypatch.undo()

    assert [file.content for file in directory.read(tmp_path)] == [path.read_bytes()]


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "001_a.sql"
    path.write_text("SELECT 1;")
    read = os.read

    def cut(descriptor: int, most: int) -> bytes:
        os.truncate(path, 3)
        return read(descriptor, most)

    monkeypatch.setattr("os.read", cut)
    with pytest.raises(UsageError, match=r"001_a\.sql.*written to while it was read"):
        list(directory.read(tmp_path))


def test_a_file_that_comes_in_small_pieces_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "001_a.sql").write_text("SELECT 1;" * 10)
    read = os.read
    monkeypatch.setattr("os.read", lambda descriptor, most: read(descriptor, min(most, 7)))

    assert [file.content for file in directory.read(tmp_path)] == [b"SELECT 1;" * 10]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="has no /proc")
def test_a_link_to_an_entry_that_only_looks_like_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "001_a.sql").symlink_to("/proc/self/environ")

    with pytest.raises(UsageError, match=r"001_a\.sql"):
        list(directory.read(tmp_path))


def test_a_file_larger_than_any_script_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "001_a.sql").open("wb") as file:
        file.truncate(100 << 30)

    with pytest.raises(UsageError, match=r"001_a\.sql.*107374182400 bytes"):
        list(directory.read(tmp_path))


def test_a_file_of_100_megabytes_is_read(tmp_path: Path) -> None:
    with (tmp_path / "001_a.sql").open("wb") as file:
        file.truncate(100 << 20)

    assert [len(file.content) for file in directory.read(tmp_path)] == [100 << 20]


def test_a_pipe_within_a_namespace_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "hostile_namespace" / "versions"
    folder.mkdir(parents=True)
    (folder / "001_a.sql").write_text("SELECT 1;")
    monkeypatch.syspath_prepend(tmp_path)
    location = importlib.resources.files("hostile_namespace.versions")
    assert not isinstance(location, os.PathLike)
    assert [file.content for file in directory.read(location)] == [b"SELECT 1;"]

    a_pipe(folder / "002_b.sql")

    with pytest.raises(UsageError, match=r"002_b\.sql.*a named pipe"):
        list(directory.read(location))


def test_a_folder_of_an_archive_with_a_migrations_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w") as archive:
        archive.writestr("versions/001_a.sql", "SELECT 1;")
        archive.writestr("versions/002_b.sql/c.sql", "SELECT 1;")

    with pytest.raises(UsageError, match=r"002_b\.sql.*a folder"):
        list(directory.read(zipfile.Path(tmp_path / "wheel.zip", "versions/")))


@pytest.mark.parametrize("folder", ["mig\0rations", "mig\ud800rations"])
def test_a_path_that_no_folder_has_is_refused(folder: str) -> None:
    with pytest.raises(UsageError, match="cannot be the path of a folder"):
        list(directory.read(folder))
    with pytest.raises(UsageError, match=r"mig.*rations"):
        new(folder, "next")


def test_a_working_directory_that_is_gone_is_named_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    with pytest.raises(UsageError, match="'migrations', relative to a working directory that is gone"):
        list(directory.read("migrations"))


@pytest.mark.parametrize(("make", "kind"), THINGS)
def test_settings_that_are_no_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], kind: str
) -> None:
    make(tmp_path / "pyproject.toml")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UsageError, match=f"cannot read pyproject.toml: .*{kind}"):
        read_settings({})


def test_settings_that_are_not_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert read_settings({}) == {}


STEP = Finished("1", "a", Direction.UP, 1, 0.5)


def test_a_journal_that_is_a_pipe_without_a_reader_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a_pipe(tmp_path / "journal")

    journal.append(tmp_path / "journal", [STEP])

    assert "cannot be written" in caplog.text


def test_a_journal_that_is_a_pipe_with_a_reader_gets_its_lines(tmp_path: Path) -> None:
    a_pipe(tmp_path / "journal")
    reader = os.open(tmp_path / "journal", os.O_RDONLY | os.O_NONBLOCK)
    try:
        journal.append(tmp_path / "journal", [STEP])

        assert b'"version": "1"' in os.read(reader, 1000)
    finally:
        os.close(reader)


def test_a_journal_that_is_new_may_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        journal.append(tmp_path / "journal", [STEP])
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o644


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A folder of a repository with one migration, which is released."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "001_a.sql").write_text("SELECT 1;")
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


def git(folder: Path, *arguments: str) -> None:
    who = {f"GIT_{role}_{what}": "a@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", "-C", folder, *arguments], check=True, env=os.environ | who | quiet, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all", ".")
    git(folder, "commit", "--quiet", "--message=release")
    git(folder, "update-ref", "refs/remotes/origin/main", "HEAD")


@pytest.mark.parametrize(("make", "kind"), THINGS)
def test_a_comparison_with_released_files_does_not_wait_for_an_entry_that_is_no_file(
    released: Path, make: Callable[[Path], None], kind: str
) -> None:
    make(released / "002_b.sql")

    with pytest.raises(UsageError, match=kind):
        edits(released, "origin/main", own)


def test_a_released_file_that_git_has_lost_is_named(released: Path) -> None:
    (blob,) = [path for path in (released / ".git" / "objects").glob("??/*") if is_blob(released, path)]
    blob.unlink()

    with pytest.raises(NotComparableError, match=r"001_a\.sql of \w+ is missing"):
        edits(released, "origin/main", own)


def is_blob(folder: Path, path: Path) -> bool:
    name = path.parent.name + path.name
    kind = subprocess.run(["git", "-C", folder, "cat-file", "-t", name], capture_output=True, check=True)
    return kind.stdout == b"blob\n"


def test_a_released_link_with_a_line_break_in_its_name_is_named(released: Path) -> None:
    (released / "002_b\nc.sql").symlink_to("001_a.sql")
    commit(released)
    (released / "002_b\nc.sql").unlink()

    with pytest.raises(NotComparableError, match=r"002_b\\nc\.sql of \w+ has a line break in its name"):
        edits(released, "origin/main", own)


# What a new migration is described as

DESCRIPTIONS = [
    *(f"add x{each}DROP TABLE users;" for each in LINE_BREAKS),
    *(f"add x{each}import os; os._exit(9)" for each in LINE_BREAKS),
    *(f"add x{each}-- pgratchet: no-transaction" for each in LINE_BREAKS),
    *(f"add x{each}# pgratchet: statement-timeout=1s" for each in LINE_BREAKS),
    *(f"add x{each}-- Version: 99" for each in LINE_BREAKS),
    "pgratchet: no-transaction",
    "-- pgratchet: no-transaction",
    "# pgratchet: lock-timeout=1s",
    "Version: 99",
    "-- Version: 99",
    "*/ DROP TABLE users; /*",
    "/* never closed",
    "it's \"$$ never closed",
    "a \\ b",
    "\\! rm x",
    '"""a',
    "fix coding: utf-16",
    "fix coding=rot13",
    "-*- coding: latin-1 -*-",
    "\x1b[31mred\x1b[0m \x07",
    "a\0b",
    "a\ud800\udcffb",
    "\ufeffa",
    "a\u202eb\u2066c",
]


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=ascii)
@pytest.mark.parametrize("kind", Kind)
def test_a_description_stays_within_its_comment(tmp_path: Path, description: str, kind: Kind) -> None:
    paths = new(tmp_path, description, kind)

    catalogue = own.parse(directory.read(tmp_path))
    (migration,) = catalogue.migrations
    assert (migration.version, migration.up.options) == ("1", Options())
    for path in paths:
        text = path.read_bytes().decode()
        first, second, third = re.split(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", text)[:3]
        assert first[2:].lstrip().startswith("Migration: ")
        assert first.isprintable()
        assert (second[2:].strip(), third[2:].strip()[:5]) == ("Version: 001", "Date:")
        if kind is Kind.SQL:
            assert list(scan(text)) == []
        else:
            # From bytes, as an editor or a linter reads it: what looks like an encoding counts there.
            names = [node.name for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.AsyncFunctionDef)]
            assert (names, len(ast.parse(text).body)) == (["up", "down"], 2)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300) | st.text("aé\u0301ö_.- \n\r\u2028#:*/'\u200d\u064b\u0939\u093f\U0001f680", max_size=400))
def test_any_description_is_written_as_a_comment_or_refused(description: str) -> None:
    for kind in Kind:
        try:
            contents = own.draft((), description, kind, datetime(2026, 1, 2, tzinfo=UTC))
        except UsageError as error:
            assert "no letter or digit" in str(error)  # noqa: PT017 - most descriptions are no errors
            continue
        (migration,) = parsed(contents).migrations
        assert migration.up.options == Options()
        assert all(len(name.encode()) <= 143 for name in contents)
        assert all(unicodedata.is_normalized("NFC", name) for name in contents)
        for text in contents.values():
            assert len(text.splitlines()) == len(text.split("\n")) - text.endswith("\n")
            assert kind is Kind.PYTHON or list(scan(text)) == []


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("Add users", "add_users"),
        ("  Add   users!  ", "add_users"),
        ("JIRA-12: add (more) users...", "jira_12_add_more_users"),
        ("../../etc/passwd", "etc_passwd"),
        ("..hidden", "hidden"),
        ("__init__", "init"),
        ("con", "con"),
        ("nul.txt", "nul_txt"),
        ("a.down", "a_down"),
        ("a.sql", "a_sql"),
        ("größe", "größe"),
        (unicodedata.normalize("NFD", "größe"), "größe"),
        ("İstanbul", "i\u0307stanbul"),
        ("हिन्दी में", "हिन्दी_में"),
        ("เพิ่มผู้ใช้", "เพิ่มผู้ใช้"),
        ("הוספת משתמשים", "הוספת_משתמשים"),
        ("می\u200cروم من", "می\u200cروم_من"),
        ("ශ්\u200dරී ලංකා", "ශ්\u200dරී_ලංකා"),
        ("a\u200db \u200cc", "a_b_c"),
        ("\u202eadd\u202c users", "add_users"),
        ("🚀 ship it 🚀", "ship_it"),
        ("🏳\ufe0f\u200d🌈 colours", "colours"),
        ("\u0301leading mark", "leading_mark"),
        ("a\tb\nc", "a_b_c"),
    ],
)
def test_a_file_is_named_after_the_words_of_its_description(tmp_path: Path, description: str, name: str) -> None:
    up, down = new(tmp_path, description)

    assert (up.name, down.name) == (f"001_{name}.sql", f"001_{name}.down.sql")
    assert [each.name for each in own.parse(directory.read(tmp_path)).migrations] == [name]


@pytest.mark.parametrize("word", ["word ", "word", "größe ", "größe", "漢字", "हि"])
def test_a_long_description_has_a_name_that_every_disk_takes(tmp_path: Path, word: str) -> None:
    paths = new(tmp_path, word * 1000)

    assert all(40 < len(path.name.encode()) <= 143 for path in paths)
    assert len(own.parse(directory.read(tmp_path)).migrations) == 1


@pytest.mark.parametrize("description", ["", " ", "\n", "!!!", "🚀", "\u202e", "\u0301", "\0", "\udcff", "-" * 5000])
def test_a_description_without_letters_leaves_nothing_behind(tmp_path: Path, description: str) -> None:
    with pytest.raises(UsageError, match="no letter or digit") as caught:
        new(tmp_path / "migrations" / "versions", description)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
async def test_a_line_break_in_a_description_runs_nothing(dsn: str, write: Write) -> None:
    folder = write({"001_victim.sql": "CREATE TABLE victim ();"})
    for each in LINE_BREAKS:
        new(folder, f"add x{each}DROP TABLE victim;")
        new(folder, f"add x{each}raise SystemExit(9)", Kind.PYTHON)
    for path in (*folder.glob("*.sql"), *folder.glob("*.py")):
        comment = "# nothing" if path.suffix == ".py" else "-- nothing"
        path.write_text(f"{path.read_text()}{comment}\n")
    migrator = Migrator(dsn, folder)

    assert len(await migrator.up()) == 1 + 2 * len(LINE_BREAKS)
    assert len(await migrator.down(to=1)) == 2 * len(LINE_BREAKS)

    assert await exists(dsn, "victim")


# How new files are written


def test_nothing_is_left_of_files_of_which_one_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "001_old.sql").touch()
    contents = {"002_a.sql": "-- up\n", f"002_{'a' * 250}.down.sql": ""}

    with pytest.raises(UsageError, match=r"cannot write in .*File name too long"):
        directory.write(tmp_path, lambda _: contents)

    assert [path.name for path in tmp_path.iterdir()] == ["001_old.sql"]


def test_nothing_is_left_of_a_file_of_which_only_a_part_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = own.draft
    contents = draft((), "Add users", Kind.SQL, datetime(2026, 1, 2, tzinfo=UTC))
    monkeypatch.setattr(own, "draft", lambda *_: dict.fromkeys(contents, "x" * 10_000_000))
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(UsageError, match=r"cannot write in .*File too large"):
            new(tmp_path / "versions", "Add users")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()

    assert len(new(tmp_path / "versions", "Add users")) == 2


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    folder = tmp_path / "versions"
    folder.mkdir()
    (folder / "001_a.down.sql").symlink_to(tmp_path / "elsewhere.txt")

    with pytest.raises(UsageError, match=r"001_a\.down\.sql is there already"):
        directory.write(folder, lambda _: {"001_a.sql": "", "001_a.down.sql": ""})

    assert [path.name for path in tmp_path.iterdir()] == ["versions"]
    assert [path.name for path in folder.iterdir()] == ["001_a.down.sql"]


def test_two_new_migrations_at_once_never_take_the_same_number(tmp_path: Path) -> None:
    folder = tmp_path / "versions"
    code = f"from pgratchet.migrator import new\nfor each in range(15): new({str(folder)!r}, 'same thing')"

    racing = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]

    assert [process.wait(50) for process in racing] == [0, 0, 0, 0]
    catalogue = own.parse(directory.read(folder), strict=True)
    assert [migration.version for migration in catalogue.migrations] == [str(each) for each in range(1, 61)]
    assert len(list(folder.glob("*.down.sql"))) == 60


def test_a_file_that_comes_in_between_without_locks_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    draft = own.draft

    def outrun(*arguments: object) -> dict[str, str]:
        (tmp_path / "001_a.sql").write_text("mine")
        return draft(*arguments)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr(own, "draft", outrun)
    with pytest.raises(UsageError, match=r"001_a\.sql is there already"):
        new(tmp_path, "a")

    assert (tmp_path / "001_a.sql").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["001_a.sql"]


def test_nothing_is_written_if_no_number_is_left(tmp_path: Path) -> None:
    (tmp_path / f"{'9' * 18}_last.sql").touch()

    with pytest.raises(UsageError, match=f"no version above {'9' * 18}"):
        new(tmp_path, "one more")

    assert len(list(tmp_path.iterdir())) == 1


# How names are read


@pytest.mark.parametrize("title", ["añadir_größe", "Ångström", "tiếng_việt", "한국어", "がぎぐ", "ё"])
def test_a_name_is_the_same_migration_whichever_system_has_written_it(title: str) -> None:
    linux, macos = (unicodedata.normalize(form, title) for form in FORMS)
    assert linux != macos

    composed, decomposed = (parsed({f"001_{each}.sql": "SELECT 1;"}).migrations[0] for each in (linux, macos))

    assert composed.name == decomposed.name == linux
    assert (composed.version, composed.checksum) == (decomposed.version, decomposed.checksum)
    mixed = parsed({f"001_{linux}.sql": "", f"001_{macos}.down.sql": ""}).migrations[0]
    assert mixed.down is not None


def test_a_name_that_is_there_in_both_forms_is_told_as_that() -> None:
    names = [unicodedata.normalize(form, "001_größe.sql") for form in FORMS]

    problem = problem_of(dict.fromkeys(names, ""))

    assert "version 1 is already" in problem.message
    assert "NFC and NFD" in problem.cure


@pytest.mark.parametrize(
    "title", ["हिन्दी", "เพิ่มผู้ใช้", "ⵜⴰⵎⴰⵣⵉⵖⵜ", "தமிழ்", "q\u0301", "မြန်မာ", "می\u200cروم", "ශ්\u200dරී"]
)
def test_a_name_may_have_marks_that_belong_to_its_letters(title: str) -> None:
    assert parsed({f"001_{title}.sql": ""}).migrations[0].name == title


@pytest.mark.parametrize("name", ["1\u0301_a.sql", "1\u0301.sql", "\u0301_a.sql"])
def test_a_mark_is_no_part_of_a_number(name: str) -> None:
    assert "<digits>_<description>" in problem_of({name: ""}).message


def test_a_mark_does_not_make_a_direction() -> None:
    migration = parsed({"1_a.down\u0301.sql": ""}).migrations[0]

    assert (migration.name, migration.down) == (unicodedata.normalize("NFC", "a.down\u0301"), None)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("001_a b.sql", "' ' is no letter or digit"),
        ("001_a\u200bb.sql", r"'\u200b' is no letter or digit"),
        ("001_a\u200cb.sql", r"'\u200c' is no letter or digit"),
        ("001_\u200dש.sql", r"'\u200d' is no letter or digit"),
        ("001_a\u202eb.sql", r"'\u202e' is no letter or digit"),
        ("001_a\nb.sql", r"'\n' is no letter or digit"),
        ("001_a\x1b[2Jb.sql", r"'\x1b' is no letter or digit"),
        ("001_\N{ROCKET}.sql", r"'\U0001f680' is no letter or digit"),
        ("001_\udcff.sql", "it is not UTF-8 (byte 0xff)"),
        ("001_gr\udcf6\udcdfe.sql", "it is not UTF-8 (byte 0xf6)"),
    ],
)
def test_a_name_that_is_refused_is_told_why(name: str, why: str) -> None:
    problem = problem_of({name: ""})

    assert problem.message.endswith(f"; {why}")
    assert problem.message.isprintable()
    assert "rename it" in problem.cure


def test_a_name_that_is_not_utf8_is_refused_without_a_traceback(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/002_gr\xf6\xdfe.sql"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    except OSError:
        pytest.skip("this file system has only names that are UTF-8")

    for more in ([], ["--json"]):
        refused = program("plan", "--dsn", NOWHERE, "--dir", str(tmp_path), *more)

        assert refused.returncode == 4
        assert "not UTF-8 (byte 0xf6)" in refused.stdout + refused.stderr
        assert "Traceback" not in refused.stderr
        refused.stderr.encode()


# How heads are read


@pytest.mark.parametrize(
    "text",
    [
        "-- about\r-- pgratchet: no-transaction\rSELECT 1;",
        "-- pgratchet: no-transaction\rSELECT 1;",
        "\r-- pgratchet: no-transaction\r",
        "-- about\r\r\n-- pgratchet: no-transaction\nSELECT 1;",
        "/* about\r*/\r-- pgratchet: no-transaction\rSELECT 1;",
        "/* about */ -- pgratchet: no-transaction\nSELECT 1;",
        "\f-- pgratchet: no-transaction\n",
        "\v-- pgratchet: no-transaction\n",
        "--\tpgratchet:\tno-transaction\t\n",
        "--\u00a0pgratchet:\u00a0no-transaction\u00a0\n",
        "-- pgratchet\u2003:no-transaction\n",
    ],
    ids=ascii,
)
def test_a_directive_is_found_wherever_a_comment_begins(text: str) -> None:
    assert options_of(text).no_transaction


@pytest.mark.parametrize("between", ["\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", " "], ids=ascii)
def test_only_a_line_feed_and_a_carriage_return_end_a_comment(between: str) -> None:
    assert options_of(f"-- about{between}-- pgratchet: no-transaction\nSELECT 1;") == Options()
    assert options_of(f"# about{between}# pgratchet: lock-timeout=1s\nX = 1", Kind.PYTHON) == Options()


@pytest.mark.parametrize(
    "text",
    [
        "/* write -- pgratchet: no-transaction there */",
        "-- write -- pgratchet: no-transaction there",
        "/* a */ /* write -- pgratchet: no-transaction */",
        "-- */ -- pgratchet: no-transaction",
    ],
)
def test_a_comment_about_directives_is_none(text: str) -> None:
    assert options_of(f"{text}\nSELECT 1;") == Options()


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"], ids=ascii)
def test_a_directive_of_a_python_file_is_found_behind_any_line_end(end: str) -> None:
    text = f"# about{end}# pgratchet: lock-timeout=1s{end}async def up(connection): ...{end}"

    assert options_of(text, Kind.PYTHON) == Options(lock_timeout=1.0)


@pytest.mark.parametrize("word", ["pgratchet", "PGRATCHET", "Pgratchet", "pgRatchet"])
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"], ids=ascii)
def test_a_directive_below_the_head_is_refused_in_any_letters_behind_any_line_end(word: str, end: str) -> None:
    assert "below the first statement" in problem_of({"1_a.sql": f"SELECT 1;{end}-- {word}: no-transaction"}).message


def test_a_no_break_space_ends_the_head_as_it_begins_a_statement_for_the_server() -> None:
    problem = problem_of({"1_a.sql": "\u00a0;\n-- pgratchet: no-transaction\nSELECT 1;"})

    assert (problem.line, "below the first statement" in problem.message) == (2, True)


@pytest.mark.anyio
async def test_the_server_ends_comments_where_heads_are_read_to_end_them(dsn: str, write: Write) -> None:
    index = "CREATE TABLE c (i int);CREATE INDEX CONCURRENTLY ON c (i);"
    texts = {
        "001_a.sql": "-- about\rCREATE TABLE a ();",
        "002_b.sql": "-- about\u2028CREATE TABLE b ();\x85CREATE TABLE b ();\vCREATE TABLE b ();\n",
        "003_c.sql": f"-- about\r-- pgratchet: no-transaction\r{index}",
        "004_d.sql": "SELECT 1;--\r\u00a0;\n",
    }
    migrator = Migrator(dsn, write(texts))

    steps = await migrator.up(to=3)
    with pytest.raises(MigrationFailedError, match="syntax error"):
        await migrator.up()

    assert [(step.version, step.statements) for step in steps] == [("1", 1), ("2", 0), ("3", 2)]
    assert [await exists(dsn, table) for table in ("a", "b", "c")] == [True, False, True]
    write({"004_d.sql": texts["004_d.sql"].replace("\u00a0", " ")})
    assert [step.version for step in await migrator.up()] == ["4"]


# How long reading takes


def sql(text: str) -> object:
    return parsing.read(File("1_a.sql", "m/1_a.sql", text.encode()), Kind.SQL, "1", own)


def python(text: str) -> object:
    return parsing.read(File("1_a.py", "m/1_a.py", text.encode()), Kind.PYTHON, "1", own)


def split(text: str) -> object:
    return sum(1 for _ in scan(text))


def compiled(text: str) -> object:
    try:
        return compile_script(Source("m/1_a.sql", text), Kind.SQL, Direction.UP)
    except FilesError as error:
        return error


LONG = {
    "blanks within a directive": (sql, lambda n: f"-- pgratchet: no-transaction{' ' * n}x"),
    "blanks behind a directive": (sql, lambda n: f"-- pgratchet: no-transaction{' ' * n}\nSELECT 1;"),
    "blanks before a colon": (sql, lambda n: f"-- pgratchet{' ' * n}: no-transaction"),
    "blanks instead of a colon": (sql, lambda n: f"-- pgratchet{' ' * n}."),
    "blanks within a value": (sql, lambda n: f"-- pgratchet: lock-timeout={' ' * n}5s"),
    "blanks behind a number": (sql, lambda n: f"-- pgratchet: lock-timeout=5{' ' * n}x"),
    "blanks before a version": (sql, lambda n: f"-- Version:{' ' * n}"),
    "blanks before a statement": (sql, lambda n: f"{' ' * n}SELECT 1;"),
    "an unknown directive": (sql, lambda n: f"-- pgratchet: {'no-transactions' * (n // 15)}"),
    "wrong directives": (sql, lambda n: "-- pgratchet: lock-timeout=x\n" * (n // 29)),
    "right directives": (sql, lambda n: "-- pgratchet: lock-timeout=1\n" * (n // 29)),
    "stray directives": (sql, lambda n: "SELECT 1;\n-- pgratchet: x\n" * (n // 26)),
    "stray directives of a python file": (python, lambda n: "X = 1\n# pgratchet: x\n" * (n // 21)),
    "dashes below the head": (sql, lambda n: f"SELECT 1;{'-' * n}"),
    "comments": (sql, lambda n: "-- about\n" * (n // 9)),
    "block comments": (sql, lambda n: "/* about */" * (n // 11)),
    "stars in a comment": (sql, lambda n: f"/*{'*' * n}/"),
    "a comment that is never closed": (sql, lambda n: f"/*{'* /' * (n // 3)}"),
    "parentheses that are never closed": (split, lambda n: "CREATE (;\n" * (n // 10)),
    "tables that are never closed": (split, lambda n: "CREATE TABLE a (;\n" * (n // 18)),
    "comments behind CREATE": (split, lambda n: f"CREATE {'/* x */' * (n // 7)};"),
    "blanks behind a statement": (split, lambda n: f"SELECT 1{' ' * n};"),
    "doubled quotes": (split, lambda n: f"SELECT '{chr(39) * (n // 2 * 2)}'"),
    "strings in a row": (split, lambda n: "SELECT E'a'" + "\n'b'" * (n // 4)),
    "dollars": (split, lambda n: f"SELECT {'1$' * (n // 2)}"),
    "comments behind COPY": (split, lambda n: f"COPY t FROM STDIN;{'-- ' * (n // 3)}\rX"),
    "comments that carriage returns end behind COPY": (
        split,
        lambda n: f"COPY t FROM STDIN;{(' -- -- --' + chr(13)) * (n // 10)}X",
    ),
    "psql's commands": (compiled, lambda n: "\\restrict abc\n" * (n // 14)),
    "byte order marks": (compiled, lambda n: "\ufeffSELECT 1;\n" * (n // 11)),
}


@pytest.mark.parametrize(("read", "text"), LONG.values(), ids=LONG)
def test_reading_takes_no_longer_than_the_text_is(read: Callable[[str], object], text: Callable[[int], str]) -> None:
    def seconds(length: int) -> float:
        subject, begin = text(length), time.process_time()
        read(subject)
        return time.process_time() - begin

    once = min(seconds(25_000) for _ in range(3))

    assert seconds(100_000) < 8 * once + 0.3


@pytest.mark.parametrize("comment", ["-- about\n", "/* about */\n", "/**/"])
def test_a_head_of_many_comments_takes_no_memory_for_each(comment: str) -> None:
    text = comment * 50_000
    source = File("1_a.sql", "m/1_a.sql", text.encode())

    tracemalloc.start()
    try:
        parsing.read(source, Kind.SQL, "1", own)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 6 * len(text)


def test_a_problem_far_down_is_told_with_its_line() -> None:
    with pytest.raises(FilesError) as caught:
        parsed({"1_a.sql": "SELECT 1;\n" + "-- pgratchet: x\n\n" * 3000})

    assert [problem.line for problem in caught.value.problems] == list(range(2, 6002, 2))


# How texts are encoded

TEXT = "-- Größe\nSELECT 'ä';\n"


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (TEXT.encode("utf-16"), 1),
        (TEXT.encode("utf-32"), 1),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), 1),
        (b"\x00\x00\xfe\xff" + TEXT.encode("utf-32-be"), 1),
        (TEXT.encode("utf-16-le"), 1),
        (TEXT.encode("utf-16-be"), 1),
        (TEXT.encode("utf-32-le"), 1),
        (TEXT.encode("utf-32-be"), 1),
        (TEXT.encode("latin-1"), 1),
        (b"-- ASCII\r\n\r\nSELECT '\xe4';", 3),
        (b"SELECT 1;\n" + TEXT.encode("utf-16-le"), 2),
        (b"SELECT 1;\n" + TEXT.encode("latin-1"), 2),
        (b"SELECT 1;\n\xed\xa0\x80", 2),
        (b"SELECT 1;\n\n\xc0\x80", 3),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["1_a.sql", "1_a.py"])
def test_another_encoding_is_refused_with_its_line_and_a_cure(name: str, body: bytes, line: int) -> None:
    problem = problem_of({name: body})

    assert (problem.path, problem.line) == (f"m/{name}", line)
    assert "UTF-8" in problem.cure


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("SELECT 1;\n\ufeffSELECT 2;", 2),
        ("SELECT 1;\n\ufeff-- from another file\nSELECT 2;", 2),
        ("SELECT 1\n\ufeff;", 2),
        ("SELECT 1,\n\n  a\ufeff;", 3),
        ("-- about\n\ufeffSELECT 1;", 2),
        ("/* about */ \ufeff", 1),
    ],
    ids=ascii,
)
def test_a_byte_order_mark_in_the_middle_is_refused_with_its_line_and_a_cure(text: str, line: int) -> None:
    with pytest.raises(FilesError) as caught:
        compile_script(Source("m/1_a.sql", text), Kind.SQL, Direction.UP)

    (problem,) = caught.value.problems
    assert ("byte order mark" in problem.message, problem.line) == (True, line)
    assert "remove it" in problem.cure


@pytest.mark.parametrize(
    "text",
    [
        "SELECT '\ufeff';",
        'SELECT 1 AS "\ufeff";',
        "SELECT $$\ufeff$$;",
        "SELECT E'\ufeff', U&'\ufeff', U&\"\ufeff\";",
        "SELECT 1; -- \ufeff",
        "/* \ufeff */ SELECT 1;",
    ],
    ids=ascii,
)
def test_a_byte_order_mark_within_a_string_a_name_or_a_comment_is_text(text: str) -> None:
    assert compile_script(Source("m/1_a.sql", text), Kind.SQL, Direction.UP).source.text == text


def test_a_byte_order_mark_in_the_middle_of_a_python_file_is_refused_with_its_line() -> None:
    text = "async def up(connection): ...\n\ufeffX = 1\n"

    with pytest.raises(FilesError, match=r"m/1_a\.py:2: .*U\+FEFF"):
        compile_script(Source("m/1_a.py", text), Kind.PYTHON, Direction.UP)


# How versions are written

NO_VERSIONS = [
    "",
    " ",
    "x",
    "1a",
    "-1",
    "+1",
    " 1",
    "1\n",
    "1.0",
    "1e3",
    "1_0",
    "\u0662",
    "\uff12",
    "\u00b2",
    "9" * 19,
    "9" * 5000,
]


@pytest.mark.anyio
@pytest.mark.parametrize("version", [*NO_VERSIONS, -1, 10**18, 10**5000, -(10**5000), True], ids=range(21))
async def test_an_invalid_version_is_refused_before_anything_is_done(version: str | int) -> None:
    migrator = Migrator(NOWHERE)

    for work in (
        lambda: migrator.up(version),
        lambda: migrator.down(version),
        lambda: migrator.repair(version, Verdict.APPLIED, "because"),
    ):
        with pytest.raises(UsageError, match="is no version: versions are numbers") as caught:
            await work()
        assert len(str(caught.value)) < 200


def test_a_version_of_thousands_of_digits_is_wrong_use(write: Write) -> None:
    folder = str(write({"001_a.sql": ""}))

    for arguments in (["up", "--to", "1" * 5000], ["repair", "1" * 5000, "--applied", "--reason", "x"]):
        refused = program(*arguments, "--dsn", NOWHERE, "--dir", folder)

        assert refused.returncode == 2
        assert "is no version" in refused.stderr
        assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("digits", ["1" * 19, "1" * 200, "\u0660\u0661", "\uff10\uff11"])
def test_a_file_whose_number_is_none_is_refused(digits: str) -> None:
    assert "<digits>_<description>" in problem_of({f"{digits}_a.sql": ""}).message


@pytest.mark.parametrize("floor", ["9" * 5000, "٢", "+2", "2.0", "1e3", "0x2"])
def test_a_floor_that_is_no_version_is_refused_with_its_line(floor: str) -> None:
    problem = problem_of({"1_a.sql": f"-- about\n-- pgratchet: compatible-with={floor}\n"})

    assert (problem.line, "is no version" in problem.message) == (2, True)


@pytest.mark.parametrize("floor", ["9" * 5000, "9" * 19, "٢", "", "-1", "x"])
def test_a_floor_in_the_history_that_nobody_can_read_keeps_old_code_out(floor: str) -> None:
    nothing = dict.fromkeys(("cursor", "started_at", "finished_at", "applied_by", "backend_pid", "token", "error"))
    row = HistoryRow("3", "c", "sql", "x", RecordState.APPLIED, 0, 0, compatible_with=floor, **nothing)
    old = Entry("2", State.APPLIED, parsed({"2_b.sql": ""}).migrations[0], None)

    with pytest.raises(HistoryError, match="cannot live with it"):
        planning.refuse_disagreement([old, Entry("3", State.UNKNOWN, None, row)], own.rank)


WRITTEN = {
    "002": "2",
    "\u0662": "2",
    "\uff12": "2",
    "+2": "2",
    " 2": "2",
    "2 ": "2",
    "2\n": "2",
    "2\u00a0": "2",
    "": None,
    "  ": None,
    "\n": None,
    "-2": None,
    "2.0": None,
    "1e3": None,
    "0x2": None,
    "it's": None,
    "\\2": None,
    "\u00b2": None,
    "\x1b[2J": None,
    "9" * 19: None,
    "9" * 5000: None,
}


@pytest.mark.anyio
async def test_a_row_that_is_not_written_as_pgratchet_writes_it_is_refused_until_its_cure_is_followed(
    dsn: str, write: Write
) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "CREATE TABLE b ();"}))
    await migrator.up()

    for text, meant in WRITTEN.items():
        await tell(dsn, f"UPDATE schema_migrations SET version = {literal(text)} WHERE version = '2'")
        for work in (migrator.up, migrator.check, migrator.status, migrator.plan):
            with pytest.raises(ServerError) as caught:
                await work()
        said = str(caught.value)
        assert said.isascii(), text
        assert said.isprintable(), text
        assert len(said) < 500, text
        assert ascii(text)[:30] in said
        update = re.search(r"UPDATE .+? WHERE .+?(?=, or)", said)
        assert update is not None, said
        assert (f"'{meant}'" in said) == (meant is not None)
        await tell(dsn, update[0].replace("<its number>", "2"))
        assert await migrator.up() == ()
        assert await states(dsn) == {"1": "applied", "2": "applied"}


@pytest.mark.anyio
async def test_a_row_beside_the_right_one_is_refused_until_it_is_deleted(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "CREATE TABLE a ();"}))
    await migrator.up()
    columns = "name, kind, checksum, state"

    for text in WRITTEN:
        copy = f"SELECT {literal(text)}, {columns} FROM schema_migrations"
        await tell(dsn, f"INSERT INTO schema_migrations (version, {columns}) {copy}")
        with pytest.raises(ServerError) as caught:
            await migrator.up()
        delete = re.search(r"DELETE .+", str(caught.value))
        assert delete is not None
        await tell(dsn, delete[0])
        assert await migrator.up() == ()
        assert await states(dsn) == {"1": "applied"}


@pytest.mark.anyio
async def test_a_row_without_a_version_is_refused_until_it_is_deleted(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "CREATE TABLE a ();"}))
    await migrator.up()
    await tell(dsn, "ALTER TABLE schema_migrations DROP CONSTRAINT schema_migrations_pkey, ALTER version DROP NOT NULL")
    await tell(dsn, "INSERT INTO schema_migrations (name, kind, checksum, state) VALUES ('x', 'sql', 'x', 'applied')")

    with pytest.raises(ServerError, match="version IS NULL") as caught:
        await migrator.status()
    delete = re.search(r"DELETE .+", str(caught.value))
    assert delete is not None
    await tell(dsn, delete[0])

    assert await migrator.up() == ()


@pytest.mark.anyio
async def test_a_column_of_numbers_is_refused_until_it_is_text_again(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "CREATE TABLE a ();"}))
    await migrator.up()
    await tell(dsn, "ALTER TABLE schema_migrations ALTER version TYPE bigint USING version::bigint")
    await migrator.check()

    write({"002_b.sql": "CREATE TABLE b ();"})
    with pytest.raises(ServerError, match="are no text") as caught:
        await migrator.wait()
    alter = re.search(r"ALTER .+", str(caught.value))
    assert alter is not None
    await tell(dsn, alter[0])

    assert [step.version for step in await migrator.up()] == ["2"]


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# What another runner has written


def taken(*rows: ForeignRow, files: Mapping[str, str] | None = None, skip_failed: bool = False) -> homemade.Takeover:
    migrations = {each.version: each for each in parsed(files or {}).migrations}
    return homemade.take_over(rows, migrations, (), own, skip_failed=skip_failed)


def foreign(
    version: object, filename: str | None = None, *, success: bool = True, error: str | None = None
) -> ForeignRow:
    return ForeignRow(version, None, filename, None, success, error)  # type: ignore[arg-type]  # anything may be there


@pytest.mark.parametrize("version", [2, "2", "002"])
def test_a_version_of_another_runner_counts_however_it_is_written(version: object) -> None:
    takeover = taken(foreign(version), files={"002_b.sql": ""})

    assert [(row.version, row.name) for row in takeover.rows] == [("2", "b")]
    assert takeover.unknown == ()


def test_rows_of_one_version_are_one_of_which_a_success_counts() -> None:
    rows = [foreign("002", success=False), foreign("2"), foreign(2, success=False), foreign(10), foreign("1")]

    assert [row.version for row in taken(*rows).rows] == ["1", "2", "10"]


@pytest.mark.parametrize(
    "version", [None, "", " ", -1, "-1", "+2", " 2", "2\n", "٢", "1e3", 2.5, True, 10**18, "9" * 5000], ids=ascii
)
def test_a_row_of_another_runner_without_a_version_is_refused_with_a_cure(version: object) -> None:
    rows = [foreign(1), foreign(version, "002_b\n\x1b[2J.sql"), foreign(3, success=False, error="a\nb")]

    with pytest.raises(HistoryError) as caught:
        taken(*rows)

    first, second = str(caught.value).split("\n")
    assert "correct that row, or delete it" in first
    assert "skip it (skip_failed=True)" in second
    assert first.isprintable()
    assert second.isprintable()
    assert len(first) < 400


def test_a_file_without_a_file_here_is_adopted_under_a_name_of_one_line() -> None:
    (row,) = taken(foreign(1, "versions/001_a\nb\x1b.sql")).rows

    assert row.name.isprintable()


def test_a_file_is_known_by_its_name_whichever_system_has_written_it() -> None:
    composed, decomposed = (unicodedata.normalize(form, "001_größe.sql") for form in FORMS)
    for name, file in ((composed, decomposed), (decomposed, composed)):
        assert [row.version for row in taken(foreign(1, f"versions/{name}"), files={file: ""}).rows] == ["1"]


@pytest.mark.anyio
async def test_a_table_of_another_runner_with_texts_as_versions_is_adopted(dsn: str, write: Write) -> None:
    columns = "version text, description text, filename text, executed_at timestamptz, success bool, error_message text"
    rows = ", ".join(f"('{version}', NULL, NULL, now(), true, NULL)" for version in ("001", "2", "-3"))
    await tell(dsn, f"CREATE TABLE a (); CREATE TABLE old ({columns}); INSERT INTO old VALUES {rows}")
    migrator = Migrator(
        dsn, write({"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "x", "004_d.sql": "CREATE TABLE d ();"})
    )

    with pytest.raises(HistoryError, match="'-3'"):
        await migrator.adopt("old")
    await tell(dsn, "DELETE FROM old WHERE version = '-3'")
    adoption = await migrator.adopt("old")

    assert adoption.adopted == ("1", "2")
    assert [step.version for step in await migrator.up()] == ["4"]
    assert await exists(dsn, "d")
