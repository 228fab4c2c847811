"""A history that somebody has changed: whose failure that is, by what, and the cure."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from pgratchet import Failure, Migrator, ServerError, Verdict, embedded
from tests.support import HEAD, HISTORY, Write, a_role, as_role, ask, column, exists, failure_of, states, tell, until

pytestmark = pytest.mark.anyio

DENY = "CREATE FUNCTION deny() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no writes today'; END$$;"
SKIP = "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$;"


def trigger(when: str, function: str = "deny", kind: str = "", deferred: str = "") -> str:
    made = f"CREATE {kind} TRIGGER audit {when} ON {HISTORY} {deferred} FOR EACH ROW EXECUTE FUNCTION {function}();"
    return (DENY if function == "deny" else SKIP) + made


DEFERRED = {"kind": "CONSTRAINT", "deferred": "DEFERRABLE INITIALLY DEFERRED"}
DROP_TRIGGER = f"DROP TRIGGER audit ON {HISTORY}"
UNDONE = "something undoes what this run writes there"

DISTURBANCES = {
    "a column that must be filled": (
        f"ALTER TABLE {HISTORY} ADD tenant int NOT NULL DEFAULT 1; ALTER TABLE {HISTORY} ALTER tenant DROP DEFAULT",
        ("23502", "tenant", "the column tenant is not pgratchet's"),
        f"ALTER TABLE {HISTORY} ALTER tenant DROP NOT NULL",
    ),
    "a check": (
        f"ALTER TABLE {HISTORY} ADD CONSTRAINT early CHECK (version::int < 2)",
        ("23514", "early", "the constraint early is not pgratchet's"),
        f"ALTER TABLE {HISTORY} DROP CONSTRAINT early",
    ),
    "a narrow type": (
        f"ALTER TABLE {HISTORY} ALTER name TYPE varchar(1)",
        ("22001", "too long", f'\\d+ "public".{HISTORY.partition(".")[2]!r}'.replace("'", '"')),
        f"ALTER TABLE {HISTORY} ALTER name TYPE text",
    ),
    "a trigger on the claim": (trigger("AFTER INSERT"), ("P0001", "no writes today", "trigger audit"), DROP_TRIGGER),
    "a trigger on the record": (
        trigger("BEFORE UPDATE"),
        ("P0001", "no writes today", "trigger audit (function deny)"),
        DROP_TRIGGER,
    ),
    "a deferred trigger on the claim": (
        trigger("AFTER INSERT", **DEFERRED),
        ("P0001", "no writes today", "trigger audit"),
        DROP_TRIGGER,
    ),
    "a deferred trigger on the record": (
        trigger("AFTER UPDATE", **DEFERRED),
        ("P0001", "no writes today", "trigger audit"),
        DROP_TRIGGER,
    ),
    "a trigger that skips the claim": (
        trigger("BEFORE INSERT", "skip"),
        (None, UNDONE, "trigger audit (function skip)"),
        DROP_TRIGGER,
    ),
    "a trigger that skips the record": (
        trigger("BEFORE UPDATE", "skip"),
        (None, UNDONE, "trigger audit"),
        DROP_TRIGGER,
    ),
    "a rule": (
        f"CREATE RULE nothing AS ON INSERT TO {HISTORY} DO INSTEAD NOTHING",
        (None, UNDONE, "the rule nothing"),
        f"DROP RULE nothing ON {HISTORY}",
    ),
    "a publication without a replica identity": (
        f"ALTER TABLE {HISTORY} REPLICA IDENTITY NOTHING; CREATE PUBLICATION everything FOR TABLE {HISTORY}",
        ("55000", "replica identity", "REPLICA IDENTITY"),
        f"ALTER TABLE {HISTORY} REPLICA IDENTITY DEFAULT",
    ),
}

FILES = {
    "one statement": {"002_bb.sql": "CREATE TABLE b ();"},
    "several statements": {"002_bb.sql": "CREATE TABLE b ();\nSELECT 1;\nSELECT 2;"},
    "statement by statement": {"002_bb.sql": f"{HEAD}CREATE TABLE b ();\nCREATE INDEX CONCURRENTLY ON a (i);"},
    "Python": {"002_bb.py": "async def up(connection):\n    await connection.execute('CREATE TABLE b ()')\n"},
}


async def disturbed(dsn: str, write: Write, sql: str) -> Path:
    """Return a folder whose first migration is applied to a history that is changed since then."""
    folder = write({"001_a.sql": "CREATE TABLE a (i int);"})
    await Migrator(dsn, folder).up()
    await tell(dsn, sql)
    return folder


def assert_of_history(failure: Failure, sqlstate: str | None, said: str, cure: str) -> None:
    assert failure.history == HISTORY
    assert (failure.line, failure.column, failure.statement, failure.excerpt) == (None, None, None, ())
    assert failure.sqlstate == sqlstate
    assert failure.message.startswith(f"the history {HISTORY} cannot be written: ")
    assert said in failure.message
    assert failure.hint is not None
    assert cure in failure.hint


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("disturbance", DISTURBANCES)
async def test_a_disturbance_of_the_history_is_no_failure_of_the_file(
    dsn: str, write: Write, disturbance: str, kind: str
) -> None:
    sql, (sqlstate, said, cure), undo = DISTURBANCES[disturbance]
    folder = await disturbed(dsn, write, sql)
    write(FILES[kind])
    migrator = Migrator(dsn, folder)

    error = await failure_of(migrator)

    assert_of_history(error.failure, sqlstate, said, cure)
    assert "002_bb" not in str(error)
    assert not await column(dsn, f"SELECT error FROM {HISTORY} WHERE error IS NOT NULL")
    assert not await exists(dsn, "b")
    await tell(dsn, undo)
    assert [step.version for step in await migrator.up()] == ["2"]


@pytest.mark.parametrize(
    ("policies", "sqlstate", "said"),
    [
        ("CREATE POLICY r ON {0} FOR SELECT USING (true)", "42501", "violates row-level security policy"),
        (
            "CREATE POLICY r ON {0} FOR SELECT USING (true); CREATE POLICY w ON {0} FOR INSERT WITH CHECK (true)",
            None,
            UNDONE,
        ),
    ],
)
async def test_policies_that_let_a_role_only_read_the_history_are_named_with_the_cure(
    dsn: str, write: Write, policies: str, sqlstate: str | None, said: str
) -> None:
    secured = f"ALTER TABLE {HISTORY} ENABLE ROW LEVEL SECURITY; GRANT ALL ON {HISTORY} TO PUBLIC;"
    folder = await disturbed(dsn, write, secured + policies.format(HISTORY))
    write({"002_bb.sql": "SELECT 1;"})
    async with a_role(dsn) as role:
        migrator = Migrator(as_role(dsn, role), folder)

        error = await failure_of(migrator)

        cure = 'CREATE POLICY pgratchet ON "public"."schema_migrations" USING (true)'
        assert_of_history(error.failure, sqlstate, said, cure)
        await tell(dsn, cure)
        assert [step.version for step in await migrator.up()] == ["2"]


@pytest.mark.parametrize("disturbance", ["a check", "a trigger on the record", "a trigger that skips the claim"])
@pytest.mark.parametrize("kind", ["several statements", "Python"])
async def test_a_rehearsal_tells_a_disturbance_of_the_history_as_such(
    dsn: str, write: Write, disturbance: str, kind: str
) -> None:
    sql, (sqlstate, said, cure), undo = DISTURBANCES[disturbance]
    folder = await disturbed(dsn, write, sql)
    write(FILES[kind])
    migrator = Migrator(dsn, folder)

    with pytest.raises(type(await failure_of(migrator))) as caught:
        await migrator.rehearse()

    assert_of_history(caught.value.failure, sqlstate, said, cure)
    await tell(dsn, undo)
    assert len(await migrator.rehearse()) == 1


async def test_a_disturbance_on_the_way_down_is_no_failure_of_the_file(dsn: str, write: Write) -> None:
    folder = await disturbed(dsn, write, trigger("BEFORE DELETE"))
    write({"001_a.down.sql": "DROP TABLE a;"})
    migrator = Migrator(dsn, folder)

    with pytest.raises(Exception, match="no writes today") as caught:
        await migrator.down()

    assert_of_history(caught.value.failure, "P0001", "no writes today", "trigger audit")  # type: ignore[attr-defined]  # as `match` shows
    assert await exists(dsn, "a")
    await tell(dsn, DROP_TRIGGER)
    assert len(await migrator.down()) == 1


@pytest.mark.parametrize(
    ("sql", "expected", "undo"),
    [
        (
            f"ALTER TABLE {HISTORY} ADD CONSTRAINT early CHECK (version <> '3')",
            ("23514", "early", "DROP CONSTRAINT"),
            f"ALTER TABLE {HISTORY} DROP CONSTRAINT early",
        ),
        (
            f"ALTER TABLE {HISTORY} ALTER name TYPE varchar(1)",
            ("22001", "too long", "psql"),
            f"ALTER TABLE {HISTORY} ALTER name TYPE text",
        ),
    ],
)
async def test_the_later_of_two_steps_that_share_a_message_names_the_history_and_the_earlier_one_stays(
    dsn: str, write: Write, sql: str, expected: tuple[str, str, str], undo: str
) -> None:
    folder = await disturbed(dsn, write, sql)
    write({"002_b.sql": "CREATE TABLE b ();", "003_cc.sql": "CREATE TABLE c ();"})
    migrator = Migrator(dsn, folder)

    error = await failure_of(migrator)

    assert [step.version for step in error.finished] == ["2"]
    assert error.failure.version == "3"
    assert_of_history(error.failure, *expected)
    assert await states(dsn) == {"1": "applied", "2": "applied"}
    await tell(dsn, undo)
    assert [step.version for step in await migrator.up()] == ["3"]


ON_ALL_TABLES = """
DO $do$DECLARE t text; BEGIN
  FOR t IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'audit_log' LOOP
    EXECUTE format('CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW '
                   'EXECUTE FUNCTION {}()', t);
  END LOOP;
