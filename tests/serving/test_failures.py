"""What fails when nobody waits for it any more, and what raises where no framework answers for it."""

import signal

import pytest

from pgratchet import Migrator
from tests.serving.conftest import Start
from tests.serving.processes import PATIENCE, everybody_started
from tests.support import PASS_GATE, Write, ask, gate, states, until

pytestmark = pytest.mark.anyio

LEDGER = {"001_ledger.sql": "CREATE TABLE ledger (n int); CREATE SEQUENCE runs;"}
FAILING = {"002_b.sql": f"SELECT nextval('runs'); {PASS_GATE} SELECT 1/0;"}
FIXED = {"002_b.sql": "SELECT nextval('runs');"}
SERVE = {"on_slow": "serve-not-ready", "slow_after": 0.3}
EXIT = {
    "uvicorn": {3},
    "uvicorn --workers 2": {0},
    "gunicorn --workers": {1, 3},
    "gunicorn -k uvicorn_worker": {1, 3},
    "hypercorn": {3},
    # -SIGTERM as a byte, where hypercorn ends its other worker before that has a handler.
    "hypercorn --workers": {0, 241},
    "granian --workers": {1},
}
"""Exit codes where `on_failure` is sys.exit(3)."""
RAISING = {"uvicorn": 3, "gunicorn": 3, "hypercorn": 1, "granian": 1}
"""Exit codes where the application raises out of its lifespan, behind the gate."""


@pytest.mark.parametrize("name", EXIT)
async def test_an_application_ends_when_the_work_beside_it_fails(
    dsn: str, start: Start, write: Write, name: str
) -> None:
    servers = start(LEDGER | FAILING)
    async with gate(dsn, PATIENCE) as closed, servers.one(name, hook=SERVE, on_failure="exit") as serving:
        await serving.answers(503)
        await everybody_started(closed, name)
        await closed.open()
        assert await serving.ended() in EXIT[name]
    assert await ask(dsn, "SELECT last_value FROM runs") == 1
    assert await states(dsn) == {"1": "applied", "2": "failed"}
    assert [step.version for step in await Migrator(dsn, write(FIXED)).up()] == ["2"]


async def test_a_signal_to_itself_ends_a_server_of_one_process(dsn: str, start: Start) -> None:
    servers = start(LEDGER | FAILING)
    async with gate(dsn, PATIENCE) as closed, servers.one("uvicorn", hook=SERVE, on_failure="signal") as serving:
        await serving.answers(503)
        await closed.reached(PATIENCE)
        await closed.open()
        assert await serving.ended() == -signal.SIGTERM


async def test_a_signal_to_itself_ends_a_worker_that_is_replaced_and_fails_again(dsn: str, start: Start) -> None:
    """For ever, where it fails later than the threshold each time: exit with 3 instead."""
    servers = start(LEDGER | FAILING)

    async def again() -> bool:
        return bool(await ask(dsn, "SELECT last_value > 1 FROM runs"))

    async with gate(dsn, PATIENCE) as closed, servers.one("gunicorn", hook=SERVE, on_failure="signal") as serving:
        await serving.answers(503)
        await closed.reached(PATIENCE)
        await closed.open()
        await until(again, PATIENCE)


@pytest.mark.parametrize("name", RAISING)
async def test_a_lifespan_that_raises_is_a_failed_start_behind_the_gate_and_none_without_it(
    dsn: str, start: Start, name: str
) -> None:
    servers = start(LEDGER | {"002_b.sql": "SELECT 1/0;"})
    async with servers.one(name, "ungated", flags="") as serving:
        assert (await serving.answers(200)).json["rows"] == 0
    async with servers.one(name, "gated", flags="") as serving:
        assert await serving.ended() == RAISING[name]
    assert await states(dsn) == {"1": "applied", "2": "failed"}


@pytest.mark.parametrize("name", RAISING)
async def test_a_lifespan_that_raises_on_a_schema_that_is_ready_is_a_failed_start_too(
    dsn: str, start: Start, name: str
) -> None:
    async with start(LEDGER).one(name, "gated", flags="", raises=True) as serving:
        assert await serving.ended() == RAISING[name]
    assert await states(dsn) == {"1": "applied"}


@pytest.mark.parametrize("name", ["uvicorn", "gunicorn", "hypercorn", "granian"])
async def test_the_last_lines_of_a_failed_start_are_its_report(dsn: str, start: Start, name: str) -> None:
    servers = start(LEDGER | {"002_b.sql": "SELECT 1;\nSELECT nope FROM ledger;"})
    async with servers.one(name) as serving:
        await serving.ended()
        said = serving.log.read_text()
    report = [
        "002_b.sql:2:8: up 2 b failed in statement 2 of 2",
        "",
        "  1 | SELECT 1;",
        "> 2 | SELECT nope FROM ledger;",
        "    |        ^",
        "",
        'SQLSTATE 42703: column "nope" does not exist',
        "",
        "finished before it: 1; they stay",
        "fix the file and start again: the failed migration was rolled back",
    ]
    before, found, after = said.rpartition("\n".join(report))
    assert found, said
    assert after.count("\n") < 9
    assert 'File "' not in after
    if name == "uvicorn":
        assert before.count("\n") < 20
    assert len(await Migrator(dsn, start({"002_b.sql": "SELECT 1;"}).folder).up()) == 1
