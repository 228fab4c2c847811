from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from pgratchet import HistoryError, Migrator
from tests.processes import replicas
from tests.support import Write, column, connected, deserted, states, tell, until, waiters

pytestmark = pytest.mark.anyio

EACH = 2

INSERT = "INSERT INTO ledger VALUES ({0});"
BUILD = "-- pgratchet: no-transaction\nINSERT INTO ledger VALUES ({0});\nCREATE INDEX CONCURRENTLY i_{0} ON busy (n);\n"
STUCK = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
    "AND application_name LIKE 'pgratchet since%'"
)


def python(sql: str) -> str:
    return f"async def up(connection):\n    await connection.execute({sql!r})\n"


def image(write: Write, name: str, *versions: int, head: str = "") -> Path:
    """Return the folder of an image with these versions, each of which may only be applied once."""
    sql = INSERT + " SELECT pg_sleep(0.02);"
    return write({f"{name}/{n:03}_m.sql": (head if n == versions[-1] else "") + sql.format(n) for n in versions}) / name


def mixed_image(write: Write, name: str, *versions: int) -> Path:
    """Return the same with every third version built CONCURRENTLY, and every third one in Python."""
    kinds = (("sql", BUILD), ("sql", INSERT + " SELECT pg_sleep(0.02);"), ("py", python(INSERT)))
    chosen = [(n, *kinds[n % len(kinds)]) for n in versions]
    return write({f"{name}/{n:03}_m.{suffix}": text.format(n) for n, suffix, text in chosen}) / name


async def started(dsn: str, *folders: Path) -> list[list[tuple[int, Any]]]:
    """Start replicas of each image, told to go in that order and at once; return what each image's said."""
    outcome: list[list[tuple[int, Any]]] = [[] for _ in folders]
    with anyio.fail_after(60):
        async with (
            replicas(EACH, dsn, folders[0]) as first,
            replicas(EACH if len(folders) > 1 else 0, dsn, folders[-1]) as second,
        ):
            for replica in first + second:
                await replica.go()
            for said, group in zip(outcome, (first, second), strict=False):
                said += [await replica.result() for replica in group]
    await deserted(dsn)
    return outcome


@pytest.fixture
async def ledger(dsn: str) -> str:
    await tell(dsn, "CREATE TABLE ledger (n int); CREATE TABLE busy AS SELECT 1 AS n")
    return dsn


async def entries(dsn: str) -> list[int]:
    """Return what is in the ledger, of a database in which nothing is half done."""
    assert all(await column(dsn, "SELECT indisvalid AND indisready FROM pg_index WHERE indrelid = 'busy'::regclass"))
    assert set((await states(dsn)).values()) <= {"applied"}
    return sorted(await column(dsn, "SELECT n FROM ledger"))


@pytest.mark.parametrize("image", [image, mixed_image], ids=["in transactions", "of every kind"])
async def test_old_and_new_images_start_together_in_any_order(
    ledger: str, write: Write, image: Callable[..., Path]
) -> None:
    images = [image(write, f"v{newest}", *range(1, newest + 1)) for newest in (2, 4, 6)]
    for (old, new), newest in (((images[0], images[1]), 4), ((images[2], images[1]), 6)):
        outcome = await started(ledger, old, new)

        assert [code for said in outcome for code, _ in said] == [0] * 2 * EACH
        assert await entries(ledger) == list(range(1, newest + 1))


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        ("sql", INSERT + "LOCK TABLE busy IN SHARE MODE;"),
        ("py", python(INSERT + "LOCK TABLE busy IN SHARE MODE;")),
        ("sql", BUILD),
    ],
    ids=["SQL", "Python", "CONCURRENTLY"],
)
@pytest.mark.parametrize("first", ["old", "new"])
async def test_the_other_image_finishes_the_step_in_which_one_was_killed(
    ledger: str, write: Write, first: str, suffix: str, text: str
) -> None:
    """All of its replicas, while those of the other one wait for them."""
    newest = {"old": 3, "new": 5}
    folders = {name: image(write, name, 1, *range(3, last + 1)) for name, last in newest.items()}
    for name in folders:
        write({f"{name}/002_m.{suffix}": text.format(2)})
    (other,) = folders.keys() - {first}
    with anyio.fail_after(60):
        async with (
            connected(ledger) as stranger,
            replicas(EACH, ledger, folders[first]) as dying,
            replicas(EACH, ledger, folders[other]) as living,
        ):
            await stranger.execute("BEGIN; INSERT INTO busy VALUES (2)")
            for replica in dying:
                await replica.go()
            (victim,) = await until(lambda: column(ledger, STUCK))
            for replica in living:
                await replica.go()
            await waiters(ledger, 2 * EACH - 1)
            for replica in dying:
                replica.process.kill()

            async def taken_over() -> bool:
                return await column(ledger, STUCK) not in ([], [victim])

            await until(taken_over)
            await stranger.execute("COMMIT")
            outcome = [await replica.result() for replica in living]

    assert [code for code, _ in outcome] == [0] * EACH
    assert await entries(ledger) == list(range(1, newest[other] + 1))
    (again,) = await started(ledger, folders[first])
    assert [code for code, _ in again] == [0] * EACH
    assert await entries(ledger) == list(range(1, max(newest[first], newest[other]) + 1))


