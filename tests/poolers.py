"""A real PgBouncer before a server, gone with the block that started it."""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import urlsplit

import pytest

REQUIRED = "PGRATCHET_REQUIRE_ALL"
"""A variable that makes a failure of what would be skipped because a program is not installed."""


class Pooler:
    """Leads to the server of a DSN, from a port of 127.0.0.1; made by `pooler()`."""

    def __init__(self, command: list[str], folder: Path, port: int, dsn: str) -> None:
        self.log = folder / "log"
        self.port = port
        self._command = command
        self._dsn = dsn
        self._account = account()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """To the same database, through the pooler."""
        parts = urlsplit(self._dsn)
        return parts._replace(netloc=f"{parts.username}@127.0.0.1:{self.port}").geturl()

    def start(self) -> None:
        """Return when it accepts connections."""
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL, **self._account)
        deadline = time.monotonic() + 10
        while not self._accepts():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        """End at once, and all connections with it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Stop and start; the address stays."""
        self.stop()
        self.start()

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True


@contextmanager
def pooler(dsn: str, mode: str, size: int, **settings: str) -> Iterator[Pooler]:
    """Yield a pooler in a mode (session, transaction, statement) with at most so many server connections."""
    program = found("pgbouncer")
    folder, port = Path(mkdtemp(prefix="pooler-")), free_port()
    target = urlsplit(dsn)
    wanted = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": mode,
        "default_pool_size": str(size),
        "max_client_conn": "500",
        "logfile": str(folder / "log"),
    } | settings
    lines = [f"{name} = {value}" for name, value in wanted.items()]
    database = f"* = host={target.hostname} port={target.port} user={target.username}"
    (folder / "log").touch()
    (folder / "ini").write_text("\n".join(["[databases]", database, "[pgbouncer]", *lines, ""]))
    between = Pooler([program, str(folder / "ini")], folder, port, dsn)
    try:
        for path in (folder, *folder.iterdir()):
            own(path)
        between.start()
        yield between
    finally:
        between.stop()
        shutil.rmtree(folder)


def found(program: str) -> str:
    """Return where a program is; a test that needs it is skipped where it is not installed."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        message = f"{program} is not installed"
        (pytest.fail if REQUIRED in os.environ else pytest.skip)(message)
    return path


def account() -> dict[str, Any]:
    """Return who runs it, as Popen wants it: like PostgreSQL, it refuses root."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def own(path: Path) -> None:
    for who in [account()] if account() else []:
        os.chown(path, who["user"], who["group"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
