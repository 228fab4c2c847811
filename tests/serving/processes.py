"""Real servers, as processes on ports of their own, that serve the application of `served.py`."""

import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx2
from anyio.abc import Process

from tests.support import Gate, until, waiters

ROOT = Path(__file__).parents[2]
PATIENCE = 40.0
"""Seconds for what takes one or two: a server starts five processes, and the machine is busy."""


class Server(NamedTuple):
    """The start of a server: `workers` processes start the application; `flags` are the recommended ones."""

    command: str
    flags: str = ""
    workers: int = 1


UVICORN = "uvicorn {app} --port {port}"
GUNICORN = "gunicorn {app} --bind 127.0.0.1:{port} --no-control-socket"
HYPERCORN = "hypercorn {app} --bind 127.0.0.1:{port}"
GRANIAN = "granian {app} --port {port} --interface asgi"

SERVERS = {
    "uvicorn": Server(UVICORN, "--lifespan on"),
    "uvicorn --workers 2": Server(f"{UVICORN} --workers 2", "--lifespan on", 2),
    "uvicorn --workers 4": Server(f"{UVICORN} --workers 4", "--lifespan on", 4),
    "uvicorn --reload": Server(f"{UVICORN} --reload --reload-dir {{folder}}", "--lifespan on"),
    "gunicorn": Server(f"{GUNICORN} -k asgi", "--asgi-lifespan on"),
    "gunicorn --workers": Server(f"{GUNICORN} -k asgi --workers 2", "--asgi-lifespan on", 2),
    "gunicorn -k uvicorn_worker": Server(f"{GUNICORN} -k uvicorn_worker.UvicornWorker --workers 2", workers=2),
    "hypercorn": Server(f"{HYPERCORN} --workers 0"),
    "hypercorn --workers": Server(f"{HYPERCORN} --workers 2", workers=2),
    "granian": Server(GRANIAN),
    "granian --workers": Server(f"{GRANIAN} --workers 2", workers=2),
}


HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
"""The request headers of a websocket; a server that accepts it answers with 101."""


class Answer(NamedTuple):
    """The answer to a request."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Serving:
    """A server that runs, or has ended. Its port is its own from before its start on."""

    process: Process
    port: int
    log: Path

    async def ask(self, path: str = "/", headers: Mapping[str, str] | None = None) -> Answer | None:
        """Return the answer to a request on a connection of its own; None where there is none."""
        async with httpx2.AsyncClient(verify=False, trust_env=False, timeout=2) as client:
            try:
                response = await client.get(f"http://127.0.0.1:{self.port}{path}", headers=headers)
            except httpx2.TransportError:
                return None
            return Answer(response.status_code, response.text)

    async def answers(self, status: int, path: str = "/") -> Answer:
        """Return the first answer with this status."""

        async def found() -> Answer | None:
            assert self.process.returncode is None, self.log.read_text()
            answer = await self.ask(path)
            return answer if answer and answer.status == status else None

        found_answer = await until(found, PATIENCE)
        assert found_answer is not None
        return found_answer

    async def is_silent(self) -> None:
        """Return when a request gets no answer."""

        async def silent() -> bool:
            return await self.ask() is None

        await until(silent, PATIENCE)

    async def ended(self, seconds: float = PATIENCE) -> int:
        """Return the exit code, once it has ended."""
        with anyio.fail_after(seconds):
            return await self.process.wait()

    def tell(self, number: signal.Signals) -> None:
        """Send its first process a signal, as a supervisor does."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End all its processes at once, as the end of their container does."""
        os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class Starting:
    """The common parts of one test's servers: a database, a folder of migrations, and a folder for their logs."""

    dsn: str
    folder: Path
    logs: Path
    count: int = 0

    @asynccontextmanager
    async def one(
        self, name: str, app: str = "app", *, flags: str | None = None, **choices: Any
    ) -> AsyncIterator[Serving]:
        """Start a server with the recommended flags, or with these; none of its processes outlives the block.

        `choices` are the application's: `hook`, options of its hook, `on_failure`, what it does then, and `raises`,
        whether its own lifespan fails behind that.
        """
        server = SERVERS[name]
        self.count += 1
        log = self.logs / f"{self.count}.log"
        with _reserved_port() as port, log.open("wb") as output:
            words = f"{server.command} {server.flags if flags is None else flags}"
            command = words.format(app=f"tests.serving.served:{app}", port=port, folder=self.folder)
            # A group of its own, so that one signal ends the server and its workers.
            process = await anyio.open_process(
                [sys.executable, "-m", *command.split()],
                cwd=ROOT,
                env={**os.environ, **self._environment(choices)},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            serving = Serving(process, port, log)
            try:
                yield serving
            finally:
                with anyio.CancelScope(shield=True):
                    await _end(serving)

    def _environment(self, choices: Any) -> dict[str, str]:
        return {
            "SERVED_DSN": self.dsn,
            "SERVED_FOLDER": str(self.folder),
            "SERVED_CHOICES": json.dumps(choices),
        }


@contextmanager
def _reserved_port() -> Iterator[int]:
    """Yield a port that no other process gets meanwhile: it is bound here, and a server may bind it, too."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
        if sys.platform != "linux":
            # Elsewhere it takes SO_REUSEPORT on both sides.
            reserved.close()
        yield port


async def _end(serving: Serving) -> None:
    """End all of its processes, first with SIGTERM: semaphores that workers share would outlive SIGKILL."""
    with anyio.move_on_after(3), suppress(ProcessLookupError):
        serving.tell(signal.SIGTERM)
        await serving.process.wait()
    with suppress(ProcessLookupError):
        serving.kill()
    await serving.process.aclose()


@asynccontextmanager
async def hammered(servers: Sequence[Serving]) -> AsyncIterator[list[Answer]]:
    """Send requests to all servers all the time, and yield the list that collects the answers."""
    seen: list[Answer] = []

    async def hammer(serving: Serving) -> None:
        while True:
            if answer := await serving.ask():
                seen.append(answer)
            await anyio.sleep(0.05)

    async with anyio.create_task_group() as tasks:
        for serving in servers:
            tasks.start_soon(hammer, serving)
        yield seen
        tasks.cancel_scope.cancel()


async def everybody_started(closed: Gate, name: str, instances: int = 1) -> None:
    """Return when one worker of all instances waits at the gate, and all others wait for that worker."""
    await closed.reached(PATIENCE)
    if others := instances * SERVERS[name].workers - 1:
        await waiters(closed.dsn, others, PATIENCE)
