import anyio
import pytest

from pgratchet import HistoryError, Migrator, State
from tests.support import PASS_GATE, Write, a_role, as_role, exists, gate, history, runner_lock, states, tell, waiters

pytestmark = pytest.mark.anyio

HEAD = "-- pgratchet: compatible-with=2\n"
NEW = {"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "CREATE TABLE b ();", "003_c.sql": f"{HEAD}CREATE TABLE c ();"}


def image(write: Write, name: str, versions: int) -> str:
    """Return the folder of an image that knows the first so many versions."""
    return str(write({f"{name}/{path}": text for path, text in list(NEW.items())[:versions]}) / name)


class TestAnImageBelowTheFloor:
    @pytest.mark.parametrize("verb", ["up", "down", "redo", "wait", "check", "plan", "rehearse"])
    async def test_every_verb_that_starts_something_refuses_an_image_below_the_floor(
        self, dsn: str, write: Write, verb: str
    ) -> None:
        await Migrator(dsn, image(write, "new", 3)).up()
        old = Migrator(dsn, image(write, "old", 1))

        with anyio.fail_after(5), pytest.raises(HistoryError) as caught:
            await getattr(old, verb)()

        assert caught.value.versions == ("3",)
        assert all(part in str(caught.value) for part in ("3 c", "compatible-with=2", "newest file here is 1"))
        assert set((await states(dsn)).values()) == {"applied"}
        assert [entry.state for entry in await old.status()] == [State.APPLIED, State.UNKNOWN, State.UNKNOWN]
        await Migrator(dsn, image(write, "middle", 2)).check()

    async def test_an_image_below_the_floor_may_start_again_when_the_version_is_reverted(
        self, dsn: str, write: Write
    ) -> None:
        write({"new/003_c.down.sql": "DROP TABLE c;"})
        new = Migrator(dsn, image(write, "new", 3))
        await new.up()
        await new.down(to=2)
        await Migrator(dsn, image(write, "old", 1)).check()

    async def test_an_image_below_the_floor_is_refused_while_the_version_is_half_done(
        self, dsn: str, write: Write
    ) -> None:
        """Statement by statement: what is committed of it may already be what old code cannot live with."""
        sql = f"-- pgratchet: no-transaction\n{HEAD}CREATE TABLE c (); {PASS_GATE}"
        new = write({"new/001_a.sql": "SELECT 1;", "new/002_b.sql": "SELECT 1;", "new/003_c.sql": sql}) / "new"
        old = write({"old/001_a.sql": "SELECT 1;"}) / "old"
        async with gate(dsn) as closed, anyio.create_task_group() as tasks:
            tasks.start_soon(Migrator(dsn, new, lock_timeout=0).up)
            await closed.reached()
            with pytest.raises(HistoryError, match="compatible-with=2"):
                await Migrator(dsn, old).check()
            await closed.open()

    async def test_an_image_that_waited_while_its_floor_was_raised_is_refused(self, dsn: str, write: Write) -> None:
        async with runner_lock(dsn) as holder, anyio.create_task_group() as tasks:
            refused: list[HistoryError] = []

            async def wait() -> None:
                with pytest.raises(HistoryError) as caught:
                    await Migrator(dsn, image(write, "old", 1)).up()
                refused.append(caught.value)

            tasks.start_soon(wait)
            await waiters(dsn)
            await as_if_applied(dsn, write)
            holder.terminate()
        assert [error.versions for error in refused] == [("3",)]

    async def test_an_image_below_the_floor_is_refused_in_a_role_that_may_only_read(
        self, dsn: str, write: Write
    ) -> None:
        async with a_role(dsn) as role:
            await Migrator(dsn, image(write, "new", 3), readers=[role]).up()
            with pytest.raises(HistoryError):
                await Migrator(as_role(dsn, role), image(write, "old", 1)).wait()


async def as_if_applied(dsn: str, write: Write) -> None:
    """Have all versions recorded, by a run that has another table's lock."""
    await Migrator(dsn, image(write, "new", 3), table="public.elsewhere").up()
    await tell(dsn, "ALTER TABLE elsewhere RENAME TO schema_migrations")


async def test_a_half_done_file_may_get_a_floor_when_it_is_fixed(dsn: str, write: Write) -> None:
    head = "-- pgratchet: no-transaction\n"
    folder = write({"001_a.sql": f"{head}CREATE TABLE a ();\nCREATE TABLE missing.b ();"})
    with pytest.raises(Exception, match="missing"):
        await Migrator(dsn, folder).up()
    write({"001_a.sql": f"{head}-- pgratchet: compatible-with=1\nCREATE TABLE a ();\nCREATE TABLE b ();"})
    await Migrator(dsn, folder).up()
    assert await exists(dsn, "b")
    assert (await history(dsn))["1"]["compatible_with"] == "1"
