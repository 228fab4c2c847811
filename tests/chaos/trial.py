"""One trial: replicas that are hurt and started again, then one calm run, then the audit."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from pgratchet import HistoryError, Migrator, PgratchetError, embedded
from tests.chaos.audit import Report, abandoned, audit, undone
from tests.chaos.harm import GLANCE, ROLE, SERVER_GONE, STRANGER, Scene
from tests.chaos.history import FOUNDATION
from tests.chaos.person import settle
from tests.chaos.plan import Plan, Route
from tests.chaos.replica import start
from tests.faults.proxy import proxy
from tests.poolers import Pooler, pgbouncer
from tests.support import connected, create_database, drop_database, tell

PATIENCE = 60.0
"""Seconds after which a replica that still runs is taken to hang; all harm is over long before."""

HARM_SECONDS = 8.0
"""Seconds after which no harm begins, and lasting harm ends."""

CALM_BUDGET = 30.0

POOL = 3
"""The number of the pooler's sessions."""

MOST_LIVES = 12
MOST_DOUBTS = 10


class Outcome(NamedTuple):
    """The result of a trial; its evidence is in `folder`, and kept if there is a violation."""

    seed: int
    planned: int
    injected: dict[str, int]
    doubts: int
    violations: tuple[str, ...]
    seconds: float
    folder: str


