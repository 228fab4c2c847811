"""The connection ends while a COMMIT is under way: only the history knows, nothing is guessed, nothing is run twice."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from pgratchet import Migrator
from pgratchet.core.sql.scripts import CHUNK
from pgratchet.postgres.link.session import PARAMETERS
from tests.faults.proxy import Proxy, proxy
from tests.faults.traps import Harm, Way
from tests.poolers import pgbouncer
from tests.support import PASS_GATE, Write, ask, column, deserted, gate, states, tell, waiters, without_tls

pytestmark = pytest.mark.anyio

COMMITTED = b"C\0\0\0\x0bCOMMIT\0"
"""What the server answers to a COMMIT (CommandComplete)."""

COMMIT = b"Q\0\0\0\x0cCOMMIT;\0"
"""What asyncpg sends at the end of a transaction()."""

BEFORE_THE_SERVER = b"DISCARD TEMP;COMMIT;\0"
"""How a message ends that holds a step's COMMIT; without its last byte the server does nothing of it."""

INSERT = "INSERT INTO ledger VALUES ({});"
PYTHON = f"async def up(connection):\n    await connection.execute('{INSERT}')\n"
PYTHON_DOWN = "\n\nasync def down(connection):\n    await connection.execute('DELETE FROM ledger WHERE n = {}')\n"
FIVE = {f"{n:03}_m.sql": INSERT.format(n) for n in range(1, 6)}
STATEMENTS = "-- pgratchet: no-transaction\nINSERT INTO ledger VALUES (1);\nINSERT INTO ledger VALUES (2);"

both_ways = pytest.mark.parametrize("harm", [Harm.RESET, Harm.CLOSE], ids=lambda harm: harm.name)


@pytest.fixture
async def between(dsn: str) -> AsyncIterator[Proxy]:
    await tell(dsn, "CREATE TABLE ledger (n int)")
    async with proxy(dsn) as it:
        yield it


async def finished(between: Proxy, folder: Path) -> list[int]:
    with anyio.fail_after(20):
        return [int(step.version) for step in await Migrator(without_tls(between.dsn), folder).up()]


async def applied_once(dsn: str, versions: int) -> None:
    await deserted(dsn)
    assert sorted(await column(dsn, "SELECT n FROM ledger")) == list(range(1, versions + 1))
    assert await states(dsn) == {str(n): "applied" for n in range(1, versions + 1)}
    assert await ask(dsn, "SELECT count(*) FROM schema_migrations WHERE error IS NOT NULL") == 0


@both_ways
@pytest.mark.parametrize("count", [1, 5])
class TestAMessage:
    async def test_a_message_that_did_not_reach_the_server_is_sent_again(
        self, dsn: str, between: Proxy, write: Write, harm: Harm, count: int
    ) -> None:
        folder = write(dict(list(FIVE.items())[:count]))
        trap = between.trap(Way.TO_SERVER, BEFORE_THE_SERVER, harm, forward=False)

        assert await finished(between, folder) == list(range(1, count + 1))
        assert trap.sprung.is_set()
        await applied_once(dsn, count)

    async def test_a_message_that_reached_the_server_and_was_not_answered_is_looked_up(
        self, dsn: str, between: Proxy, write: Write, harm: Harm, count: int
    ) -> None:
        folder = write(dict(list(FIVE.items())[:count]))
        trap = between.trap(Way.TO_SERVER, BEFORE_THE_SERVER, harm)

        assert await finished(between, folder) == list(range(1, count + 1))
        assert trap.sprung.is_set()
        await applied_once(dsn, count)


@both_ways
@pytest.mark.parametrize("commits", [1, 2, 3, 4, 5, 6])
async def test_five_migrations_that_share_a_message_are_each_applied_and_reported_once(
    dsn: str, between: Proxy, write: Write, harm: Harm, commits: int
) -> None:
    """The connection is cut at the answer to COMMIT number so many; each step has two, its own and its reset's."""
    folder = write(FIVE | {"000_first.sql": "SELECT 0;"})
    await Migrator(dsn, folder).up(to=0)
    trap = between.trap(Way.TO_CLIENT, COMMITTED, harm, forward=False, skip=2 * commits - 2)

    assert await finished(between, folder) == [1, 2, 3, 4, 5]
    assert trap.sprung.is_set() == (commits < 6)
    await tell(dsn, "DELETE FROM schema_migrations WHERE version = '0'")
    await applied_once(dsn, 5)


