"""A migration that is slower than a server's patience, at its start and when it replaces its workers."""

import importlib
import inspect
import signal
from pathlib import Path

import anyio
import pytest

from pgratchet import Migrator
from tests.serving.conftest import Start
from tests.serving.processes import HANDSHAKE, PATIENCE
from tests.support import PASS_GATE, Write, deserted, exists, gate, states, until

pytestmark = pytest.mark.anyio

LEDGER = {"001_ledger.sql": "CREATE TABLE ledger (n int);"}
SLOW = {"002_b.sql": f"INSERT INTO ledger VALUES (2); CREATE TABLE b (); {PASS_GATE}"}
HASTE = """
import asyncio, types
from gunicorn.asgi import lifespan

async def wait_for(what, timeout):
    return await asyncio.wait_for(what, timeout / 10)

lifespan.asyncio = types.SimpleNamespace(**{**vars(asyncio), "wait_for": wait_for})
"""
"""A configuration of gunicorn's, which is a program: its own code gives a start up after 3 s then, not after 30."""
SERVE = {"on_slow": "serve-not-ready", "slow_after": 0.3}
ENDING = {
    "uvicorn": -signal.SIGTERM,
    "uvicorn --workers 2": 0,
    "gunicorn --workers": 0,
    "gunicorn -k uvicorn_worker": 0,
    "hypercorn": 0,
    "hypercorn --workers": 0,
    "granian --workers": 0,
}
"""Exit codes after SIGTERM; -15 is what a shell calls 143."""


@pytest.fixture
def hasty(tmp_path: Path) -> str:
    """Return the flag that makes gunicorn hasty."""
    configuration = tmp_path / "hasty.py"
    configuration.write_text(HASTE)
    return f"--config {configuration}"


class TestServedNotReady:
    """With a threshold below the server's patience."""

    @pytest.mark.parametrize("name", ["uvicorn --workers 2", "gunicorn", "hypercorn", "granian"])
    async def test_a_served_application_says_that_it_is_not_ready_until_it_is(
        self, dsn: str, start: Start, name: str
    ) -> None:
        async with gate(dsn, PATIENCE) as closed, start(LEDGER | SLOW).one(name, hook=SERVE) as serving:
            assert (await serving.answers(503)).json["error"] == "the schema is not ready"
            await closed.reached(PATIENCE)
            assert (await serving.answers(200, "/livez")).text == "alive"
            assert (await serving.answers(503, "/readyz")).json["state"] in ("running", "pending")
            refused = await serving.ask(headers=HANDSHAKE)
            assert refused is not None
            # gunicorn has no word for more than a refusal.
            assert refused.status == (403 if name == "gunicorn" else 503)
            await closed.open()
            assert (await serving.answers(200)).json["rows"] == 1
            assert (await serving.answers(200, "/readyz")).json["state"] == "applied"
        assert await states(dsn) == {"1": "applied", "2": "applied"}

    @pytest.mark.parametrize("name", ENDING)
    async def test_a_served_application_ends_in_mid_migration_when_it_is_told_to(
        self, dsn: str, start: Start, name: str
    ) -> None:
        servers = start(LEDGER | SLOW)
        async with gate(dsn, PATIENCE) as closed, servers.one(name, hook=SERVE) as serving:
            await serving.answers(503)
            await closed.reached(PATIENCE)
            serving.tell(signal.SIGTERM)
            assert await serving.ended() == ENDING[name]
            await nothing_is_left(dsn)
        await goes_on(dsn, servers.folder)