class Trial:
    """One trial on a server of its own."""

    def __init__(self, server: embedded.Server, plan: Plan, folder: Path) -> None:
        self._server = server
        self._plan = plan
        self._folder = folder
        self._database = f"chaos_{plan.seed}"
        self._dsn = server.dsn_for(self._database)
        self._reports: list[Report] = []
        self._violations: list[str] = []
        self._doubts = 0
        self._injected: dict[str, int] = {}

    async def run(self) -> Outcome:
        """Return the outcome; afterwards the database is gone, and the evidence is in the folder."""
        began = time.monotonic()
        self._write()
        logged = self._server.log.stat().st_size
        async with self._a_database():
            async with self._a_pooler() as between:
                await self._hurt(between)
                await self._calm()
                self._violations += await abandoned(self._dsn)
            log = self._server.log.read_bytes()[logged:].decode(errors="replace")
            self._violations += await audit(self._dsn, self._plan.history, self._reports, log)
            if self._violations:
                await self._keep(log)
        violations, seconds = tuple(self._violations), time.monotonic() - began
        faults = len(self._plan.faults)
        return Outcome(self._plan.seed, faults, self._injected, self._doubts, violations, seconds, str(self._folder))

    def _write(self) -> None:
        """Write down the plan, and the folder of each image."""
        for count in {replica.files for replica in self._plan.replicas}:
            self._image(count).mkdir(parents=True)
            for name, text in list(self._plan.history.texts.items())[:count]:
                (self._image(count) / name).write_text(text)
        (self._folder / "plan.txt").write_text(str(self._plan))

    def _image(self, count: int) -> Path:
        return self._folder / f"migrations-{count}"

    @asynccontextmanager
    async def _a_database(self) -> AsyncIterator[None]:
        async with connected(self._server.dsn) as connection:
            await create_database(connection, self._database)
        try:
            await tell(self._dsn, FOUNDATION)
            yield
        finally:
            async with connected(self._server.dsn) as connection:
                await drop_database(connection, self._database)

    @asynccontextmanager
    async def _a_pooler(self) -> AsyncIterator[Pooler | None]:
        """Yield a pooler if the plan has one and it is installed."""
        async with AsyncExitStack() as stack:
            between = None
            if self._plan.pooling:
                with suppress(pytest.skip.Exception):
                    made = pgbouncer(self._dsn, self._plan.pooling, POOL, server_login_retry=0.2)
                    between = await stack.enter_async_context(made)
            yield between

    async def _hurt(self, between: Pooler | None) -> None:
        """Run the replicas, and do the harm, until all of them have come to their end."""
        async with proxy(self._dsn) as way, anyio.create_task_group() as observing:
            scene = Scene(self._server, self._dsn, self._database, way, between)
            observing.start_soon(scene.observe)
            with anyio.move_on_after(PATIENCE) as patience:
                async with anyio.create_task_group() as harm:
                    harm.start_soon(self._harm, scene)
                    async with anyio.create_task_group() as replicas:
                        for number in range(len(self._plan.replicas)):
                            replicas.start_soon(self._supervise, scene, number)
                    harm.cancel_scope.cancel()
            if patience.cancelled_caught:
                self._violations.append(f"after {PATIENCE:g} s replicas were still at work: {scene.sessions}")
            observing.cancel_scope.cancel()
        self._injected = {kind.name: count for kind, count in scene.injected.items()}

    async def _harm(self, scene: Scene) -> None:
        await scene.began.wait()
        with anyio.move_on_after(HARM_SECONDS):
            async with anyio.create_task_group() as group:
                for fault in self._plan.faults:
                    group.start_soon(scene.inject, fault)

    async def _supervise(self, scene: Scene, number: int) -> None:
        """Start a replica, and start it again after each failure."""
        await anyio.sleep(self._plan.replicas[number].late)
        for life in range(MOST_LIVES):
            report = await self._live(scene, number, life)
            self._reports.append(report)
            self._violations += await self._undone(report)
            if report.code == 0 or report.error == "HistoryError":
                return
            await anyio.sleep(min(0.1 * 2**life, 1.0))
        self._violations.append(f"replica {number} did not come to its end in {MOST_LIVES} lives")

    async def _undone(self, report: Report) -> list[str]:
        """Return the versions that a successful replica has left undone, as soon as the server answers."""
        files = self._plan.history.files[: self._plan.replicas[report.replica].files]
        while True:
            try:
                return await undone(self._dsn, [file.version for file in files], report)
            except SERVER_GONE:
                await anyio.sleep(GLANCE)

    async def _live(self, scene: Scene, number: int, life: int) -> Report:
        path = self._folder / f"replica-{number}-{life}"
        process = start(self._options(scene, number), path, self._plan.replicas[number].manner)
        scene.processes[number] = process
        try:
            await anyio.wait_readable(process.sentinel)
        finally:
            process.kill()
            process.join()
        code = process.exitcode
        if code is None:
            raise AssertionError("a process that was joined has an exit code")
        return _report(number, life, code, path.with_suffix(".out"))

    def _options(self, scene: Scene, number: int) -> dict[str, Any]:
        """Return the arguments of a replica's migrator. Its role identifies its sessions, except the pooler's."""
        replica = self._plan.replicas[number]
        direct = self._dsn.replace("//postgres:", f"//{ROLE}{number}:")
        options = {
            "dsn": direct,
            "migrations": self._image(replica.files),
            "budget": replica.budget,
            "lock": replica.lock,
        }
        if replica.route is Route.PROXY:
            options["dsn"] = scene.proxy.dsn_for(direct)
        elif replica.route is not Route.DIRECT and scene.pooler:
            options["dsn"] = scene.pooler.dsn
        return options | ({"direct_dsn": direct} if replica.route is Route.BOTH else {})

    async def _calm(self) -> None:
        """Run once more without harm; settle statements in doubt as a person would."""
        migrator = Migrator(self._dsn, self._image(len(self._plan.history.files)), budget=CALM_BUDGET)
        try:
            with anyio.fail_after(2 * CALM_BUDGET):
                finished = await self._settled(migrator)
        except (PgratchetError, TimeoutError) as error:
            self._violations.append(f"the calm run ended with {type(error).__name__}: {error}")
        else:
            self._reports.append(Report(-1, 0, 0, finished))

    async def _settled(self, migrator: Migrator) -> tuple[str, ...]:
        """Return the steps that the calm run has finished; it may meet one doubt for each bare statement."""
        while True:
            try:
                return tuple(step.version for step in await migrator.up())
            except HistoryError as error:
                self._doubts += 1
                if self._doubts > MOST_DOUBTS:
                    raise
                if wrong := await settle(migrator, self._dsn, self._plan.history, error):
                    self._violations.append(wrong)

    async def _keep(self, log: str) -> None:
        """Write down the content of the database; files and replicas' output are in the folder already."""
        (self._folder / "server.log").write_text(log)
        (self._folder / "violations.txt").write_text("\n".join(self._violations) + "\n")
        (self._folder / "reports.txt").write_text("\n".join(map(str, self._reports)) + "\n")
        async with connected(self._dsn, application_name=STRANGER) as connection:
            for table in ("schema_migrations", "ledger"):
                rows = [dict(row) for row in await connection.fetch(f"SELECT * FROM {table} ORDER BY 1")]
                (self._folder / f"{table}.json").write_text(json.dumps(rows, indent=1, default=str))


def _report(number: int, life: int, code: int, path: Path) -> Report:
    said = path.read_text() if path.exists() else ""
    if not said.strip():
        return Report(number, life, code)
    answer = json.loads(said)
    return Report(number, life, code, tuple(answer["finished"]), answer["error"], answer["text"])
