"""What another user of the machine can do to a private server, and what he can learn from it about a test run."""

import asyncio
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import pytest

from pgratchet import embedded
from pgratchet.core.errors import ServerError
from pgratchet.postgres.link.sql import Table
from pgratchet.testing import dumps
from tests.applications.test_demo import begin
from tests.owners import leave, ordinary_owner, parent, readable_python, said
from tests.support import HISTORY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

STRANGERS = (54321, 33)
strangers = pytest.mark.parametrize("stranger", STRANGERS)

SENTINEL = "s3nt1nel-of-the-test-run"
PASSED_ON = {"PATH", "LC_ALL", "TZ"}
SET_BY_ITSELF = re.compile("LC_[A-Z]+|PGLOCALEDIR|PGSYSCONFDIR|PWD|OLDPWD|SHLVL|_")
"""The variables that the server sets, and the shell that it starts."""

LOGGING = {
    "log_statement": "all",
    "log_connections": "on",
    "log_min_messages": "debug1",
    "log_error_verbosity": "verbose",
}

ATTACK = r"""
import json, os, socket, struct, sys

def read(path):
    with open(path, "rb") as file:
        return file.read().decode(errors="replace")

def greeting(path, port):
    # Of the server for postgres: "R 0" lets him in, "R 10" asks him for a password.
    with socket.socket(socket.AF_UNIX if path else socket.AF_INET) as line:
        line.settimeout(10)
        line.connect(path or ("127.0.0.1", port))
        line.sendall(struct.pack("!ii", 23, 3 << 16) + b"user\0postgres\0\0")
        kind, _, code = struct.unpack("!cii", line.recv(9, socket.MSG_WAITALL))
        return f"{kind.decode()} {code}"

ways = {"greeting": greeting, "read": read, "list": os.listdir, "link": os.readlink}
got = {}
for way, *arguments in json.load(sys.stdin):
    try:
        found = ways[way](*arguments)
    except OSError as error:
        found = type(error).__name__
    got[" ".join(map(str, [way, *arguments]))] = found
print(json.dumps(got))
"""


class Target(NamedTuple):
    """A server that runs, as a stranger can find it in the list of all processes."""

    pid: int
    root: Path
    port: int

    @property
    def pids(self) -> list[int]:
        """The server's process and its keeper's."""
        return [self.pid, parent(self.pid)]

    def attacked_by(self, stranger: int) -> tuple[str, set[str]]:
        """Return how that user is greeted on TCP, and all that he gets elsewhere: texts, or names of errors."""
        names = ("log", "verifier", "data/PG_VERSION", "data/pg_hba.conf", "data/postmaster.pid")
        attempts: list[tuple[str | int, ...]] = [
            ("greeting", "", self.port),
            ("greeting", str(self.root / f".s.PGSQL.{self.port}"), self.port),
            ("list", str(self.root)),
            ("list", str(self.root / "data")),
            *(("read", str(self.root / name)) for name in names),
            *((way, f"/proc/{pid}/{name}") for pid in self.pids for way, name in LOOKS),
        ]
        done = subprocess.run(
            [readable_python(), "-c", ATTACK],
            input=json.dumps(attempts),
            user=stranger,
            group=stranger,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        )
        on_tcp, *elsewhere = json.loads(done.stdout).values()
        return on_tcp, {str(each) for each in elsewhere}


LOOKS = (("read", "environ"), ("list", "fd"), ("link", "cwd"), ("read", "maps"))
ASKED = ("R 10", {"PermissionError"})
NOT_THERE = ("ConnectionRefusedError", {"PermissionError"})


def target(pid: int) -> Target:
    command = Path(f"/proc/{pid}/cmdline").read_text()
    (data,) = re.findall(r"\0-D\0([^\0]+)", command)
    (port,) = re.findall(r"--port=(\d+)", command)
    return Target(pid, Path(data).parent, int(port))


def password_of(dsn: str) -> str:
    password = urlsplit(dsn).password or ""
    assert re.fullmatch("[0-9a-f]{32}", password)
    return password


