"""A herd on what changes the primary by itself, while the first replica is in the middle of a file."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from uuid import uuid4

import pytest

from tests.engines import herd
from tests.engines.autofailover import Formation, auto_failover
from tests.engines.herd import Measured
from tests.engines.patroni import Cluster, patroni
from tests.processes import Replica
from tests.support import Write, tell

pytestmark = [pytest.mark.anyio, pytest.mark.third_party]

Engine = Cluster | Formation
ENGINES: dict[str, Callable[[], AbstractContextManager[Engine]]] = {
    "Patroni": patroni,
    "Patroni behind HAProxy": partial(patroni, proxy=True),
    "pg_auto_failover": auto_failover,
}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with ENGINES[request.param]() as engine:
        yield engine


@pytest.fixture
async def database(engine: Engine) -> str:
    name = f"herd_{uuid4().hex}"
    await engine.leader()
    await tell(engine.direct("postgres"), f"CREATE DATABASE {name}")
    return name


async def test_a_herd_gets_through_a_switchover(
    engine: Engine, database: str, write: Write, record_property: Measured
) -> None:
    folder, direct = write(herd.files()), engine.direct(database)
    codes = await herd.gets_through(
        folder, engine.dsn(database), direct, lambda _: engine.switch_over(), record_property
    )
    assert codes == [0] * herd.COUNT
    await herd.applied_once(direct, folder)


async def test_a_herd_gets_through_the_loss_of_the_primary(
    engine: Engine, database: str, write: Write, record_property: Measured, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, direct = write(herd.files()), engine.direct(database)
    lost = await engine.leader()

    async def lose(_: Replica) -> None:
        lost.lose()

    try:
        codes = await herd.gets_through(folder, engine.dsn(database), direct, lose, record_property)
    finally:
        lost.start()
    assert codes == [0] * herd.COUNT
    said = capfd.readouterr().err
    assert said.count("the connection to the server was lost") >= herd.COUNT
    assert "cannot connect" in said
    await herd.applied_once(direct, folder)