@both_ways
@pytest.mark.parametrize("commits", [1, 2, 3])
@pytest.mark.parametrize(
    ("way", "at"), [(Way.TO_CLIENT, COMMITTED), (Way.TO_SERVER, COMMIT)], ids=["before the answer", "before the server"]
)
async def test_python_migrations_are_each_applied_and_reported_once(  # noqa: PLR0913 - where the cut is
    dsn: str, between: Proxy, write: Write, *, harm: Harm, commits: int, way: Way, at: bytes
) -> None:
    folder = write({f"{n:03}_m.py": PYTHON.format(n) for n in (1, 2, 3)})
    trap = between.trap(way, at, harm, forward=False, skip=commits - 1)

    assert await finished(between, folder) == [1, 2, 3]
    assert trap.sprung.is_set()
    await applied_once(dsn, 3)


@both_ways
@pytest.mark.parametrize("to_server", [False, True], ids=["before the server", "before the answer"])
@pytest.mark.parametrize("suffix", ["sql", "py"])
async def test_a_way_down_is_gone_once_and_reported_once(  # noqa: PLR0913 - where the cut is
    dsn: str, between: Proxy, write: Write, harm: Harm, suffix: str, *, to_server: bool
) -> None:
    sql = {f"{n:03}_m.down.sql": f"DELETE FROM ledger WHERE n = {n};" for n in range(1, 6)} | FIVE
    python = {f"{n:03}_m.py": PYTHON.format(n) + PYTHON_DOWN.format(n) for n in range(1, 6)}
    folder = write(sql if suffix == "sql" else python)
    await Migrator(dsn, folder).up()
    await tell(dsn, "INSERT INTO ledger SELECT n FROM ledger")  # twice each: a second DELETE could not be seen else
    place = (Way.TO_SERVER, b"COMMIT;") if to_server else (Way.TO_CLIENT, COMMITTED)
    trap = between.trap(*place, harm, forward=False)

    with anyio.fail_after(20):
        done = await Migrator(without_tls(between.dsn), folder).down(steps=3)

    assert trap.sprung.is_set()
    assert [step.version for step in done] == ["5", "4", "3"]
    assert sorted(await states(dsn)) == ["1", "2"]
    assert sorted(await column(dsn, "SELECT n FROM ledger")) == [1, 1, 2, 2]


@both_ways
async def test_the_record_of_a_script_that_runs_statement_by_statement_is_looked_up(
    dsn: str, between: Proxy, write: Write, harm: Harm
) -> None:
    """The answer to the last COMMIT of all is lost, which says that the script is finished."""
    folder = write({"001_m.sql": STATEMENTS})
    # Claim, reset, two statements with their counts, and then the record.
    trap = between.trap(Way.TO_CLIENT, COMMITTED, harm, forward=False, skip=4)

    assert await finished(between, folder) == [1]
    assert trap.sprung.is_set()
    assert sorted(await column(dsn, "SELECT n FROM ledger")) == [1, 2]
    assert await states(dsn) == {"1": "applied"}


MESSAGES = {
    "claim": (b": up 1 m';\0", 0),
    "statement": (b"COMMIT\0", 0),
    "mark": (b"COMMIT\0", 1),
    "count": (b"COMMIT\0", 2),
    "statement behind it": (b"COMMIT\0", 3),
    "record": (BEFORE_THE_SERVER, 0),
}
"""How each message ends that commits something of a script with one statement that runs bare; and which such one."""


@both_ways
@pytest.mark.parametrize("forward", [False, True], ids=["withheld", "not answered"])
@pytest.mark.parametrize(("end", "skip"), MESSAGES.values(), ids=MESSAGES)
async def test_each_commit_around_a_bare_statement_is_looked_up(  # noqa: PLR0913, PLR0917 - where the cut is
    dsn: str, between: Proxy, write: Write, harm: Harm, end: bytes, skip: int, *, forward: bool
) -> None:
    await tell(dsn, "CREATE TABLE t (n int)")
    bare = "CREATE INDEX CONCURRENTLY i ON t (n);"
    folder = write({"001_m.sql": f"-- pgratchet: no-transaction\n{INSERT.format(1)}{bare}{INSERT.format(2)}"})
    trap = between.trap(Way.TO_SERVER, end, harm, forward=forward, skip=skip)

    assert await finished(between, folder) == [1]
    assert trap.sprung.is_set()
    assert await column(dsn, "SELECT n FROM ledger") == [1, 2]
    assert await column(dsn, "SELECT indisvalid FROM pg_index WHERE indrelid = 't'::regclass") == [True]
    assert await states(dsn) == {"1": "applied"}
    await deserted(dsn)


PLACES = {
    "in the first message": (Way.TO_SERVER, b"early", True),
    "in the second message": (Way.TO_SERVER, b"late", True),
    "before the server": (Way.TO_SERVER, BEFORE_THE_SERVER, False),
    "behind the server": (Way.TO_SERVER, BEFORE_THE_SERVER, True),
    "before the answer": (Way.TO_CLIENT, COMMITTED, False),
}