async def _rows(dsn: str, *statements: str) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        *before, query = statements
        for statement in before:
            await connection.execute(statement)
        return [row[0] for row in await connection.fetch(query)]
    finally:
        await connection.close()


def rows(dsn: str, *statements: str) -> list[Any]:
    """Return the first values of the last statement's rows."""
    return asyncio.run(_rows(dsn, *statements))


def names(environment: str, separator: str) -> set[str]:
    return {line.partition("=")[0] for line in environment.split(separator) if line}


def inherited_nothing(server: Target, *secrets: str) -> None:
    """See that none of its processes got more than it needs."""
    for process in (Path(f"/proc/{pid}") for pid in server.pids):
        assert names((process / "environ").read_text(), "\0") == PASSED_ON
        shown = [(process / name).read_text(errors="replace") for name in ("environ", "cmdline")]
        shown += [str(each.readlink()) for each in (process / "fd").iterdir()]
        shown.append(str((process / "cwd").readlink()))
        assert [text for text in shown if any(secret in text for secret in (SENTINEL, *secrets))] == []


def shows_nothing(dsn: str, server: Target) -> None:
    """See that even the server's superuser gets no variable of the test run by means of the server."""
    for pid in ("self", *server.pids):
        with suppress(asyncpg.InsufficientPrivilegeError):
            (environment,) = rows(dsn, f"SELECT pg_read_binary_file('/proc/{pid}/environ')")
            assert names(environment.decode(), "\0") <= PASSED_ON
    program = "CREATE TEMP TABLE shown (line text); COPY shown FROM PROGRAM 'env'"
    shown = names("\n".join(rows(dsn, program, "SELECT line FROM shown")), "\n")
    assert {name for name in shown if not SET_BY_ITSELF.fullmatch(name)} <= PASSED_ON


@pytest.fixture(scope="module", autouse=True)
def surroundings() -> Iterator[None]:
    """A test run's: secrets in variables, and in a file that its children inherit."""
    with pytest.MonkeyPatch.context() as patch, tempfile.NamedTemporaryFile(prefix=SENTINEL) as file:
        patch.setenv("AWS_SECRET_ACCESS_KEY", SENTINEL)
        patch.setenv("LC_SECRET", SENTINEL)
        patch.setenv("LD_LIBRARY_PATH", f"/{SENTINEL}")
        os.set_inheritable(file.fileno(), True)  # noqa: FBT003 - its only way
        yield


@pytest.fixture(scope="module")
def listening(memory: Path | None) -> Iterator[embedded.Server]:
    with embedded.server(tcp=True, folder=memory, settings=LOGGING) as server:
        yield server


@pytest.fixture(scope="module")
def closed(memory: Path | None) -> Iterator[embedded.Server]:
    with embedded.server(folder=memory) as server:
        yield server


@pytest.fixture(params=["listening", "closed"])
def server(request: pytest.FixtureRequest) -> embedded.Server:
    found: embedded.Server = request.getfixturevalue(request.param)
    return found


def of(server: embedded.Server) -> Target:
    assert server.pid is not None
    return target(server.pid)


@as_root
@strangers
def test_a_stranger_is_asked_for_a_password_on_tcp_and_gets_nothing_elsewhere(
    listening: embedded.Server, stranger: int
) -> None:
    assert of(listening).attacked_by(stranger) == ASKED
    assert rows(listening.dsn, "SELECT 1") == [1]


@as_root
@strangers
def test_a_stranger_gets_nothing_of_a_server_without_tcp(closed: embedded.Server, stranger: int) -> None:
    assert of(closed).attacked_by(stranger) == NOT_THERE
    assert rows(closed.dsn, "SELECT 1") == [1]


@pytest.mark.parametrize("guess", ["", "postgres", "secret", "0" * 32])
@pytest.mark.parametrize("role", ["postgres", "somebody"])
def test_no_guess_is_let_in(server: embedded.Server, role: str, guess: str) -> None:
    address = server.dsn.replace(f"postgres:{server.password}@", f"{role}:{guess}@" if guess else f"{role}@")
    with pytest.raises(asyncpg.InvalidPasswordError):
        rows(address, "SELECT 1")