END $do$;
"""


async def test_a_file_that_puts_a_failing_trigger_on_the_history_is_told_so_without_a_line(
    dsn: str, write: Write
) -> None:
    folder = await disturbed(dsn, write, DENY)
    write({"002_bb.sql": ON_ALL_TABLES.format("deny")})
    migrator = Migrator(dsn, folder)

    failure = (await failure_of(migrator)).failure

    assert failure.message == f"the history {HISTORY} cannot be written: no writes today"
    assert (failure.history, failure.line, failure.excerpt) == (None, None, ())
    assert failure.hint is not None
    assert "puts a trigger on it" in failure.hint
    write({"002_bb.sql": ON_ALL_TABLES.format("deny").replace("<> 'audit_log'", "= 'a'")})
    assert len(await migrator.up()) == 1


@pytest.mark.parametrize("kind", FILES)
async def test_an_audit_trigger_on_all_tables_works_as_under_psql(dsn: str, write: Write, kind: str) -> None:
    audit = (
        "CREATE TABLE audit_log (op text, new jsonb);"
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
        "INSERT INTO audit_log (op, new) VALUES (TG_OP, to_jsonb(NEW)); RETURN NEW; END$$;"
    )
    folder = write({"000_a.sql": "CREATE TABLE a (i int);", "001_audit.sql": audit + ON_ALL_TABLES.format("audit")})
    write(FILES[kind])

    assert len(await Migrator(dsn, folder).up()) == 3

    written = await column(dsn, "SELECT op FROM audit_log WHERE new ->> 'version' = '2'")
    assert (written[0], set(written[1:])) == ("INSERT", {"UPDATE"})


@pytest.mark.parametrize("kind", FILES)
async def test_a_trigger_that_keeps_the_time_of_the_last_change_works(dsn: str, write: Write, kind: str) -> None:
    folder = await disturbed(
        dsn,
        write,
        f"ALTER TABLE {HISTORY} ADD updated_at timestamptz NOT NULL DEFAULT now();"
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.updated_at = clock_timestamp(); "
        "RETURN NEW; END$$;"
        f"CREATE TRIGGER touch BEFORE UPDATE ON {HISTORY} FOR EACH ROW EXECUTE FUNCTION touch()",
    )
    write(FILES[kind])

    assert len(await Migrator(dsn, folder).up()) == 1

    assert await ask(dsn, f"SELECT updated_at >= finished_at FROM {HISTORY} WHERE version = '2'")


@pytest.mark.parametrize("lock", ["session", "transaction", "none"])
async def test_a_failure_of_a_file_beside_a_trigger_on_the_history_has_its_line(
    dsn: str, write: Write, lock: str
) -> None:
    quiet = "CREATE FUNCTION quiet() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$;"
    folder = await disturbed(
        dsn,
        write,
        f"{quiet}CREATE TRIGGER audit BEFORE INSERT OR UPDATE ON {HISTORY} FOR EACH ROW EXECUTE FUNCTION quiet()",
    )
    write({"002_bb.sql": "CREATE TABLE b ();\nDO $$BEGIN RAISE 'of the file'; END$$;"})
    migrator = Migrator(dsn, folder, lock=lock)  # type: ignore[arg-type]  # one of three

    error = await failure_of(migrator)

    assert (error.failure.history, error.failure.line, error.failure.message) == (None, 2, "of the file")
    assert await states(dsn) == {"1": "applied", "2": "failed"}
    write({"002_bb.sql": "CREATE TABLE b ();"})
    assert len(await migrator.up()) == 1


async def test_a_deferred_constraint_of_a_file_is_the_failure_of_the_file(dsn: str, write: Write) -> None:
    folder = await disturbed(dsn, write, "SELECT 1")
    unique = "ALTER TABLE a ADD UNIQUE (i) DEFERRABLE INITIALLY DEFERRED;\n"
    write({"002_bb.sql": f"{unique}INSERT INTO a VALUES (1), (1);"})
    migrator = Migrator(dsn, folder)

    error = await failure_of(migrator)

    assert (error.failure.history, error.failure.sqlstate) == (None, "23505")
    assert await states(dsn) == {"1": "applied", "2": "failed"}
    write({"002_bb.sql": f"{unique}INSERT INTO a VALUES (1), (2);"})
    assert len(await migrator.up()) == 1


async def test_the_command_line_advises_to_fix_the_history_and_not_the_file(
    dsn: str, write: Write, tmp_path: Path
) -> None:
    folder = await disturbed(dsn, write, trigger("AFTER INSERT"))
    write(FILES["several statements"])
    command = [sys.executable, "-m", "pgratchet", "up", "--json", "--dsn", dsn, "--dir", str(folder)]

    ended = await anyio.run_process(command, cwd=tmp_path, check=False)

    assert ended.returncode == 1
    assert json.loads(ended.stdout)["error"]["failure"]["history"] == HISTORY
    said = ended.stderr.decode()
    assert "up 2 bb could not be recorded" in said
    assert f"fix {HISTORY}, not the file, and run `pgratchet up` again" in said
    assert "002_bb.sql" not in said
    await tell(dsn, DROP_TRIGGER)
    await anyio.run_process(command, cwd=tmp_path)


async def test_a_history_without_plpgsql_is_told_by_the_name_of_its_table(dsn: str, write: Write) -> None:
    folder = await disturbed(dsn, write, f"ALTER TABLE {HISTORY} ADD CONSTRAINT early CHECK (version <> '2')")
    await tell(dsn, "DROP EXTENSION plpgsql")
    write(FILES["several statements"])
    migrator = Migrator(dsn, folder)

    error = await failure_of(migrator)

    assert_of_history(error.failure, "23514", "early", "DROP CONSTRAINT")
    await tell(dsn, f"ALTER TABLE {HISTORY} DROP CONSTRAINT early")
    assert len(await migrator.up()) == 1


async def test_a_table_that_cannot_be_made_is_named_in_the_error(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})
    await tell(
        dsn,
        "CREATE FUNCTION frozen() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no DDL today'; END$$;"
        "CREATE EVENT TRIGGER frozen ON ddl_command_start EXECUTE FUNCTION frozen()",
    )
    migrator = Migrator(dsn, folder)

    with pytest.raises(ServerError, match=f"the history {HISTORY} cannot be made: no DDL today"):
        await migrator.up()

    await tell(dsn, "DROP EVENT TRIGGER frozen")
    assert len(await migrator.up()) == 1


async def test_a_verdict_that_cannot_be_written_says_that_it_is_the_history(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, await disturbed(dsn, write, trigger("BEFORE INSERT")))
    write(FILES["one statement"])

    with pytest.raises(ServerError, match=f"the history {HISTORY} cannot be written: no writes today"):
        await migrator.repair("2", Verdict.APPLIED, "somebody has looked")

    await tell(dsn, DROP_TRIGGER)
    await migrator.repair("2", Verdict.APPLIED, "somebody has looked")
    assert await states(dsn) == {"1": "applied", "2": "applied"}


async def test_an_adoption_that_cannot_be_written_says_that_it_is_the_history(dsn: str, write: Write) -> None:
    folder = await disturbed(dsn, write, trigger("BEFORE INSERT"))
    legacy = (
        "CREATE TABLE legacy (version int, description text, filename text, executed_at timestamptz, success bool, "
        "error_message text); INSERT INTO legacy VALUES (2, 'bb', '002_bb.sql', now(), true, NULL)"
    )
    await tell(dsn, legacy)
    write(FILES["one statement"])
    migrator = Migrator(dsn, folder)

    with pytest.raises(ServerError, match=f"the history {HISTORY} cannot be written: no writes today"):
        await migrator.adopt("public.legacy")

    await tell(dsn, DROP_TRIGGER)
    assert (await migrator.adopt("public.legacy")).adopted == ("2",)


@pytest.fixture(scope="module")
def logical(memory: Path | None) -> Iterator[embedded.Server]:
    """A server that replicates between its databases."""
    with embedded.server(tcp=True, folder=memory, settings={"wal_level": "logical"}) as server:
        yield server


async def test_a_history_that_is_replicated_from_another_database_is_not_believed(
    logical: embedded.Server, write: Write
) -> None:
    folder = write({"001_a.sql": "CREATE TABLE a (i int PRIMARY KEY);"})
    await tell(logical.dsn, "CREATE DATABASE here")
    there, here = logical.dsn, logical.dsn_for("here")
    for dsn in (there, here):
        await Migrator(dsn, folder).up()
    await tell(there, "CREATE PUBLICATION p FOR ALL TABLES")
    await ask(there, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    options = "create_slot = false, slot_name = 's', copy_data = false"
    await tell(here, f"CREATE SUBSCRIPTION s CONNECTION '{there}' PUBLICATION p WITH ({options})")
    write({"002_b.sql": "CREATE TABLE b (i int PRIMARY KEY);"})
    assert len(await Migrator(there, folder).up()) == 1

    async def replicated() -> bool:
        return "2" in await states(here)

    await until(replicated)
    migrator = Migrator(here, folder)

    for work in (migrator.up, migrator.check, migrator.wait, migrator.plan):
        with pytest.raises(ServerError, match="another database writes the history, through the subscription s"):
            await work()

    assert not await exists(here, "b")
    await tell(here, f"ALTER SUBSCRIPTION s DISABLE; DELETE FROM {HISTORY} WHERE version = '2'")
    assert [step.version for step in await migrator.up()] == ["2"]
    await tell(here, "ALTER SUBSCRIPTION s SET (slot_name = NONE)")
    await tell(here, "DROP SUBSCRIPTION s")
