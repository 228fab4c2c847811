"""The composition of docker-compose.yml as processes: its job, its replicas, its proxy, each with its own command.

Only addresses differ. A container has an address of its own, and so has each replica here, all with one port; what
Docker's resolver says of their common name, a small one says here.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import anyio
import anyio.to_thread
import httpx2
import pytest

from pgratchet import embedded
from tests.deployment import ROOT, image_command, services
from tests.support import free_port, missing, tell, until

PATIENCE = 60.0
REPLICAS: int = services()["app"]["deploy"]["replicas"]
NETWORK = f"127.{1 + (os.getpid() >> 8) % 250}.{os.getpid() % 256}"
"""One for each process that runs tests; Linux has them all."""


class Addresses(NamedTuple):
    """The addresses behind the names of the composition."""

    database: int
    port: int
    resolver: int

    @property
    def replicas(self) -> list[str]:
        return [f"{NETWORK}.{number}" for number in range(2, 2 + REPLICAS)]

    def environment(self, service: str) -> dict[str, str]:
        """Return the environment of a container of the service, without our own variables."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DATABASE_URL"))}
        theirs: dict[str, str] = services()[service]["environment"]
        return ours | {
            name: text.replace("@database:5432", f"@127.0.0.1:{self.database}") for name, text in theirs.items()
        }

    def command(self, address: str) -> list[str]:
        """Return the image's own command, for one replica."""
        *start, host, _, port = image_command()
        assert (start[-1], host, port) == ("--host", "0.0.0.0", "8000")  # noqa: S104 - what containers listen on
        return [*_program(start), address, "--port", str(self.port)]

    def proxy(self) -> str:
        """Return the proxy's configuration."""
        text = (ROOT / "examples" / "haproxy.cfg").read_text()
        replaced = {
            "bind :8000\n": f"bind {NETWORK}.1:{self.port}\n",
            " 127.0.0.11:53\n": f" {NETWORK}.1:{self.resolver}\n",
            " app:8000\n": f" app:{self.port}\n",
        }
        for theirs, ours in replaced.items():
            assert text.count(theirs) == 1
            text = text.replace(theirs, ours)
        return text


class Replica:
    """One container of the service `app`; it can be ended and started again, also from another image."""

    def __init__(self, address: str, addresses: Addresses, log: Path) -> None:
        self.url = f"http://{address}:{addresses.port}"
        self._command = addresses.command(address)
        self._environment = addresses.environment("app")
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, image: Path) -> None:
        """Start it with an empty log."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, cwd=image, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Return its exit code once it has ended; None: it was never started."""
        if self._process is None:
            return None
        self._process.send_signal(number)
        return await anyio.to_thread.run_sync(self._process.wait, PATIENCE)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    async def told(self, line: str) -> None:
        """Return when its log contains the text."""

        async def found() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log
            return line in self.log

        await until(found, PATIENCE)

    async def refused_the_proxy(self) -> None:
        """Return when it has answered the proxy that it is not ready."""
        await self.told('"GET /readyz HTTP/1.0" 503')

    async def served(self) -> None:
        """Return when it has answered a request that came through the proxy."""
        await self.told('"GET /tenants HTTP/1.1" 200')


class Composition(NamedTuple):
    """A database with its roles, a proxy, and replicas, none of which has been started."""

    dsn: str
    client: httpx2.AsyncClient
    replicas: list[Replica]
    addresses: Addresses

    async def job(self, image: Path) -> int:
        """Run the service `migrate`; returns its exit code."""
        command = _program(services()["migrate"]["command"])
        done = await anyio.run_process(command, cwd=image, env=self.addresses.environment("migrate"), check=False)
        return done.returncode


@asynccontextmanager
async def composition(folder: Path, memory: Path | None) -> AsyncIterator[Composition]:
    """Yield the composition; all of its processes have ended when the block is left."""
    program = haproxy()
    with embedded.server(tcp=True, folder=memory) as server:
        dsn = server.dsn_for("service")
        await tell(server.dsn, "CREATE DATABASE service")
        await tell(dsn, (ROOT / "examples" / "roles.sql").read_text())
        async with _resolver() as resolver:
            addresses = Addresses(server.port, free_port(f"{NETWORK}.1"), resolver)
            replicas = [Replica(each, addresses, folder / f"{each}.log") for each in addresses.replicas]
            with _proxy(program, addresses, folder):
                async with httpx2.AsyncClient(
                    base_url=f"http://{NETWORK}.1:{addresses.port}", trust_env=False, timeout=PATIENCE
                ) as client:
                    try:
                        yield Composition(dsn, client, replicas, addresses)
                    finally:
                        with anyio.CancelScope(shield=True):
                            for replica in replicas:
                                await replica.end(signal.SIGKILL)


def image(folder: Path, files: dict[str, str] | None = None, **replaced: str) -> Path:
    """Return a folder with the image's files, with more files, and with words of the application replaced."""
    for part in ("migrations", "examples/service"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    application = folder / "examples" / "service" / "app.py"
    for old, new in replaced.items():
        text = application.read_text()
        assert old in text
        application.write_text(text.replace(old, new))
    return folder


def haproxy() -> str:
    """Return the path of HAProxy; ordinary accounts do not always have its folder in PATH."""
    if sys.platform != "linux":
        pytest.skip("needs an address of its own for each replica, as Linux has them")
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if not found:
        missing("HAProxy is not installed (Debian and Ubuntu: apt-get install haproxy)")
    return found


@contextmanager
def _proxy(program: str, addresses: Addresses, folder: Path) -> Iterator[None]:
    settings = folder / "haproxy.cfg"
    settings.write_text(addresses.proxy())
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([program, "-db", "-f", settings], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


class _Resolver(asyncio.DatagramProtocol):
    """Answers each question with the addresses of all replicas (RFC 1035, 4.1)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5
        addresses = Addresses(0, 0, 0).replicas if data[end - 4 : end] == b"\0\1\0\1" else []
        head = data[:2] + b"\x81\x80\0\1" + len(addresses).to_bytes(2, "big") + bytes(4)
        answers = [b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(each) for each in addresses]
        self._transport.sendto(head + data[12:end] + b"".join(answers), addr)


@asynccontextmanager
async def _resolver() -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(_Resolver, (f"{NETWORK}.1", 0))
    try:
        port: int = transport.get_extra_info("sockname")[1]
        yield port
    finally:
        transport.close()


def _program(command: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", *command]