def test_every_rule_asks_for_a_password(server: embedded.Server) -> None:
    assert rows(server.dsn, "SELECT DISTINCT auth_method FROM pg_hba_file_rules") == ["scram-sha-256"]
    assert rows(server.dsn, "SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL") == [0]


def test_a_role_without_a_password_cannot_log_in(server: embedded.Server) -> None:
    rows(server.dsn, "CREATE ROLE plain LOGIN", "SELECT 1")
    with pytest.raises(asyncpg.InvalidPasswordError):
        rows(server.dsn.replace("postgres:", "plain:"), "SELECT 1")


def test_two_servers_have_two_passwords(listening: embedded.Server, closed: embedded.Server) -> None:
    assert password_of(listening.dsn) != password_of(closed.dsn)
    assert password_of(listening.dsn_for("other")) == password_of(listening.dsn)


def test_the_processes_inherit_nothing_of_the_test_run(server: embedded.Server) -> None:
    inherited_nothing(of(server), server.password)


def test_its_superuser_sees_no_variable_of_the_test_run(server: embedded.Server) -> None:
    shows_nothing(server.dsn, of(server))


def test_the_password_is_in_no_file_and_in_no_log(server: embedded.Server) -> None:
    rows(server.dsn, "CREATE ROLE other SUPERUSER LOGIN", "ALTER ROLE other RENAME TO another", "SELECT 1")
    server.restart("immediate")
    files = [path for path in server.data.parent.rglob("*") if path.is_file()]
    assert {server.log, server.data / "pg_hba.conf"} <= set(files)
    assert [path for path in files if server.password.encode() in path.read_bytes()] == []
    assert not (server.data.parent / "verifier").exists()
    assert server.password not in repr(server)