class TestNotServed:
    """With `on_slow="wait"`."""

    @pytest.mark.parametrize("name", ["uvicorn", "gunicorn", "hypercorn", "granian"])
    async def test_a_server_that_still_starts_does_not_end_in_mid_migration_when_it_is_told_to(
        self, dsn: str, start: Start, name: str
    ) -> None:
        """No server looks at a signal before its application has started."""
        servers = start(LEDGER | SLOW)
        async with gate(dsn, PATIENCE) as closed, servers.one(name) as serving:
            await closed.reached(PATIENCE)
            serving.tell(signal.SIGTERM)
            with pytest.raises(TimeoutError):
                await serving.ended(1)
            await closed.open()
            assert await serving.ended() == ENDING.get(name, 0)
        assert await states(dsn) == {"1": "applied", "2": "applied"}

    async def test_a_server_that_is_killed_while_it_starts_leaves_nothing(self, dsn: str, start: Start) -> None:
        servers = start(LEDGER | SLOW)
        async with gate(dsn, PATIENCE) as closed, servers.one("gunicorn --workers") as serving:
            await closed.reached(PATIENCE)
            serving.kill()
            await nothing_is_left(dsn)
        await goes_on(dsn, servers.folder)

    @pytest.mark.parametrize(("name", "code"), [("hypercorn", 1), ("hypercorn --workers", 0)])
    async def test_hypercorn_gives_up_and_ends(
        self, dsn: str, start: Start, tmp_path: Path, name: str, code: int
    ) -> None:
        configuration = tmp_path / "hypercorn.toml"
        configuration.write_text("startup_timeout = 3")
        servers = start(LEDGER | SLOW)
        async with gate(dsn, PATIENCE) as closed, servers.one(name, flags=f"-c {configuration}") as serving:
            await closed.reached(PATIENCE)
            assert await serving.ended() == code
            await nothing_is_left(dsn)
        await goes_on(dsn, servers.folder)

    @pytest.mark.third_party
    def test_gunicorn_gives_up_after_half_a_minute(self) -> None:
        assert "timeout=30.0" in inspect.getsource(importlib.import_module("gunicorn.asgi.lifespan"))

    async def test_gunicorn_gives_up_and_serves_and_the_gate_stays_shut(
        self, dsn: str, start: Start, hasty: str
    ) -> None:
        servers = start(LEDGER | SLOW)
        async with gate(dsn, PATIENCE) as closed, servers.one("gunicorn", flags=hasty) as serving:
            await closed.reached(PATIENCE)
            await serving.answers(200, "/livez")
            await nothing_is_left(dsn)
            await closed.open()
            assert (await serving.answers(503, "/readyz")).json["state"] == "failed"
            assert (await serving.answers(503)).json["state"] == "failed"
        await goes_on(dsn, servers.folder)

    @pytest.mark.third_party
    async def test_gunicorn_gives_up_and_ends_where_lifespan_is_on(self, dsn: str, start: Start, hasty: str) -> None:
        servers = start(LEDGER | SLOW)
        async with (
            gate(dsn, PATIENCE) as closed,
            servers.one("gunicorn", flags=f"--asgi-lifespan on {hasty}") as given_up,
        ):
            await closed.reached(PATIENCE)
            assert await given_up.ended() == 3
            await nothing_is_left(dsn)
        await goes_on(dsn, servers.folder)


class TestReplacedWorkers:
    """With SIGHUP, when a file was added."""

    async def test_uvicorn_kills_the_new_worker_and_keeps_the_old_ones(
        self, dsn: str, start: Start, write: Write
    ) -> None:
        servers = start(LEDGER)
        async with servers.one("uvicorn --workers 2") as serving, gate(dsn, PATIENCE) as closed:

            async def both_started() -> bool:
                return serving.log.read_text().count("Application startup complete") == 2

            # One that starts later would find the slow file there, and nobody loses patience with a first start.
            await until(both_started, PATIENCE)
            await serving.answers(200)
            write(SLOW)
            serving.tell(signal.SIGHUP)
            await closed.reached(PATIENCE)
            await nothing_is_left(dsn)
            assert (await serving.answers(200)).json["rows"] == 0
            await closed.open()
            assert "was not ready in time; keeping worker" in serving.log.read_text()
        await goes_on(dsn, servers.folder)

    @pytest.mark.third_party
    async def test_granian_ends_the_old_workers_before_the_new_ones_serve(
        self, dsn: str, start: Start, write: Write
    ) -> None:
        servers = start(LEDGER)
        async with servers.one("granian", flags="--respawn-interval 0.1") as serving, gate(dsn, PATIENCE) as closed:
            await serving.answers(200)
            write(SLOW)
            serving.tell(signal.SIGHUP)
            await closed.reached(PATIENCE)
            await serving.is_silent()
            await closed.open()
            assert (await serving.answers(200)).json["rows"] == 1


async def nothing_is_left(dsn: str) -> None:
    """Return when the second version's session is gone, with all that it did."""
    await deserted(dsn, PATIENCE)
    assert await states(dsn) == {"1": "applied"}
    assert not await exists(dsn, "b")


async def goes_on(dsn: str, folder: Path) -> None:
    """Prove that the next one finds the lock free, and does what is left."""
    with anyio.fail_after(PATIENCE):
        assert [step.version for step in await Migrator(dsn, folder).up()] == ["2"]
