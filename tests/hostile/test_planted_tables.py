"""What an ordinary role makes under the history's name, or attaches to it, runs no code as whoever migrates."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, TypeAlias

import anyio
import pytest

from pgratchet import BudgetExceededError, ForeignTableError, Migrator, ServerError, Verdict
from pgratchet.core.model import State
from pgratchet.postgres.ledger.columns import COLUMNS
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.ledger.trust import Inspection
from pgratchet.postgres.link.session import Connection
from tests.shadows import has_sprung
from tests.support import HISTORY, PASSWORD, PATIENCE, Write, a_role, as_role, ask, connected, states, tell, until

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

COLUMNS_SQL = ", ".join(f"{name} {column.type} {column.more}" for name, column in COLUMNS.items())
NAMES = ", ".join(COLUMNS)
NULLS = ", ".join(f"NULL::{column.type} AS {name}" for name, column in COLUMNS.items() if name != "version")
FILES = {"001_a.sql": "CREATE TABLE public.a (id int)", "001_a.down.sql": "DROP TABLE public.a"}

SPRING = """
CREATE FUNCTION public.spring() RETURNS {result} LANGUAGE plpgsql {volatility} AS $$BEGIN
    PERFORM nextval('public.sprung'); RETURN {value}; END$$;
"""
TEXT = SPRING.format(result="text", volatility="", value="'1'")
FOLDED = SPRING.format(result="text", volatility="IMMUTABLE", value="'1'")
TRIGGER = SPRING.format(result="trigger", volatility="", value="NEW")
TRUTH = SPRING.format(result="bool", volatility="IMMUTABLE", value="true")
TABLE = f"CREATE TABLE {HISTORY} ({COLUMNS_SQL});"
ROW = f"INSERT INTO {HISTORY} (version, name, kind, checksum, state) VALUES ('7', 'x', 'sql', 'x', 'applied');"

NO_TABLES = {
    "a view": TEXT + f"CREATE VIEW {HISTORY} AS SELECT public.spring() AS version, {NULLS};",
    "a view that is folded while it is planned": FOLDED
    + f"CREATE VIEW {HISTORY} AS SELECT public.spring() AS version, {NULLS};",
    "a view behind a barrier": FOLDED
    + f"CREATE VIEW {HISTORY} WITH (security_barrier) AS SELECT public.spring() AS version, {NULLS};",
    "a view of a table": TEXT.replace("()", "(version text)", 1)
    + f"CREATE TABLE public.rows ({COLUMNS_SQL});"
    + f"CREATE VIEW {HISTORY} AS SELECT * FROM public.rows WHERE public.spring(version) IS NOT NULL;"
    + ROW.replace(HISTORY, "public.rows"),
    "a materialized view": f"CREATE MATERIALIZED VIEW {HISTORY} AS SELECT '1'::text AS version, {NULLS};",
    "a sequence": f"CREATE SEQUENCE {HISTORY};",
    "a composite type": f"CREATE TYPE {HISTORY} AS (version text);",
    "an index": "CREATE TABLE public.other (id int); CREATE INDEX schema_migrations ON public.other (id);",
}

TABLES = {
    "nothing else": TABLE,
    "a domain": "CREATE DOMAIN public.mine AS text;" + TABLE.replace("name pg_catalog.text", "name public.mine"),
    "an enum": "CREATE TYPE public.mine AS ENUM ('a');" + TABLE.replace("reason pg_catalog.text", "reason public.mine"),
    "a composite type": "CREATE TYPE public.mine AS (a text);"
    + TABLE.replace("error pg_catalog.text", "error public.mine"),
    "numbers for versions": TABLE.replace("version pg_catalog.text", "version int"),
    "texts for numbers": TABLE.replace("statements_done pg_catalog.int4 NOT NULL DEFAULT 0", "statements_done text")
    + ROW.replace("(version", "(statements_done, version").replace("('7'", "('many', '7'").replace("applied", "failed"),
    "a trigger": TABLE
    + TRIGGER
    + f"CREATE TRIGGER t BEFORE INSERT ON {HISTORY} FOR EACH ROW EXECUTE FUNCTION public.spring();",
    "a trigger for a statement": TABLE
    + TRIGGER
    + f"CREATE TRIGGER t AFTER UPDATE ON {HISTORY} FOR EACH STATEMENT EXECUTE FUNCTION public.spring();",
    "a rule": TABLE + TEXT + f"CREATE RULE r AS ON INSERT TO {HISTORY} DO ALSO SELECT public.spring();",
    "a default": TABLE + TEXT + f"ALTER TABLE {HISTORY} ALTER reason SET DEFAULT public.spring();",
    "a check": TRUTH + TABLE.replace(");", ", CHECK (public.spring()));"),
    "an index of an expression": TABLE
    + FOLDED.replace("()", "(v text)", 1)
    + f"CREATE INDEX i ON {HISTORY} (public.spring(version));",
    "an index of some rows": TABLE + TRUTH + f"CREATE INDEX i ON {HISTORY} (name) WHERE public.spring();",
    "an index of a constant": TABLE + FOLDED + f"CREATE INDEX i ON {HISTORY} ((public.spring()));",
    "statistics of an expression": TABLE + FOLDED + f"CREATE STATISTICS s ON (public.spring()), name FROM {HISTORY};",
    "a generated column": FOLDED.replace("()", "(v text)", 1)
    + TABLE.replace(");", ", more text GENERATED ALWAYS AS (public.spring(name)) STORED);"),
    "a policy": TABLE
    + TRUTH
    + f"CREATE POLICY p ON {HISTORY} WITH CHECK (public.spring()); GRANT ALL ON {HISTORY} TO PUBLIC;",
}


PARTITIONED = (
    TABLE.replace(");", ") PARTITION BY LIST (version);")
    + TRIGGER
    + f"CREATE TABLE public.part PARTITION OF {HISTORY} DEFAULT;"
    "CREATE TRIGGER t BEFORE INSERT ON public.part FOR EACH ROW EXECUTE FUNCTION public.spring();"
)


@asynccontextmanager
async def mallory(dsn: str) -> AsyncIterator[str]:
    """Yield the DSN of a role that may create in public, and nothing else."""
    await tell(dsn, "CREATE SEQUENCE public.sprung; GRANT ALL ON SEQUENCE public.sprung TO PUBLIC")
    async with a_role(dsn) as role:
        await tell(dsn, f"GRANT CREATE ON SCHEMA public TO {role}")
        yield as_role(dsn, role)


async def has_run(dsn: str) -> bool:
    async with connected(dsn) as connection:
        return await has_sprung(connection)


@pytest.mark.parametrize("planted", NO_TABLES.values(), ids=NO_TABLES)
async def test_a_relation_that_is_no_table_of_ours_is_refused_and_runs_nothing(
    dsn: str, write: Write, planted: str
) -> None:
    folder = write(FILES)
    async with mallory(dsn) as her:
        # The last is what asyncpg's own look at a type that it does not know would run.
        await tell(her, f"{planted}; {GRANT}; {OPERATOR}")
        migrator = Migrator(dsn, folder, budget=5)
        for look in (migrator.status, migrator.check, migrator.plan, migrator.wait, migrator.up, migrator.down):
            # PostgreSQL 18 copies the rows of a materialized view, too, which runs nothing.
            with pytest.raises((ForeignTableError, ServerError), match=r"schema_migrations|state 'None'"):
                await look()

        assert not await has_run(dsn)
    assert [step.version for step in await migrator.up()] == ["1"]


@pytest.mark.parametrize("kind", ["an index of a constant", "a generated column", "a policy", "a domain"])
async def test_a_table_of_hers_that_looks_like_another_history_is_named_and_runs_nothing(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    folder = write(FILES)
    async with mallory(dsn) as her:
        await tell(her, f"{TABLES[kind]}; {UNSPRUNG}")
        ours = Migrator(dsn, folder, table="ours.history")
        await ours.status()
        assert [step.version for step in await ours.up()] == ["1"]
        assert not await has_run(dsn)
    assert [HISTORY in record.getMessage() for record in caplog.records] == [True, True]


@pytest.mark.parametrize("planted", TABLES.values(), ids=TABLES)
async def test_a_table_of_hers_is_not_written_and_runs_nothing_where_it_is_read(
    dsn: str, write: Write, planted: str
) -> None:
    folder = write(FILES)
    async with mallory(dsn) as her:
        await tell(her, f"{planted}; {OPERATOR}; {UNSPRUNG}")
        migrator = Migrator(dsn, folder, budget=5)
        await migrator.status()
        for change in (migrator.up, migrator.rehearse, migrator.down):
            with pytest.raises(ForeignTableError, match=r"trusted_owners=\[.role_"):
                await change()

        assert not await has_run(dsn)
    assert [step.version for step in await migrator.up()] == ["1"]


async def test_a_partitioned_table_of_hers_is_not_written_and_runs_nothing_where_it_is_read(
    dsn: str, write: Write
) -> None:
    folder = write(FILES)
    async with mallory(dsn) as her:
        await tell(
            her,
            f"{PARTITIONED}; {TRUTH.replace('spring', 'truth', 1)}; CREATE INDEX i ON {HISTORY} (name) WHERE truth()",
        )
        await tell(her, UNSPRUNG)
        migrator = Migrator(dsn, folder, budget=5)
        await migrator.status()
        for change in (migrator.up, migrator.down):
            with pytest.raises(ForeignTableError, match=r"trusted_owners=\[.role_"):
                await change()

        assert not await has_run(dsn)
    assert [step.version for step in await migrator.up()] == ["1"]


async def test_a_view_that_takes_a_tables_place_and_leaves_it_again_runs_nothing(dsn: str, write: Write) -> None:
    folder = write(FILES)
    async with mallory(dsn) as her:
        view = NO_TABLES["a view that is folded while it is planned"].replace("schema_migrations", "hidden")
        await tell(her, f"{view}; {UNSPRUNG}")
        name = await ask(her, "SELECT current_user::text")
        async with connected(her) as swapping, anyio.create_task_group() as tasks:

            async def swap() -> None:
                while True:
                    await swapping.execute("ALTER VIEW public.hidden RENAME TO schema_migrations")
                    await swapping.execute("ALTER VIEW public.schema_migrations RENAME TO hidden")

            tasks.start_soon(swap)
            for _ in range(200):
                with suppress(ForeignTableError):
                    await Migrator(dsn, folder).status()
            tasks.cancel_scope.cancel()

        assert not await has_run(dsn), name
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]


async def test_the_creator_of_a_role_does_not_trust_it_by_that(dsn: str, write: Write) -> None:
    # Since PostgreSQL 16 a role is a member of those that it makes, which lets it act as none of them.
    folder = write(FILES)
    async with roles(dsn) as prefix:
        login = as_role(dsn, f"{prefix}_login")
        await tell(dsn, f"ALTER ROLE {prefix}_login CREATEROLE")
        await tell(login, f"CREATE ROLE {prefix}_made LOGIN PASSWORD '{PASSWORD}'")
        await tell(dsn, f"GRANT ALL ON SCHEMA public TO {prefix}_made")
        try:
            await tell(as_role(dsn, f"{prefix}_made"), f"{TABLES['nothing else']} GRANT ALL ON {HISTORY} TO PUBLIC")
            with pytest.raises(ForeignTableError, match=rf"trusted_owners=\[.{prefix}_made"):
                await Migrator(login, folder, budget=5).up()
        finally:
            await tell(dsn, f"DROP OWNED BY {prefix}_made CASCADE; DROP ROLE {prefix}_made")
        assert [step.version for step in await Migrator(login, folder, budget=5).up()] == ["1"]


async def test_a_wait_for_a_table_of_hers_runs_nothing(dsn: str, write: Write) -> None:
    folder = write(FILES)
    async with mallory(dsn) as her:
        planted = TABLES["an index of some rows"]
        await tell(her, f"{planted}; {UNSPRUNG}")
        with pytest.raises(BudgetExceededError):
            await Migrator(dsn, folder, budget=1).wait()

        assert not await has_run(dsn)
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]


UNSPRUNG = "SELECT setval('public.sprung', 1, false)"
"""Her own CREATE INDEX runs what it is made of."""

GRANT = f"DO $$BEGIN GRANT ALL ON {HISTORY} TO PUBLIC; EXCEPTION WHEN OTHERS THEN NULL; END$$"
OPERATOR = """
CREATE FUNCTION public.no(oid, int4) RETURNS bool LANGUAGE plpgsql AS
$$BEGIN PERFORM nextval('public.sprung'); RETURN true; END$$;
CREATE OPERATOR public.<> (FUNCTION = public.no, LEFTARG = oid, RIGHTARG = int4)
"""

ATTACHED = {
    "a trigger": (
        TRIGGER,
        "CREATE TRIGGER t BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION public.spring()",
    ),
    "a rule": (TEXT, "CREATE RULE r AS ON INSERT TO {table} DO ALSO SELECT public.spring()"),
    "a default": (TEXT, "ALTER TABLE {table} ALTER reason SET DEFAULT public.spring()"),
    "a check": (TRUTH, "ALTER TABLE {table} ADD CHECK (public.spring()) NOT VALID"),
    "an index": (TRUTH, "CREATE INDEX i ON {table} (name) WHERE public.spring()"),
    "an operator": (
        TRUTH.replace("()", "(text, text)", 1)
        + "CREATE OPERATOR public.=== (FUNCTION = public.spring, LEFTARG = text, RIGHTARG = text);",
        "ALTER TABLE {table} ADD CHECK (name OPERATOR(public.===) '') NOT VALID",
    ),
    "a domain": ("CREATE DOMAIN public.mine AS text", "ALTER TABLE {table} ADD COLUMN more public.mine"),
    "a table that refers to it": (
        "CREATE TABLE public.child (version text)",
        "ALTER TABLE public.child ADD FOREIGN KEY (version) REFERENCES {table} ON DELETE CASCADE",
    ),
}


@pytest.mark.parametrize(("hers", "attached"), ATTACHED.values(), ids=ATTACHED)
async def test_a_table_of_ours_with_something_of_hers_is_not_written(
    dsn: str, write: Write, hers: str, attached: str
) -> None:
    folder = write({"001_a.sql": "SELECT 1"})
    migrator = Migrator(dsn, folder, budget=5)
    await migrator.up()
    async with mallory(dsn) as her:
        name = await ask(her, "SELECT current_user::text")
        await tell(her, hers)
        await tell(dsn, f"{attached.format(table=HISTORY)}; {UNSPRUNG}")
        write({"002_b.sql": "SELECT 2"})
        with pytest.raises(ForeignTableError, match=f"belongs to the role {name}"):
            await migrator.up()
        assert not await has_run(dsn)
        trusting = Migrator(dsn, folder, budget=5, trusted_owners=[name])
        assert [step.version for step in await trusting.up()] == ["2"]


@pytest.mark.parametrize("hers", [True, False])
async def test_a_table_that_others_inherit_from_is_not_written(dsn: str, write: Write, *, hers: bool) -> None:
    folder = write({"001_a.sql": "SELECT 1"})
    migrator = Migrator(dsn, folder, budget=5)
    await migrator.up()
    async with mallory(dsn) as her:
        name = await ask(her, "SELECT current_user::text")
        await tell(dsn, f"CREATE TABLE public.child () INHERITS ({HISTORY})")
        if hers:
            await tell(dsn, f"ALTER TABLE public.child OWNER TO {name}")
        write({"002_b.sql": "SELECT 2"})
        with pytest.raises(ForeignTableError, match=f"belongs to the role {name}" if hers else "NO INHERIT"):
            await migrator.up()
        await tell(dsn, f"ALTER TABLE public.child NO INHERIT {HISTORY}")
        assert [step.version for step in await migrator.up()] == ["2"]


RIGHTS = f"GRANT TRIGGER, REFERENCES, SELECT ON {HISTORY} TO PUBLIC;"
QUEUED = f"""DO $$BEGIN
    PERFORM pg_advisory_xact_lock(7);
    WHILE NOT EXISTS (SELECT FROM pg_locks WHERE relation = '{HISTORY}'::regclass AND NOT granted)
        LOOP PERFORM pg_sleep(0.01); END LOOP;
