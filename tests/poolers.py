"""A real PgBouncer before a PostgreSQL server, on a free port, gone with the process that started it."""

import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import asyncpg

from pgratchet import embedded
from tests.support import free_port, missing

Mode = Literal["session", "transaction", "statement"]


class Pooler:
    """A running PgBouncer, made by `pgbouncer()`. The role of its DSN can log in, with a password of its own."""

    def __init__(self, dsn: str, program: str, keeper: embedded._Keeper, settings: dict[str, object]) -> None:
        self.log = keeper.root / "log"
        self.port = 0
        self.pid = 0
        self._dsn = dsn
        self._password = secrets.token_hex(16)
        self._settings = settings
        self._keeper = keeper
        self._command = [program, str(keeper.root / "pgbouncer.ini")]

    @property
    def dsn(self) -> str:
        """The DSN of its database, through the pooler."""
        return self.dsn_for(urlsplit(self._dsn).path.removeprefix("/"))

    def dsn_for(self, database: str) -> str:
        """Return the DSN of a database of the same server through the pooler, or of its console: `pgbouncer`."""
        parts = urlsplit(self._dsn)
        query = urlencode([(key, value) for key, value in parse_qsl(parts.query) if key not in {"host", "port"}])
        netloc = f"{parts.username}:{self._password}@127.0.0.1:{self.port}"
        return parts._replace(netloc=netloc, path=f"/{database}", query=query).geturl()

    @property
    def clients(self) -> int:
        """The number of log-ins since the start, including clients that have left."""
        return self.log.read_text().count("login attempt")

    async def tell(self, command: str) -> None:
        """Run a command of the console, such as PAUSE, which returns when no server is in use, RESUME or RECONNECT."""
        console = await asyncpg.connect(self.dsn_for("pgbouncer"))
        try:
            await console.execute(command)
        finally:
            console.terminate()

    def start(self, attempts: int = 5) -> None:
        """Return when it accepts connections, at its former port unless somebody has taken that."""
        for _ in range(attempts):
            self.port = self.port or free_port()
            self._configure()
            self.pid = self._keeper.order(self._command)[0]
            if self._keeper.wait("PgBouncer's start", self._accepts) is None:
                return
            if "Address already in use" not in self.log.read_text():
                break
            self.port = 0
        raise self._keeper.error("PgBouncer did not start")

    def stop(self) -> None:
        """Cut all connections, as the death of its machine would."""
        self._keeper.order(signal.SIGKILL)
        self._keeper.wait("PgBouncer's end")

    def restart(self) -> None:
        """Cut all connections, and accept new ones."""
        self.stop()
        self.start()

    def _configure(self) -> None:
        users = Path(self._command[1]).with_name("users.txt")
        users.write_text(f'"{unquote(urlsplit(self._dsn).username or "")}" "{self._password}"\n')
        settings = {**self._settings, "listen_port": self.port, "auth_type": "md5", "auth_file": users}
        lines = [f"{name} = {value}" for name, value in settings.items()]
        text = "\n".join(["[databases]", f"* = {_target(self._dsn)}", "[pgbouncer]", *lines, ""])
        Path(self._command[1]).write_text(text)

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@asynccontextmanager
async def pgbouncer(dsn: str, mode: Mode = "transaction", size: int = 5, **settings: object) -> AsyncIterator[Pooler]:
    """Yield a pooler with at most that many server connections for each database; settings as in pgbouncer.ini."""
    account, program = embedded._account(), _program()
    environment = embedded._environment(sys.executable, program)
    with embedded._kept(account, embedded._folder(account, None), environment) as keeper:
        embedded._give(keeper.root, account)
        fixed = {
            "listen_addr": "127.0.0.1",
            "unix_socket_dir": "",
            "admin_users": urlsplit(dsn).username,
            "pool_mode": mode,
            "default_pool_size": size,
        }
        pooler = Pooler(dsn, program, keeper, {**fixed, **settings})
        pooler.start()
        yield pooler


def _program() -> str:
    """Return the path of PgBouncer; ordinary accounts do not always have its folder in PATH."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if not found:
        missing("PgBouncer is not installed (Debian and Ubuntu: apt-get install pgbouncer)")
    return found


def _target(dsn: str) -> str:
    """Return PgBouncer's settings for the server and the role of the DSN; the client chooses the database."""
    parts = urlsplit(dsn)
    values = {"host": parts.hostname, "port": parts.port or 5432, "user": parts.username, "password": parts.password}
    values |= {key: value for key, value in parse_qsl(parts.query) if key in {"host", "port"}}
    pairs = {key: unquote(str(value)).replace("'", "''") for key, value in values.items() if value}
    return " ".join(f"{key}='{value}'" for key, value in pairs.items())
