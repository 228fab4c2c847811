"""Three replicas of the example service start at the same moment on one empty database.

When this program ends, everything that it started has ended too, also its private PostgreSQL.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import asyncpg

from pgratchet import embedded

ROOT = Path(__file__).resolve().parents[1]
SERVICE = ROOT / "examples" / "service"
VERSIONS = ROOT / "migrations" / "versions"
REPLICAS = 3
PATIENCE = 40.0  # seconds; normally two or three are enough
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

# uvicorn chooses a free port and logs it: another process could take a port that was chosen here.
_ADDRESS = re.compile(r"running on (http://127\.0\.0\.1:\d+)")
_APPLIED = re.compile(r"^INFO pgratchet: up (\d+) \w+: done", re.MULTILINE)
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_UVICORN = ("uvicorn", "--app-dir", str(SERVICE), "app:app", "--port", "0", "--no-access-log", "--no-use-colors")


class ReplicaError(Exception):
    """A replica ended, or did not get ready in time; the message has the end of its log."""


class Replica:
    """One uvicorn process that serves the application, and its log."""

    def __init__(self, name: str, dsn: str, folder: Path, mode: str) -> None:
        self.name = name
        self.address = ""
        self._log = folder / f"{name}.log"
        separator = "&" if "?" in dsn else "?"
        settings = {"DATABASE_URL": f"{dsn}{separator}application_name={name}", "MIGRATION_MODE": mode}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *_UVICORN],
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        """The output so far."""
        return self._log.read_text(errors="replace")

    def wait_until_ready(self, deadline: float) -> None:
        """Return when the replica answers that it is ready; raises ReplicaError if it ends, or at the deadline."""
        while not self._answers():
            if self.process.poll() is not None:
                raise ReplicaError(f"{self.name} ended with exit code {self.process.returncode}:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise ReplicaError(f"{self.name} was not ready within {PATIENCE:g} s:\n{self._tail()}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        if not (found := _ADDRESS.search(self.log)):
            return False
        self.address = found[1]
        try:
            with _DIRECTLY.open(f"{self.address}/readyz", timeout=PATIENCE):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return False

    def _tail(self) -> str:
        return "\n".join(f"    {line}" for line in self.log.splitlines()[-15:])


@contextmanager
def replicas(dsn: str, folder: Path, mode: str = "apply") -> Iterator[list[Replica]]:
    """Yield three replicas that are ready; they start together, and end with the block."""
    started: list[Replica] = []
    try:
        with _undisturbed():
            started.extend(Replica(f"replica-{number}", dsn, folder, mode) for number in range(1, REPLICAS + 1))
        deadline = time.monotonic() + PATIENCE
        for replica in started:
            replica.wait_until_ready(deadline)
        yield started
    finally:
        with _undisturbed():
            _end([replica.process for replica in started])


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Delay signals to the end of the block: a process that has started must get into the list."""
    came: list[int] = []
    handlers = {each: signal.signal(each, lambda number, _: came.append(number)) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for number in came:
            signal.raise_signal(number)


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + 5
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
            continue
        process.kill()
        process.wait()


async def _history(dsn: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(
            "SELECT version, name, applied_by, extract(epoch FROM finished_at - started_at) * 1000 AS ms "
            "FROM public.schema_migrations WHERE state = 'applied' ORDER BY version::bigint"
        )
    finally:
        await connection.close()


def _show(rows: Sequence[asyncpg.Record], fleet: Sequence[Replica]) -> None:
    """Print the history; raises ReplicaError unless history and logs have every migration once."""
    print("\nThe history: each migration, and the replica that applied it:\n")
    for row in rows:
        print(f"  {row['version']:>3}  {row['name']:<28} {row['applied_by'].split()[-1]:<12} {row['ms']:6.1f} ms")
    wanted = {str(int(path.name.split("_")[0])) for path in VERSIONS.glob("[0-9]*") if ".down." not in path.name}
    logged = Counter(version for replica in fleet for version in _APPLIED.findall(replica.log))
    if {row["version"] for row in rows} != wanted or logged != Counter(wanted):
        raise ReplicaError(f"not exactly once: the logs of the replicas say {dict(logged)}")
    print(f"\nThe logs of the replicas agree: {len(wanted)} migrations, each applied exactly once.")


def _status(dsn: str) -> None:
    print("\n$ pgratchet status\n", flush=True)
    # Not as --dsn: the DSN has a password, and everybody on this machine can read command lines.
    environment = {**os.environ, "PGRATCHET_DSN": dsn}
    subprocess.run([sys.executable, "-m", "pgratchet", "status"], cwd=ROOT, env=environment, check=True)


def demo() -> None:
    """Run the demo."""
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:4.1f} s] {text}", flush=True)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgratchet-demo-")))
        say("starting a private PostgreSQL, with an empty database")
        dsn = stack.enter_context(embedded.server()).dsn
        say(f"starting {REPLICAS} replicas of examples/service at the same moment")
        fleet = stack.enter_context(replicas(dsn, folder))
        say(f"all of them answer ready: {', '.join(replica.address for replica in fleet)}")
        _show(asyncio.run(_history(dsn)), fleet)
        _status(dsn)
        print()
        say("stopping everything")
    say("done: nothing is left running")


def _interrupt(number: int, _: object) -> None:
    # Only once: a second signal must not interrupt the clean-up.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    """Exit with 0, with 1 after a failure, or with 130 and the like when interrupted."""
    for each in SIGNALS:
        signal.signal(each, _interrupt)
    try:
        demo()
    except Exception as error:  # noqa: BLE001 - a newcomer needs a sentence, not a traceback
        sys.exit(f"the demo failed: {error}")


if __name__ == "__main__":
    main()
