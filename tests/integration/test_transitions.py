"""The server sees each transition of the table of states, and no other change of a state."""

from itertools import pairwise

import asyncpg
import pytest

from pgratchet import Direction, HistoryError, Migrator, RecordState, Verdict
from pgratchet.core.model import Lock, Step
from pgratchet.core.sql.scripts import compile_script
from pgratchet.files import directory
from pgratchet.files.layouts.own import own
from pgratchet.postgres.ledger.records import Claim, Records, Writer
from pgratchet.postgres.ledger.transitions import TRANSITIONS, Who
from pgratchet.postgres.link.own import Guards
from pgratchet.postgres.link.sql import Table
from tests.support import HISTORY, Write, connected, failure_of, history, states, tell

pytestmark = pytest.mark.anyio

HEAD = "-- pgratchet: no-transaction\n"
WATCHED = f"""
CREATE TABLE changes (n serial, tx xid8, version text, before text, after text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO changes (tx, version, after) VALUES (pg_current_xact_id(), NEW.version, NEW.state);
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO changes (tx, version, before) VALUES (pg_current_xact_id(), OLD.version, OLD.state);
    ELSIF (OLD.state, OLD.token) IS DISTINCT FROM (NEW.state, NEW.token) THEN
        INSERT INTO changes (tx, version, before, after)
        VALUES (pg_current_xact_id(), NEW.version, OLD.state, NEW.state);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {HISTORY} FOR EACH ROW EXECUTE FUNCTION note();
"""

Changes = set[tuple[str | None, str | None]]


async def changes(dsn: str) -> Changes:
    """Return the changes of states that the server has seen; a row put in the place of another one is one change."""
    async with connected(dsn) as connection:
        rows = await connection.fetch("SELECT tx, version, before, after FROM changes ORDER BY n")
    replaced = {
        at
        for at, (one, two) in enumerate(pairwise(rows))
        if one["after"] is None and two["before"] is None and (one["tx"], one["version"]) == (two["tx"], two["version"])
    }
    found = set()
    for at, row in enumerate(rows):
        if at not in replaced:
            found.add((rows[at - 1]["before"] if at - 1 in replaced else row["before"], row["after"]))
    return found


def allowed(who: Who) -> Changes:
    found = (transition for transition in TRANSITIONS if transition.who is who)
    return {(before, transition.after) for transition in found for before in transition.before}


async def become(dsn: str, version: str, state: RecordState | None) -> None:
    """Put a version into a state, unseen."""
    async with connected(dsn) as connection:
        await connection.execute("SET session_replication_role = replica")
        if state is None:
            await connection.execute(f"DELETE FROM {HISTORY} WHERE version = $1", version)
        else:
            await connection.execute(
                f"INSERT INTO {HISTORY} (version, name, kind, checksum, state) VALUES ($1, 'b', 'sql', 'x', $2) "
                "ON CONFLICT (version) DO UPDATE SET state = $2",
                version,
                state,
            )


async def test_runs_write_each_transition_of_theirs_and_no_other(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "", "002_b.down.sql": f"{HEAD}SELECT 1; SELECT 2;"})
    migrator = Migrator(dsn, folder)
    broken, fixed = "SELECT 1/0;", "SELECT 1;"
    write({"002_b.sql": fixed})
    await migrator.up(to=1)
    await tell(dsn, WATCHED)

    await migrator.up()
    await migrator.down()
    for state in (None, RecordState.FAILED, RecordState.PENDING):
        await become(dsn, "2", state)
        write({"002_b.sql": broken})
        await failure_of(migrator)
        await become(dsn, "2", state)
        write({"002_b.sql": fixed})
        await migrator.up()
        await become(dsn, "2", None)
    write({"002_b.sql": f"{HEAD}SELECT 1; {broken}"})
    await failure_of(migrator)
    write({"002_b.sql": f"{HEAD}SELECT 1; {fixed}"})
    await migrator.up()
    await become(dsn, "2", RecordState.RUNNING)
    await migrator.up()
    await tell(dsn, f"UPDATE {HISTORY} SET statements_done = 0, cursor = '' WHERE version = '2'")
    await become(dsn, "2", RecordState.REVERTING)
    await migrator.down(to=1)

    assert await states(dsn) == {"1": "applied"}
    assert await changes(dsn) == allowed(Who.RUNNER)


async def test_persons_write_each_transition_of_theirs_and_no_other(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write({"001_a.sql": "", "002_b.sql": ""}))
    await migrator.up(to=1)
    await tell(dsn, WATCHED)
    columns = "version int, description text, filename text, executed_at timestamptz, success bool, error_message text"
    await tell(dsn, f"CREATE TABLE old ({columns}); INSERT INTO old VALUES (2, 'b', '002_b.sql', now(), true, NULL)")

    await migrator.adopt("public.old")
    for state in (None, *RecordState):
        for verdict in (Verdict.APPLIED, Verdict.NOT_APPLIED):
            await become(dsn, "2", state)
            try:
                await migrator.repair(2, verdict, "to see it")
            except HistoryError:
                assert (state, verdict) in {
                    (RecordState.APPLIED, Verdict.APPLIED),
                    (RecordState.PENDING, Verdict.NOT_APPLIED),
                    (None, Verdict.NOT_APPLIED),
                }

    assert await changes(dsn) == allowed(Who.PERSON)


@pytest.mark.parametrize(
    ("direction", "state"),
    [(Direction.UP, state) for state in (RecordState.RUNNING, RecordState.APPLIED, RecordState.REVERTING)]
    + [(Direction.DOWN, state) for state in RecordState if state is not RecordState.APPLIED],
)
async def test_a_version_whose_state_has_changed_since_it_was_planned_is_not_claimed(
    dsn: str, write: Write, direction: Direction, state: RecordState
) -> None:
    folder = write({"001_a.sql": "", "001_a.down.sql": ""})
    await Migrator(dsn, folder).up()
    await become(dsn, "1", state)
    before = (await history(dsn))["1"]
    (migration,) = own.parse(directory.read(folder)).migrations
    source = migration.up if direction is Direction.UP else migration.down
    assert source is not None
    script = compile_script(source, migration.kind, direction)
    step = Step(migration, direction, script, replaces=direction is Direction.UP)
    records = Records(Table.parse(HISTORY), Lock.NONE, Guards())
    claim = records.claim(Claim(step, "mine"), Writer("me", "2000-01-01 00:00:00+00", "0"))

    async with connected(dsn) as connection:
        with pytest.raises((asyncpg.UniqueViolationError, asyncpg.InvalidTextRepresentationError)):
            await connection.execute(claim)

    assert (await history(dsn))["1"] == before
