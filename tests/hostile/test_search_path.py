"""Nothing that an ordinary role plants in a schema of the search_path is run by a statement of ours."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import asyncpg
import pytest

from pgratchet import MigrationFailedError, Migrator, Verdict
from pgratchet.core.events import Event, Retried, Waiting
from pgratchet.postgres.link.sql import EQ
from pgratchet.testing.databases import Databases, made
from tests.conftest import Maintenance, a_database, writing
from tests.poolers import pgbouncer
from tests.shadows import PATHS, Statements, has_sprung, plant, refuse_planted, run_by
from tests.support import HISTORY, Write, connected, runner_lock, tell, until

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

IN_TRANSACTIONS = {
    "001_plain.sql": "CREATE TABLE public.a (id pg_catalog.int4);",
    "001_plain.down.sql": "DROP TABLE public.a;",
    "002_several.sql": "INSERT INTO public.a VALUES (1);\nINSERT INTO public.a VALUES (2);",
    "002_several.down.sql": "DELETE FROM public.a;",
    "003_python.py": """
async def up(connection):
    await connection.execute("INSERT INTO public.a VALUES (3)")

async def down(connection):
    pass
""",
}
OUTSIDE = {
    "004_index.sql": "CREATE INDEX CONCURRENTLY a_id ON public.a (id);",
    "004_index.down.sql": "DROP INDEX CONCURRENTLY public.a_id;",
    "005_bare.sql": """-- pgratchet: no-transaction
SET work_mem = '1MB';
INSERT INTO public.a VALUES (5);
REINDEX TABLE public.a;
CALL public.work();
""",
    "005_bare.down.sql": "SELECT 1;",
}
"""Every way to run a step. All is named in full: what a file finds otherwise is its author's business."""

FAILING = ["SELECT 1;\nSELECT 1 OPERATOR(pg_catalog./) 0;"]
FAILING_OUTSIDE = [
    "REINDEX TABLE CONCURRENTLY public.none;",
    "-- pgratchet: no-transaction\nSELECT 1;\nREINDEX TABLE public.none;",
    "CREATE UNIQUE INDEX CONCURRENTLY twice ON public.a ((1));",
]

PROCEDURE = "CREATE OR REPLACE PROCEDURE public.work() LANGUAGE plpgsql AS $$BEGIN COMMIT; END$$;"
FOREIGN = (
    "CREATE TABLE public.old (version pg_catalog.int4, description pg_catalog.text, filename pg_catalog.text, "
    "executed_at pg_catalog.timestamptz, success pg_catalog.bool, error_message pg_catalog.text);"
    "INSERT INTO public.old VALUES (1, 'plain', '001_plain.sql', '2020-01-01', true, NULL)"
)


async def everything(dsn: str, write: Write, *, through: str = "", outside: bool = False, **options: Any) -> None:
    """Do all that a migrator can do; `outside` a transaction, too."""
    files = IN_TRANSACTIONS | (OUTSIDE if outside else {})
    folder = write(files)
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    await tell(dsn, f"{PROCEDURE} DROP TABLE IF EXISTS public.old; {FOREIGN}")
    told: list[Event] = []
    migrator = Migrator(through or dsn, folder, listener=told.append, **options)
    if not outside:
        await migrator.rehearse()
    await migrator.up()
    for look in (migrator.status, migrator.check, migrator.wait, migrator.plan, migrator.up):
        await look()
    await migrator.redo(2)
    for text in FAILING + (FAILING_OUTSIDE if outside else []):
        write({"006_fails.sql": text})
        with pytest.raises(MigrationFailedError):
            await migrator.up()
        await migrator.repair(6, Verdict.NOT_APPLIED, "it is to go")
    (folder / "006_fails.sql").unlink()
    if outside:
        await go_on(dsn, migrator)
    await wait_for_others(dsn, write, migrator, told, locks=options.get("lock") != "none")
    await migrator.down(0)
    await anyio.to_thread.run_sync(make_and_drop_databases, dsn)
    elsewhere = Migrator(through or dsn, folder, **options | {"table": "public.adopted"})
    await elsewhere.adopt("public.old", dry_run=True)
    await elsewhere.adopt("public.old")


def make_and_drop_databases(dsn: str) -> None:
    """Do what the pytest plugin does on its server."""
    databases = Databases(dsn)
    databases.sweep()
    assert databases.server_major() > 0
    with databases.empty() as empty, databases.clone(empty) as copy:
        made(lambda there: Migrator(there, "."), copy)


async def go_on(dsn: str, migrator: Migrator) -> None:
    """Take over a migration whose runner has died when all its statements were done."""
    await tell(dsn, f"UPDATE {HISTORY} SET state = 'running', backend_pid = 1 WHERE version {EQ} '5'")
    assert [step.version for step in await migrator.up()] == ["5"]