def test_the_schema_is_dumped_with_either_dsn(server: embedded.Server) -> None:
    (version,) = rows(server.dsn, "CREATE TABLE to_be_dumped ()", "SHOW server_version_num")
    dumped = dumps.dump(dumps.find_pg_dump(int(version) // 10_000), server.dsn, Table.parse(HISTORY))
    assert any("to_be_dumped; Type: TABLE" in name for name in dumped)


SPY = """#!/bin/sh
[ "$1" = --version ] || {
    env >"$0.environment"
    pwd; echo "$@"; ls -l /proc/$$/fd
    for each in "$@"; do
        case $each in --pwfile=*) cat "${each#*=}"; stat -c 'mode %a of %u' "${each#*=}";; esac
    done
} >"$0.seen" 2>&1
"""


@pytest.fixture
def programs(closed: embedded.Server, memory: Path | None) -> Iterator[Path]:
    """A folder of programs that write down what they are given, and then do their work."""
    with tempfile.TemporaryDirectory(dir=memory) as name:
        folder = Path(name)
        folder.chmod(0o777)
        for program in ("initdb", "postgres"):
            (folder / program).write_text(f'{SPY}exec {closed.binaries / program} "$@"\n')
            (folder / program).chmod(0o755)
        yield folder


def test_the_programs_get_nothing_of_the_test_run_and_initdb_gets_a_verifier_in_a_file_of_its_own(
    programs: Path, memory: Path | None
) -> None:
    with embedded.server(folder=memory, binaries=programs) as server:
        owner = server.data.stat().st_uid
    seen = {name: (programs / f"{name}.seen").read_text() for name in ("initdb", "postgres")}
    for name, text in seen.items():
        found = names((programs / f"{name}.environment").read_text(), "\n")
        assert {each for each in found if not SET_BY_ITSELF.fullmatch(each)} <= PASSED_ON
        assert SENTINEL not in text
        assert server.password not in text
        assert text.startswith("/\n")
    assert "SCRAM-SHA-256$1:" in seen["initdb"]
    assert f"mode 600 of {owner}" in seen["initdb"]


def test_a_path_of_libraries_is_passed_on_where_the_programs_need_it(programs: Path, memory: Path | None) -> None:
    needy = (programs / "postgres").read_text().replace("exec ", '[ "$LD_LIBRARY_PATH" ] || exit 127\nexec ')
    (programs / "postgres").write_text(needy)
    with embedded.server(folder=memory, binaries=programs) as server:
        assert rows(server.dsn, "SELECT 1") == [1]
    passed_on = names((programs / "postgres.environment").read_text(), "\n")
    assert "LD_LIBRARY_PATH" in passed_on
    assert "AWS_SECRET_ACCESS_KEY" not in passed_on


@pytest.mark.parametrize("failing", ["initdb", "postgres"])
def test_an_error_shows_the_password_neither_in_its_text_nor_in_the_variables_of_its_traceback(
    programs: Path, memory: Path | None, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(secrets, "token_hex", lambda _: "0123456789abcdef" * 2)
        script = (programs / failing).read_text().partition("exec ")[0]
        (programs / failing).write_text(f'{script}cat "$0.seen"; exit 1\n')
        with pytest.raises(ServerError) as caught, embedded.server(folder=memory, binaries=programs):
            pass
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "-D " in str(caught.value)
    assert "0123456789abcdef" not in shown
    with embedded.server(folder=memory) as server:
        assert rows(server.dsn, "SELECT 1") == [1]


@as_root
def test_a_server_of_an_ordinary_user_is_closed_to_other_users(memory: Path | None) -> None:
    with tempfile.TemporaryDirectory(dir=memory) as name:
        Path(name).chmod(0o755)
        with ordinary_owner(Path(name), "tcp") as process:
            state = said(process)
            server = target(state["pid"])
            assert [server.attacked_by(stranger) for stranger in STRANGERS] == [ASKED, ASKED]
            inherited_nothing(server, password_of(state["dsn"]))
            shows_nothing(state["dsn"], server)
            leave(process)


@as_root
def test_the_plugins_server_is_closed_to_other_users(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n\ndef test_it(pgratchet_server, pgratchet_empty_dsn):\n"
        "    print(f'\\n{pgratchet_empty_dsn}', flush=True)\n    sys.stdin.readline()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-s", "-pno:cacheprovider", "-pno:asyncio"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        dsn = next(line.strip() for line in process.stdout if line.startswith("postgresql://"))
        (pid,) = rows(dsn, "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int")
        server = target(pid)
        assert [server.attacked_by(stranger) for stranger in STRANGERS] == [NOT_THERE, NOT_THERE]
        inherited_nothing(server, password_of(dsn))
        shows_nothing(dsn, server)
        said, _ = process.communicate("go on\n", timeout=60)
        assert (process.returncode, "1 passed" in said) == (0, True)


@as_root
def test_the_demos_server_is_closed_to_other_users_and_its_password_is_in_no_command_line(memory: Path | None) -> None:
    with tempfile.TemporaryDirectory(dir=memory) as name:
        Path(name).chmod(0o711)
        with begin(Path(name)) as process:
            assert process.stdout is not None
            assert any("replicas" in line for line in process.stdout)
            (state,) = Path(name).glob("pgratchet-*/data/postmaster.pid")
            server = target(int(state.read_text().split()[0]))
            assert [server.attacked_by(stranger) for stranger in STRANGERS] == [NOT_THERE, NOT_THERE]
            inherited_nothing(server)
            with_password = set()
            while process.poll() is None:
                with_password |= {each for each in command_lines(name) if re.search(r"postgres:[^@/\0]+@", each)}
            assert (process.wait(), with_password) == (0, set())


def command_lines(folder: str) -> Iterator[str]:
    """Yield those of the processes whose temporary files are in the folder: the demo and all that it starts."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"TMPDIR={folder}\0" in (path / "environ").read_text(errors="replace"):
                yield (path / "cmdline").read_text(errors="replace")