async def test_a_rollback_to_the_old_image_starts_and_changes_nothing(ledger: str, write: Write) -> None:
    old, new = image(write, "old", 1, 2), image(write, "new", 1, 2, 3)
    await started(ledger, new)
    for folder in (old, new, old):
        (outcome,) = await started(ledger, folder)

        assert outcome == [(0, {"finished": []})] * EACH
        assert await entries(ledger) == [1, 2, 3]


async def test_branches_that_are_merged_out_of_order_are_refused_until_late_ones_are_allowed(
    ledger: str, write: Write
) -> None:
    base, first = image(write, "base", 1), image(write, "first", 1, 3)
    merged = image(write, "merged", 1, 2, 3, 4)
    await started(ledger, base, first)

    (outcome,) = await started(ledger, merged)

    assert [code for code, _ in outcome] == [1] * EACH
    assert {said["error"] for _, said in outcome} == {"HistoryError"}
    assert all("002_m.sql is pending, but later versions are applied" in said["text"] for _, said in outcome)
    assert await entries(ledger) == [1, 3]
    assert [step.version for step in await Migrator(ledger, merged, allow_late=True).up()] == ["2", "4"]
    assert (await started(ledger, merged))[0] == [(0, {"finished": []})] * EACH
    assert await entries(ledger) == [1, 2, 3, 4]


async def test_two_branches_that_start_at_once_apply_each_of_their_files_once(ledger: str, write: Write) -> None:
    """Who comes first decides whether the lower number is late; nothing else is open."""
    low, high = image(write, "low", 1, 2), image(write, "high", 1, 3)
    outcome = dict(zip(("high", "low"), await started(ledger, high, low), strict=True))

    assert [code for code, _ in outcome["high"]] == [0] * EACH
    assert {said.get("error") for _, said in outcome["low"]} <= {None, "HistoryError"}
    await Migrator(ledger, image(write, "merged", 1, 2, 3), allow_late=True).up()
    assert await entries(ledger) == [1, 2, 3]


async def test_a_floor_forbids_the_old_image_alone(ledger: str, write: Write) -> None:
    old, middle = image(write, "old", 1), image(write, "middle", 1, 2)
    new = image(write, "new", 1, 2, 3, head="-- pgratchet: compatible-with=2\n")
    assert [code for said in await started(ledger, old, middle) for code, _ in said] == [0] * 2 * EACH

    together = await started(ledger, new, old)
    after = await started(ledger, middle, old)

    assert [code for code, _ in together[0] + after[0]] == [0] * 2 * EACH
    assert [code for code, _ in after[1]] == [1] * EACH
    assert all("compatible-with=2" in said["text"] for _, said in after[1])
    # Who looked before the migration was there has started, and nobody else has.
    assert all(code == 0 or "compatible-with=2" in said["text"] for code, said in together[1])
    with pytest.raises(HistoryError):
        await Migrator(ledger, old).check()
    assert await entries(ledger) == [1, 2, 3]