async def wait_for_others(dsn: str, write: Write, migrator: Migrator, told: list[Event], *, locks: bool) -> None:
    """Wait for the runner's lock, and then for somebody's lock on a table, for long enough to look who that is."""
    folder = write({"006_blocked.sql": "-- pgratchet: lock-timeout=400ms\nALTER TABLE public.a ADD b pg_catalog.int4;"})
    told.clear()

    async def has_told(*kinds: type[Event]) -> bool:
        return any(isinstance(event, kinds) and getattr(event, "blockers", True) for event in told)

    async with anyio.create_task_group() as tasks, connected(dsn) as blocker:
        await blocker.execute("BEGIN; LOCK TABLE public.a")
        async with runner_lock(dsn):
            tasks.start_soon(migrator.up)
            if locks:
                await until(partial(has_told, Waiting))
        await until(partial(has_told, Retried))
        await blocker.execute("ROLLBACK")
    await migrator.repair(6, Verdict.NOT_APPLIED, "it is to go")
    (folder / "006_blocked.sql").unlink()
    await tell(dsn, "ALTER TABLE public.a DROP b")


@asynccontextmanager
async def ways(dsn: str) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield the options of each way to lead a run."""
    async with pgbouncer(dsn) as pooler:
        yield [
            {"outside": True},
            {"lock": "transaction"},
            {"lock": "none"},
            {"outside": True, "owner": "postgres", "readers": ["postgres"]},
            {"through": pooler.dsn},
            {"through": pooler.dsn, "outside": True, "direct_dsn": dsn},
        ]


async def sent(dsn: str, write: Write) -> Statements:
    """Return the statements of ours that all that a migrator can do is made of."""
    statements = Statements()
    async with ways(dsn) as all_ways:
        with statements.noting():
            for options in all_ways:
                await everything(dsn, write, **options)
    return statements


@pytest.fixture(scope="module")
def noted(maintenance_dsn: str, maintenance: Maintenance, tmp_path_factory: pytest.TempPathFactory) -> Statements:
    with a_database(maintenance_dsn, maintenance) as dsn:
        return asyncio.run(sent(dsn, writing(tmp_path_factory.mktemp("noted") / "migrations")))


async def test_no_statement_refers_to_a_planted_object(dsn: str, noted: Statements) -> None:
    assert len(noted) > 40
    await refuse_planted(dsn, noted)


async def test_no_statement_makes_asyncpg_look_up_a_type(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would do so by a query that names little in full.
    looked_up: list[object] = []
    introspect: Any = getattr(asyncpg.Connection, "_introspect_types")  # noqa: B009 - not in the stubs

    async def looking_up(connection: Any, types: object, *more: object) -> Any:
        looked_up.append(types)
        return await introspect(connection, types, *more)

    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", looking_up)
    await everything(dsn, write, outside=True)
    assert looked_up == []


@pytest.mark.parametrize("path", PATHS)
async def test_a_run_among_planted_things_runs_none_of_them(
    dsn: str, write: Write, noted: Statements, path: str
) -> None:
    database = dsn.partition("?")[0].rpartition("/")[2]
    async with connected(dsn) as connection:
        await plant(connection, noted)
        await connection.execute(f"ALTER DATABASE {database} SET search_path TO {path}")

    async with ways(dsn) as all_ways:
        for options in all_ways:
            await everything(dsn, write, **options)

    async with connected(dsn) as connection:
        assert not await has_sprung(connection)


@pytest.mark.parametrize(
    "expression",
    [
        "relname IN ('a', 'b')",
        "CASE relname WHEN 'a' THEN true END",
        "relname BETWEEN 'a' AND 'b'",
        "relname IS DISTINCT FROM 'a'",
        "NULLIF(relname, 'a') IS NULL",
        "relname LIKE 'a'",
        "relname = 'a'",
        "relname::text OPERATOR(pg_catalog.=) 'a'",
        "has_table_privilege(relname, oid, 'SELECT')",
        "oid OPERATOR(pg_catalog.=) ANY ('{1}'::oid[])",
        "relname OPERATOR(pg_catalog.=) ('a' || relkind::pg_catalog.text)",
        "oid = 'pg_class'::pg_catalog.regclass",
        "oid = ANY (SELECT 1)",
    ],
)
async def test_an_expression_that_is_not_named_in_full_is_found(dsn: str, expression: str) -> None:
    statement = f"SELECT relname FROM pg_catalog.pg_class WHERE {expression}"
    async with connected(dsn) as connection:
        await plant(connection, [statement])
        await connection.execute("SET search_path TO public, pg_catalog")
        assert await run_by(connection, statement)


@pytest.mark.parametrize("join", ["JOIN pg_catalog.pg_class b USING (relname)", "NATURAL JOIN pg_catalog.pg_class b"])
async def test_a_join_that_names_no_operator_is_found(dsn: str, join: str) -> None:
    statement = f"SELECT 1 FROM (SELECT relname FROM pg_catalog.pg_class) a {join}"
    async with connected(dsn) as connection:
        await plant(connection, [statement])
        await connection.execute("SET search_path TO public, pg_catalog")
        assert await run_by(connection, statement)