END$$;"""
"""Returns when somebody waits for the history: the next transaction of the run comes behind that."""

HER_TRIGGER = f"CREATE TRIGGER t BEFORE INSERT OR UPDATE ON {HISTORY} FOR EACH {{}} EXECUTE FUNCTION public.spring()"
LATER = {
    "a trigger for each row": (TRIGGER, HER_TRIGGER.format("ROW")),
    "a trigger for a statement": (TRIGGER, HER_TRIGGER.format("STATEMENT")),
    "a condition": (
        TRUTH.replace("spring", "truth", 1),
        HER_TRIGGER.format("ROW WHEN (public.truth())").replace("public.spring", "suppress_redundant_updates_trigger"),
    ),
    "a trigger in the place of another": (
        TRIGGER,
        HER_TRIGGER.format("ROW").replace("CREATE", "CREATE OR REPLACE").replace("TRIGGER t", "TRIGGER audit"),
    ),
    "a foreign key": (
        f"{TRIGGER} CREATE TABLE public.child (version text); {HER_TRIGGER.format('STATEMENT')}".replace(
            HISTORY, "public.child"
        ),
        f"ALTER TABLE public.child ADD FOREIGN KEY (version) REFERENCES {HISTORY} ON DELETE CASCADE",
    ),
}
AUDIT = (
    "CREATE FUNCTION public.audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
    f"CREATE TRIGGER audit BEFORE INSERT ON {HISTORY} FOR EACH ROW EXECUTE FUNCTION public.audit();"
)
Lock: TypeAlias = Literal["transaction", "none"] | None
Files: TypeAlias = dict[str, str]
LOCKS: tuple[Lock, ...] = (None, "transaction", "none")
BARE = "-- pgratchet: no-transaction\n"
# What runs statement by statement takes the lock of a session.
NEXT: list[tuple[Files, Lock]] = [
    *(({"003_c.sql": "SELECT 3"}, lock) for lock in LOCKS),
    *(({"003_c.py": "async def up(connection):\n    pass\n"}, lock) for lock in LOCKS),
    ({"003_c.sql": f"{BARE}SELECT 3;\nVACUUM;"}, None),
]


@asynccontextmanager
async def attaching(dsn: str, her: str, attached: str) -> AsyncIterator[None]:
    """Attach something to the history while the block runs, as soon as a migration waits for that."""

    async def waits() -> bool:
        query = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND database = "
        return bool(await ask(dsn, f"{query} (SELECT oid FROM pg_database WHERE datname = current_database()))"))

    async def attach() -> None:
        await until(waits)
        await tell(her, attached)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(attach)
            yield


@pytest.mark.parametrize(("following", "lock"), NEXT)
@pytest.mark.parametrize(("hers", "attached"), LATER.values(), ids=LATER)
async def test_code_attached_between_two_migrations_does_not_run(  # noqa: PLR0913, PLR0917 - one of each
    dsn: str, write: Write, hers: str, attached: str, following: Files, lock: Lock
) -> None:
    folder = write({"001_a.sql": RIGHTS + AUDIT, "002_b.sql": QUEUED} | following)
    migrator = Migrator(dsn, folder, lock=lock, budget=20)
    async with mallory(dsn) as her:
        name = await ask(her, "SELECT current_user::text")
        await tell(her, hers)
        async with attaching(dsn, her, attached):
            with pytest.raises(ForeignTableError, match=f"belongs to the role {name}"):
                await migrator.up()
        assert not await has_run(dsn)
        assert await states(dsn) == {"1": "applied", "2": "applied"}
        await tell(dsn, f"DROP OWNED BY {name} CASCADE")
        assert [step.version for step in await migrator.up()] == ["3"]


@pytest.mark.parametrize(("following", "lock"), NEXT)
async def test_a_run_goes_on_where_the_owner_attaches_a_trigger_meanwhile(
    dsn: str, write: Write, following: Files, lock: Lock
) -> None:
    folder = write({"001_a.sql": "SELECT 1", "002_b.sql": QUEUED} | following)
    async with attaching(dsn, dsn, AUDIT):
        done = await Migrator(dsn, folder, lock=lock, budget=20).up()
    assert [step.version for step in done] == ["1", "2", "3"]
    assert await Migrator(dsn, folder, lock=lock).up() == ()


@pytest.mark.parametrize("place", range(3))
async def test_code_attached_between_two_statements_does_not_run(dsn: str, write: Write, place: int) -> None:
    statements = ["SELECT 1;", "VACUUM;", "SELECT 3;"]
    # Meanwhile the history is not locked: it is there at once.
    there = f"SELECT FROM pg_trigger WHERE tgrelid = '{HISTORY}'::regclass AND tgname = 't'"
    statements.insert(place, re.sub(r"SELECT FROM pg_locks [^)]*", there, QUEUED))
    folder = write({"001_a.sql": RIGHTS, "002_b.sql": BARE + "".join(statements)})
    migrator = Migrator(dsn, folder, budget=20)
    async with mallory(dsn) as her:
        name = await ask(her, "SELECT current_user::text")
        await tell(her, TRIGGER)
        async with attaching(dsn, her, HER_TRIGGER.format("STATEMENT")):
            with pytest.raises(ForeignTableError, match=f"belongs to the role {name}"):
                await migrator.up()
        assert not await has_run(dsn)
        await tell(dsn, f"DROP OWNED BY {name} CASCADE")
        statements[place] = "SELECT 2;"
        write({"002_b.sql": BARE + "".join(statements)})
        assert [step.version for step in await migrator.up()] == ["2"]


async def test_a_file_may_attach_a_trigger_of_its_own_statement_by_statement(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": f"{BARE}SELECT 1; {AUDIT} VACUUM; SELECT 2;", "002_b.sql": "SELECT 2;"})
    assert [step.version for step in await Migrator(dsn, folder, budget=20).up()] == ["1", "2"]


@pytest.mark.parametrize("change", ["repair", "rehearse", "adopt"])
async def test_code_attached_after_the_inspection_of_a_transaction_does_not_run(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folder = write({"001_a.sql": "SELECT 1"})
    columns = "version int, description text, filename text, executed_at timestamptz, success bool, error_message text"
    await tell(
        dsn, f"CREATE TABLE public.old ({columns}); INSERT INTO public.old VALUES (2, 'b', '002_b.sql', now(), true)"
    )
    migrator = Migrator(dsn, folder, budget=20)
    await migrator.up()
    await tell(dsn, RIGHTS)
    write({"002_b.sql": "SELECT 2"})
    ensure = History.ensure

    async def meanwhile(*arguments: Any) -> Any:
        seal = await ensure(*arguments)
        await tell(her, HER_TRIGGER.format("STATEMENT"))
        return seal

    async def changed() -> object:
        match change:
            case "repair":
                return await migrator.repair(2, Verdict.APPLIED, "by hand")
            case "adopt":
                return await migrator.adopt("public.old")
            case _:
                return await migrator.rehearse()

    async with mallory(dsn) as her:
        name = await ask(her, "SELECT current_user::text")
        await tell(her, TRIGGER)
        with monkeypatch.context() as patch:
            patch.setattr(History, "ensure", meanwhile)
            with pytest.raises(ForeignTableError, match=f"belongs to the role {name}"):
                await changed()
        assert not await has_run(dsn)
        await tell(dsn, f"DROP OWNED BY {name} CASCADE")
        await changed()


async def test_a_table_that_is_planted_while_ours_is_made_is_not_written(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(FILES)
    async with mallory(dsn) as her:
        inspected = History.inspected

        async def planting(history: History, connection: Connection, before: str = "", **found: Any) -> Inspection:
            if before:
                monkeypatch.undo()
                await tell(her, TABLES["a trigger"])
            return await inspected(history, connection, before, **found)

        monkeypatch.setattr(History, "inspected", planting)
        with pytest.raises(ForeignTableError, match="trusted_owners=\\["):
            await Migrator(dsn, folder, budget=5).up()
        assert not await has_run(dsn)


async def test_code_attached_to_a_table_that_has_just_been_made_does_not_run(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tell(dsn, "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT TRIGGER ON TABLES TO PUBLIC")
    migrator = Migrator(dsn, write(FILES), budget=5)
    async with mallory(dsn) as her:
        name = await ask(her, "SELECT current_user::text")
        await tell(her, TRIGGER)

        inspected = History.inspected

        async def meanwhile(history: History, connection: Connection, before: str = "", **found: Any) -> Inspection:
            table = await inspected(history, connection, before, **found)
            if before:
                monkeypatch.undo()
                await tell(her, HER_TRIGGER.format("STATEMENT"))
            return table

        monkeypatch.setattr(History, "inspected", meanwhile)
        with pytest.raises(ForeignTableError, match=f"belongs to the role {name}"):
            await migrator.up()
        assert not await has_run(dsn)
        await tell(dsn, f"DROP OWNED BY {name} CASCADE")
        assert [step.version for step in await migrator.up()] == ["1"]


POLICY = f"{TABLE} {TRUTH} GRANT ALL ON {HISTORY} TO PUBLIC; ALTER TABLE {HISTORY} ENABLE ROW LEVEL SECURITY;"
POLICIES = {
    "of a function": f"CREATE POLICY p ON {HISTORY} USING (public.spring())",
    "of a function, beside one that shows all": f"CREATE POLICY o ON {HISTORY} USING (true);"
    f"CREATE POLICY p ON {HISTORY} USING (public.spring())",
    "of a function, restrictive": f"CREATE POLICY o ON {HISTORY} USING (true);"
    f"CREATE POLICY p ON {HISTORY} AS RESTRICTIVE FOR SELECT USING (public.spring())",
    "of a function in a view": "CREATE VIEW public.seen AS SELECT public.spring() AS it;"
    f"CREATE POLICY p ON {HISTORY} USING ((SELECT it FROM public.seen))",
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
async def test_a_policy_of_hers_runs_nothing_in_an_ordinary_role_that_reads(
    dsn: str, write: Write, policy: str
) -> None:
    folder = write(FILES)
    async with mallory(dsn) as her, roles(dsn) as prefix:
        name = await ask(her, "SELECT current_user::text")
        await tell(her, f"{POLICY} {ROW} {policy}; {UNSPRUNG}")
        migrator = Migrator(as_role(dsn, f"{prefix}_login"), folder, budget=5)
        for look in (migrator.up, migrator.status, migrator.check, migrator.wait, migrator.plan, migrator.rehearse):
            with pytest.raises(ForeignTableError, match=f"belongs to the role {name}"):
                await look()
        assert not await has_run(dsn)
        await tell(her, f"DROP TABLE {HISTORY}")
        assert [step.version for step in await migrator.up()] == ["1"]


async def test_a_policy_that_is_switched_on_and_off_runs_nothing(dsn: str, write: Write) -> None:
    folder = write(FILES)
    async with mallory(dsn) as her, roles(dsn) as prefix:
        await tell(her, f"{POLICY} {POLICIES['of a function']}; {UNSPRUNG}")
        async with connected(her) as switching, anyio.create_task_group() as tasks:

            async def switch() -> None:
                while True:
                    await switching.execute(f"ALTER TABLE {HISTORY} DISABLE ROW LEVEL SECURITY")
                    await switching.execute(f"ALTER TABLE {HISTORY} ENABLE ROW LEVEL SECURITY")

            tasks.start_soon(switch)
            for _ in range(200):
                with suppress(ForeignTableError):
                    await Migrator(as_role(dsn, f"{prefix}_login"), folder).status()
            tasks.cancel_scope.cancel()
        assert not await has_run(dsn)


SECURE = f"ALTER TABLE {HISTORY} ENABLE ROW LEVEL SECURITY; GRANT SELECT ON {HISTORY} TO PUBLIC;"
HIDING = {
    "no policy": "",
    "a policy of some rows": f"CREATE POLICY p ON {HISTORY} USING (version <> '1')",
    "a policy of another role": f"CREATE POLICY p ON {HISTORY} TO {{0}}_other USING (true)",
    "a policy for what is written": f"CREATE POLICY p ON {HISTORY} FOR INSERT WITH CHECK (true)",
    "a restrictive policy": f"CREATE POLICY o ON {HISTORY} USING (true);"
    f"CREATE POLICY p ON {HISTORY} AS RESTRICTIVE USING (version <> '1')",
}
SHOWING = {
    "a policy of all rows": f"CREATE POLICY p ON {HISTORY} USING (true)",
    "a policy of the role": f"CREATE POLICY p ON {HISTORY} FOR SELECT TO {{0}}_login USING (true)",
    "a policy of a group": f"GRANT {{0}}_group TO {{0}}_login;CREATE POLICY p ON {HISTORY} TO {{0}}_group USING (true)",
    "a policy of some rows beside it": f"CREATE POLICY o ON {HISTORY} USING (true);"
    f"CREATE POLICY p ON {HISTORY} USING (version <> '1')",
    "a restrictive policy of all rows": f"CREATE POLICY o ON {HISTORY} USING (true);"
    f"CREATE POLICY p ON {HISTORY} AS RESTRICTIVE USING (true)",
    "a restrictive policy of others": f"CREATE POLICY o ON {HISTORY} USING (true);"
    f"CREATE POLICY p ON {HISTORY} AS RESTRICTIVE TO {{0}}_other USING (false)",
}


@pytest.mark.parametrize("policy", HIDING.values(), ids=HIDING)
async def test_rows_that_row_level_security_hides_are_not_taken_for_missing(
    dsn: str, write: Write, policy: str
) -> None:
    folder = write({"001_a.sql": "SELECT 1"})
    await Migrator(dsn, folder).up()
    async with roles(dsn) as prefix:
        await tell(dsn, SECURE + policy.format(prefix))
        reader = Migrator(as_role(dsn, f"{prefix}_login"), folder, budget=5)
        for look in (reader.up, reader.status, reader.check, reader.wait):
            with pytest.raises(ServerError, match=r"row level security may hide rows.* DISABLE ROW LEVEL SECURITY"):
                await look()
        await tell(dsn, f"ALTER TABLE {HISTORY} DISABLE ROW LEVEL SECURITY")
        await reader.check()


@pytest.mark.parametrize("policy", SHOWING.values(), ids=SHOWING)
async def test_row_level_security_that_hides_nothing_is_in_nobodys_way(dsn: str, write: Write, policy: str) -> None:
    folder = write({"001_a.sql": "SELECT 1"})
    await Migrator(dsn, folder).up()
    async with roles(dsn) as prefix:
        await tell(dsn, SECURE + policy.format(prefix))
        reader = Migrator(as_role(dsn, f"{prefix}_login"), folder, budget=5)
        for look in (reader.up, reader.status, reader.check, reader.wait):
            await look()


async def test_an_owner_who_is_forced_to_heed_policies_migrates(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "SELECT 1"})
    async with roles(dsn) as prefix:
        migrator = Migrator(as_role(dsn, f"{prefix}_login"), folder, budget=5)
        await migrator.up()
        await tell(dsn, f"{SECURE} ALTER TABLE {HISTORY} FORCE ROW LEVEL SECURITY")
        write({"002_b.sql": "SELECT 2"})
        with pytest.raises(ServerError, match="row level security may hide rows"):
            await migrator.up()
        await tell(dsn, SHOWING["a policy of all rows"])
        assert [step.version for step in await migrator.up()] == ["2"]


async def test_a_run_that_would_migrate_does_not_believe_rows_of_hers(dsn: str, write: Write) -> None:
    folder = write(FILES)
    migrator = Migrator(dsn, folder, budget=5)
    await migrator.up()
    async with mallory(dsn) as her:
        name = await ask(her, "SELECT current_user::text")
        await tell(dsn, f"ALTER TABLE {HISTORY} RENAME TO ours")
        await tell(her, f"{TABLE} GRANT ALL ON {HISTORY} TO PUBLIC")
        await tell(dsn, f"INSERT INTO {HISTORY} TABLE public.ours")
        for turn in (migrator.up, migrator.rehearse, migrator.down):
            with pytest.raises(ForeignTableError, match=rf"trusted_owners=\[.{name}"):
                await turn()
        for look in (migrator.check, migrator.wait, migrator.status, migrator.plan):
            await look()
        await Migrator(dsn, folder, trusted_owners=[name]).up()
        assert [step.version for step in await Migrator(dsn, folder, trusted_owners=[name]).down()] == ["1"]


ROLES = (
    "CREATE ROLE {0}_group; CREATE ROLE {0}_other LOGIN PASSWORD '{1}';"
    "CREATE ROLE {0}_login LOGIN PASSWORD '{1}';"
    "GRANT CREATE, USAGE ON SCHEMA public TO {0}_group, {0}_other, {0}_login;"
)
NO_ROLES = "DROP OWNED BY {0}_other, {0}_login, {0}_group CASCADE; DROP ROLE {0}_other, {0}_login, {0}_group"


@asynccontextmanager
async def roles(dsn: str) -> AsyncIterator[str]:
    """Yield what the names of three roles begin with: `_group`, `_login` and `_other`."""
    prefix = "r" + dsn.partition("?")[0].rpartition("_")[2]
    await tell(dsn, ROLES.format(prefix, PASSWORD))
    try:
        yield prefix
    finally:
        await tell(
            dsn, f"ALTER DATABASE {database(dsn)} OWNER TO CURRENT_USER; ALTER SCHEMA public OWNER TO CURRENT_USER"
        )
        await tell(dsn, NO_ROLES.format(prefix))


def database(dsn: str) -> str:
    return dsn.partition("?")[0].rpartition("/")[2]


TRUSTED = {
    "the login itself": "ALTER TABLE {table} OWNER TO {0}_login",
    "a role that the login is a member of": "GRANT {0}_group TO {0}_login; ALTER TABLE {table} OWNER TO {0}_group",
    "a member of a role that the login is": "GRANT {0}_login TO {0}_other; ALTER TABLE {table} OWNER TO {0}_other",
    "the owner of the schema": "ALTER SCHEMA public OWNER TO {0}_other; ALTER TABLE {table} OWNER TO {0}_other",
    "the owner of the database": "ALTER DATABASE {database} OWNER TO {0}_other; ALTER TABLE {table} OWNER TO {0}_other",
    "a superuser": "ALTER TABLE {table} OWNER TO CURRENT_USER",
    # As on Cloud SQL: databases belong to the role cloudsqlsuperuser, and each login that its console makes is in it.
    "another member of the role that owns the database": "ALTER DATABASE {database} OWNER TO {0}_group;"
    "GRANT {0}_group TO {0}_login; GRANT {0}_group TO {0}_other; ALTER TABLE {table} OWNER TO {0}_other",
    # As a vault makes logins that last for a day: in a role that owns the schema.
    "a login from before the rotation": "ALTER SCHEMA public OWNER TO {0}_group;"
    "GRANT {0}_group TO {0}_login; GRANT {0}_group TO {0}_other; ALTER TABLE {table} OWNER TO {0}_other",
}


@pytest.mark.parametrize("change", TRUSTED.values(), ids=TRUSTED)
async def test_a_table_of_somebody_who_is_trusted_is_written(dsn: str, write: Write, change: str) -> None:
    folder = write({"001_a.sql": "SELECT 1"})
    await Migrator(dsn, folder).up()
    async with roles(dsn) as prefix:
        await tell(dsn, change.format(prefix, table=HISTORY, database=database(dsn)))
        await tell(dsn, f"GRANT ALL ON {HISTORY} TO {prefix}_login")
        write({"002_b.sql": "SELECT 2"})
        assert [step.version for step in await Migrator(as_role(dsn, f"{prefix}_login"), folder).up()] == ["2"]


@pytest.mark.parametrize("migrates", ["superuser", "login"])
async def test_a_table_of_an_ordinary_role_is_written_only_where_it_is_named_as_trusted(
    dsn: str, write: Write, migrates: str
) -> None:
    folder = write({"001_a.sql": "SELECT 1"})
    await Migrator(dsn, folder).up()
    async with roles(dsn) as prefix:
        await tell(dsn, f"ALTER TABLE {HISTORY} OWNER TO {prefix}_other; GRANT ALL ON {HISTORY} TO {prefix}_login")
        write({"002_b.sql": "SELECT 2"})
        ours = dsn if migrates == "superuser" else as_role(dsn, f"{prefix}_login")
        with pytest.raises(ForeignTableError, match=f"belongs to the role {prefix}_other"):
            await Migrator(ours, folder).up()
        assert [step.version for step in await Migrator(ours, folder, trusted_owners=[f"{prefix}_other"]).up()] == ["2"]
        assert await states(dsn) == {"1": "applied", "2": "applied"}


async def test_readers_may_look_at_a_partitioned_table_of_anybody(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "SELECT 1"})
    await tell(dsn, TABLE.replace(");", ") PARTITION BY LIST (version);"))
    await tell(dsn, f"CREATE TABLE public.part PARTITION OF {HISTORY} DEFAULT")
    await Migrator(dsn, folder).up()
    async with roles(dsn) as prefix:
        await tell(
            dsn, f"ALTER TABLE {HISTORY} OWNER TO {prefix}_other; ALTER TABLE public.part OWNER TO {prefix}_other"
        )
        await tell(dsn, f"GRANT SELECT ON {HISTORY}, public.part TO {prefix}_login")
        reader = Migrator(as_role(dsn, f"{prefix}_login"), folder)
        for look in (reader.check, reader.wait, reader.status):
            await look()


async def test_readers_may_look_at_a_table_of_anybody(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "SELECT 1"})
    await Migrator(dsn, folder).up()
    async with roles(dsn) as prefix:
        await tell(dsn, f"ALTER TABLE {HISTORY} OWNER TO {prefix}_other; GRANT SELECT ON {HISTORY} TO {prefix}_login")
        reader = Migrator(as_role(dsn, f"{prefix}_login"), folder)
        for look in (reader.check, reader.wait, reader.status):
            await look()


@pytest.mark.parametrize("style", ["SQL, DMY", "German", "Postgres, MDY"])
async def test_a_datestyle_keeps_nobody_from_reading(dsn: str, write: Write, style: str) -> None:
    folder = write({"001_a.sql": "SELECT 1"})
    await Migrator(dsn, folder).up()
    async with roles(dsn) as prefix:
        reader = Migrator(as_role(dsn, f"{prefix}_login"), folder)
        await tell(
            dsn, f"GRANT SELECT ON {HISTORY} TO {prefix}_login; ALTER ROLE {prefix}_login SET DateStyle = '{style}'"
        )
        (entry,) = await reader.status()
        assert entry.row is not None
        assert entry.row.finished_at is not None

        await tell(dsn, f"ALTER TABLE {HISTORY} OWNER TO {prefix}_other")
        for look in (reader.check, reader.wait):
            await look()
        (entry,) = await reader.status()
        assert (entry.state, entry.row and entry.row.finished_at) == (State.APPLIED, None)


async def test_a_partitioned_history_of_ours_is_read_and_written(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "SELECT 1"})
    await tell(dsn, TABLE.replace(");", ") PARTITION BY LIST (version);"))
    await tell(dsn, f"CREATE TABLE public.part PARTITION OF {HISTORY} DEFAULT")
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]
    await Migrator(dsn, folder).check()


async def test_another_tools_view_is_not_adopted_from(dsn: str, write: Write) -> None:
    folder = write(FILES)
    columns = "1 AS version, public.spring() AS description, '' AS filename, now() AS executed_at, true AS success"
    async with mallory(dsn) as her:
        await tell(her, f"{FOLDED} CREATE VIEW public.old AS SELECT {columns}, '' AS error_message")
        for dry_run in (True, False):
            with pytest.raises(ForeignTableError, match="old is a view"):
                await Migrator(dsn, folder).adopt("public.old", dry_run=dry_run)
        assert not await has_run(dsn)


async def test_another_tools_table_of_hers_is_not_adopted_from(dsn: str, write: Write) -> None:
    folder = write(FILES)
    columns = "version int, description text, filename text, executed_at timestamptz, success bool, error_message text"
    index = f"{FOLDED} CREATE INDEX i ON public.old ((public.spring()))"
    async with mallory(dsn) as her:
        await tell(her, f"CREATE TABLE public.old ({columns}); {index}; {UNSPRUNG}")
        name = await ask(her, "SELECT current_user::text")
        for dry_run in (True, False):
            with pytest.raises(ForeignTableError, match=rf"trusted_owners=\[.{name}"):
                await Migrator(dsn, folder).adopt("public.old", dry_run=dry_run)
        assert not await has_run(dsn)
        await tell(her, "DROP INDEX i")
        await Migrator(dsn, folder, trusted_owners=[name]).adopt("public.old")


async def test_another_tools_table_with_a_type_of_hers_is_not_adopted_from(dsn: str, write: Write) -> None:
    folder = write(FILES)
    cast = (
        "CREATE TYPE public.mine AS (a text);"
        "CREATE FUNCTION public.spring(public.mine) RETURNS timestamptz LANGUAGE plpgsql AS "
        "$$BEGIN PERFORM nextval('public.sprung'); RETURN now(); END$$;"
        "CREATE CAST (public.mine AS timestamptz) WITH FUNCTION public.spring(public.mine) AS IMPLICIT;"
        "CREATE TABLE public.old (version int, description text, filename text, executed_at public.mine, success bool, "
        "error_message text); INSERT INTO public.old VALUES (1, '', '', ROW('a'), true, '')"
    )
    async with mallory(dsn) as her:
        await tell(her, cast)
        for dry_run in (True, False):
            with pytest.raises(ForeignTableError, match="adopted"):
                await Migrator(dsn, folder).adopt("public.old", dry_run=dry_run)
        assert not await has_run(dsn)
