"""A herd behind the newest PgBouncer, which gives a server connection to each session, or to each transaction."""

import subprocess

import pytest

from pgratchet import Migrator
from pgratchet.embedded import _account, _reachable
from tests.deployment import ROOT
from tests.engines import herd
from tests.engines.herd import Measured
from tests.poolers import Mode, pgbouncer
from tests.support import Write, missing

pytestmark = [pytest.mark.anyio, pytest.mark.third_party]

NEWEST = ROOT / ".engines"


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name and version of the PgBouncer that the tests use instead of an installed one."""
    if not (NEWEST / "pgbouncer").exists() or not _reachable(NEWEST / "pgbouncer", _account()):
        missing(f"{NEWEST} has no PgBouncer that the account of the servers can execute: make engines makes it")
    monkeypatch.setenv("PATH", str(NEWEST), prepend=":")
    return subprocess.check_output([NEWEST / "pgbouncer", "--version"], text=True).splitlines()[0]


@pytest.mark.usefixtures("newest")
@pytest.mark.parametrize(("mode", "options"), [("session", {"lock": "session"}), ("transaction", {})])
async def test_a_herd_gets_through(
    dsn: str, write: Write, record_property: Measured, mode: Mode, options: dict[str, str]
) -> None:
    index = mode == "session"
    folder = write(herd.files(index=index))
    async with pgbouncer(dsn, mode, 20) as between:
        codes = await herd.gets_through(
            folder, between.dsn, dsn, herd.kill, record_property, waiting=7 if index else 1, **options
        )
        assert codes == [-9] + [0] * 7
        assert await Migrator(between.dsn, folder).up() == ()
        await herd.applied_once(dsn, folder, index=index)


async def test_the_runs_that_take_the_lock_go_past_it(dsn: str, write: Write, newest: str) -> None:
    folder = write(herd.files())
    async with pgbouncer(dsn) as between:
        assert f"process up: {newest}" in between.log.read_text()
        assert len(await Migrator(between.dsn, folder, direct_dsn=dsn).up()) == herd.FILES
    await herd.applied_once(dsn, folder)