@both_ways
@pytest.mark.parametrize(("way", "at", "forward"), PLACES.values(), ids=PLACES)
async def test_a_script_that_takes_several_messages_is_applied_once(  # noqa: PLR0913, PLR0917 - where the cut is
    dsn: str, between: Proxy, write: Write, harm: Harm, way: Way, at: bytes, *, forward: bool
) -> None:
    much = f"SELECT '{'x' * (CHUNK - 100)}';\n"
    pieces = [INSERT.format(1), much * 2, "SELECT 'early';", much * 3, "SELECT 'late';", much, INSERT.format(2)]
    folder = write({"001_m.sql": "".join(pieces)})
    trap = between.trap(way, at, harm, forward=forward)

    assert await finished(between, folder) == [1]
    assert trap.sprung.is_set()
    assert await column(dsn, "SELECT n FROM ledger") == [1, 2]
    assert await states(dsn) == {"1": "applied"}
    await deserted(dsn)


@asynccontextmanager
async def through_a_pooler(dsn: str, *, behind: bool) -> AsyncIterator[tuple[Proxy, str]]:
    """Yield a proxy that is behind a pooler, or before it, and the DSN that leads through both."""
    if behind:
        async with proxy(dsn) as network, pgbouncer(network.dsn, "transaction", 2) as pooler:
            yield network, pooler.dsn
    else:
        async with pgbouncer(dsn, "transaction", 2) as pooler, proxy(pooler.dsn) as network:
            yield network, without_tls(network.dsn)


@pytest.mark.parametrize("behind", [False, True], ids=["before the pooler", "behind the pooler"])
@pytest.mark.parametrize(
    ("way", "at", "forward"), [place for name, place in PLACES.items() if "message" not in name], ids=str
)
@pytest.mark.parametrize("suffix", ["sql", "py"])
async def test_an_unknown_commit_through_a_pooler_is_looked_up_too(  # noqa: PLR0913 - where the cut is
    dsn: str, write: Write, suffix: str, way: Way, at: bytes, *, forward: bool, behind: bool
) -> None:
    await tell(dsn, "CREATE TABLE ledger (n int)")
    folder = write(FIVE if suffix == "sql" else {f"{n:03}_m.py": PYTHON.format(n) for n in range(1, 6)})
    end = COMMIT if (suffix, at) == ("py", BEFORE_THE_SERVER) else at
    async with through_a_pooler(dsn, behind=behind) as (network, pooled):
        trap = network.trap(way, end, Harm.RESET, forward=forward)
        with anyio.fail_after(20):
            done = await Migrator(pooled, folder).up()
        assert [step.version for step in done] == ["1", "2", "3", "4", "5"]
        assert trap.sprung.is_set()
    await applied_once(dsn, 5)


@both_ways
@pytest.mark.parametrize("statement", [1, 2])
async def test_a_count_is_never_lost_and_never_doubled(
    dsn: str, between: Proxy, write: Write, harm: Harm, statement: int
) -> None:
    """The answer to a statement's COMMIT, which is its count's as well, is lost; whoever goes on has the truth."""
    folder = write({"001_m.sql": STATEMENTS})
    trap = between.trap(Way.TO_CLIENT, COMMITTED, harm, forward=False, skip=1 + statement)
    assert await finished(between, folder) == [1]
    assert sorted(await column(dsn, "SELECT n FROM ledger")) == [1, 2]
    assert await states(dsn) == {"1": "applied"}
    assert trap.sprung.is_set()


@both_ways
@pytest.mark.parametrize("suffix", ["sql", "py"])
async def test_a_server_that_finishes_after_its_client_is_back_applies_nothing_twice(  # noqa: PLR0913, PLR0917 - where the cut is
    dsn: str, between: Proxy, write: Write, monkeypatch: pytest.MonkeyPatch, harm: Harm, suffix: str
) -> None:
    """It does not look for its client in mid-statement: the new session has to wait for the old one's lock."""
    monkeypatch.setitem(PARAMETERS, "client_connection_check_interval", "0")
    sql = INSERT.format(2) + PASS_GATE.strip()
    slow = {"sql": sql, "py": f"async def up(connection):\n    await connection.execute('{sql}')\n"}
    folder = write({"001_m.sql": INSERT.format(1), f"002_m.{suffix}": slow[suffix], "003_m.sql": INSERT.format(3)})
    done: list[int] = []

    async def run() -> None:
        done.extend(int(step.version) for step in await Migrator(without_tls(between.dsn), folder, lock_timeout=0).up())

    async with anyio.create_task_group() as tasks, gate(dsn) as closed:
        tasks.start_soon(run)
        await closed.reached()
        between.cut(harm)
        await waiters(dsn)
        await closed.open()
    assert done == [1, 2, 3]
    await applied_once(dsn, 3)
