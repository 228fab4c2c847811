"""A history is shared by releases that have more columns than it, and by those that have fewer."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
import asyncpg
import pytest

from pgratchet import ForeignTableError, MigrationFailedError, Migrator, ServerError, State, Verdict
from pgratchet.core.model import HistoryRow, RecordState
from pgratchet.postgres.ledger.columns import COLUMNS
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.link.budget import Budget
from pgratchet.postgres.link.sql import Table
from tests.processes import replicas
from tests.support import (
    HISTORY,
    PASS_GATE,
    PATIENCE,
    Connection,
    Write,
    a_role,
    as_role,
    ask,
    column,
    connected,
    gate,
    history,
    sessions,
    states,
    tell,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

Output = Callable[[bytes], Awaitable[Any]]
TABLE = Table.parse(HISTORY)
NULLABLE = [name for name, column in COLUMNS.items() if not column.more]
ESSENTIAL = ["cursor", "backend_pid", "token", "compatible_with"]
OPTIONAL = [name for name in NULLABLE if name not in ESSENTIAL]

RELEASE_0_1_0 = """
CREATE TABLE public.schema_migrations (
    version text PRIMARY KEY, name text NOT NULL, kind text NOT NULL, checksum text NOT NULL, state text NOT NULL,
    statements_done integer NOT NULL DEFAULT 0, statements_total integer NOT NULL DEFAULT 0, cursor text,
    started_at timestamptz, finished_at timestamptz, applied_by text, backend_pid integer, backend_start timestamptz,
    token text, tool_version text, compatible_with text, reason text, error text
);
COMMENT ON TABLE public.schema_migrations IS 'Which migrations are applied; written by pgratchet';
INSERT INTO public.schema_migrations VALUES
    ('1', 'a', 'sql', 'b4e0497804e46e0a0b0b8c31975b062152d551bac49c3c2e80932567b4085dcd', 'applied', 1, 1, NULL,
     '2026-11-30 07:07:55.369916+00', '2026-11-30 07:07:55.370397+00', 'postgres@vm pgratchet', 2331,
     '2026-11-30 07:07:55.255434+00', '63cc0e11028c4f34b23f3d5e56d41110', '0.1.0', '1', NULL, NULL),
    ('2', 'b', 'sql', 'a41109d24069b4822ddc5f367b25d484dc7e839bff338ce7a3e5da641caacda0', 'failed', 0, 1, NULL,
     '2026-11-30 07:07:55.423716+00', '2026-11-30 07:07:55.423976+00', 'postgres@vm pgratchet', 2342,
     '2026-11-30 07:07:55.38621+00', '24a3e48cd0474e428720bdf10696cdcf', '0.1.0', NULL, NULL,
     'division by zero (22012), line 1'),
    ('3', 'c', 'sql', 'fa4a71571fc2071c8ba7b9fa042ad3267b4f134515497aecc339df06ffd3725d', 'pending', 0, 0, NULL,
     NULL, '2026-11-30 07:07:55.424332+00', 'postgres@vm pgratchet', NULL, NULL, NULL, '0.1.0', NULL,
     'nothing of it is there', NULL),
    ('4', 'd', 'sql', '6e9ae82715d97d7d16e48649b8f0035a36b8b8868e36008175e3537e5d4113d1', 'running', 1, 2,
     'a301ee771f124bb5257b610e0f924eb95738afa54e14536f441a3d344ae99a64 ', '2026-11-30 07:07:55.428265+00', NULL,
     'postgres@vm pgratchet', 2342, '2026-11-30 07:07:55.38621+00', '0deec411e0fb45fb8cfa6065079cfce6', '0.1.0',
     NULL, NULL, NULL),
    ('5', 'e', 'sql', 'x', 'reverting', 0, 1, '', '2026-11-30 07:07:55.428265+00', NULL, 'postgres@vm pgratchet', 2342,
     '2026-11-30 07:07:55.38621+00', '0deec411e0fb45fb8cfa6065079cfce7', '0.1.0', NULL, NULL, NULL);
"""
"""What release 0.1.0 has made and written: frozen, as such a table may be met for ever."""

FILES = {
    "001_a.sql": "SELECT 1;\n",
    "002_b.sql": "SELECT 2;\n",
    "003_c.sql": "SELECT 3;\n",
    "004_d.sql": "-- pgratchet: no-transaction\nCREATE TABLE public.d ();\nCREATE TABLE public.dd ();\n",
}


def at(clock: str) -> datetime:
    return datetime.fromisoformat(f"2026-11-30 07:07:{clock}").replace(tzinfo=UTC)


async def read(dsn: str) -> dict[str, HistoryRow]:
    async with connected(dsn) as connection:
        return {row.version: row for row in await History(TABLE).read(connection)}


async def names(dsn: str) -> list[str]:
    return await column(
        dsn,
        "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped",
        HISTORY,
    )


async def type_of(dsn: str, name: str) -> str:
    query = "SELECT atttypid::regtype::text FROM pg_attribute WHERE attrelid = $1::regclass AND attname = $2"
    return str(await ask(dsn, query, HISTORY, name))


@asynccontextmanager
async def a_writer(dsn: str) -> AsyncIterator[str]:
    """Yield the DSN of a role that may migrate and write the history, and does not own it."""
    async with a_role(dsn) as role:
        await tell(dsn, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {HISTORY} TO {role}")
        await tell(dsn, f"GRANT CREATE ON SCHEMA public TO {role}")
        yield as_role(dsn, role)


class TestAHistoryOfRelease010:
    def test_the_fields_of_a_row_are_the_columns_of_the_history(self) -> None:
        assert HistoryRow._fields == tuple(COLUMNS)

    async def test_a_history_of_release_010_reads_as_it_was_written(self, dsn: str) -> None:
        await tell(dsn, RELEASE_0_1_0)
        rows = await read(dsn)
        assert {version: row.state for version, row in rows.items()} == {
            "1": RecordState.APPLIED,
            "2": RecordState.FAILED,
            "3": RecordState.PENDING,
            "4": RecordState.RUNNING,
            "5": RecordState.REVERTING,
        }
        assert rows["1"] == HistoryRow(
            version="1",
            name="a",
            kind="sql",
            checksum="b4e0497804e46e0a0b0b8c31975b062152d551bac49c3c2e80932567b4085dcd",
            state=RecordState.APPLIED,
            statements_done=1,
            statements_total=1,
            cursor=None,
            started_at=at("55.369916"),
            finished_at=at("55.370397"),
            applied_by="postgres@vm pgratchet",
            backend_pid=2331,
            backend_start=at("55.255434"),
            token="63cc0e11028c4f34b23f3d5e56d41110",  # noqa: S106 - of a run that is over
            tool_version="0.1.0",
            compatible_with="1",
            reason=None,
            error=None,
        )
        assert (rows["2"].error, rows["3"].reason) == ("division by zero (22012), line 1", "nothing of it is there")
        assert (rows["5"].cursor, rows["5"].finished_at) == ("", None)
        async with connected(dsn) as connection:
            assert set(await History(TABLE).read_some(connection, list("12345"))) == set(rows.values())

    async def test_a_run_goes_on_with_a_history_of_release_010(self, dsn: str, write: Write) -> None:
        await tell(
            dsn, RELEASE_0_1_0 + "CREATE TABLE public.d (); DELETE FROM public.schema_migrations WHERE version = '5'"
        )
        migrator = Migrator(dsn, write(FILES))

        assert [step.version for step in await migrator.up()] == ["2", "3", "4"]

        assert set((await states(dsn)).values()) == {"applied"}
        assert await ask(dsn, "SELECT to_regclass('public.dd') IS NOT NULL")

    async def test_a_history_of_release_010_says_how_each_version_stands(self, dsn: str, write: Write) -> None:
        await tell(dsn, RELEASE_0_1_0)
        entries = await Migrator(dsn, write(FILES)).status()
        assert [entry.state for entry in entries] == [
            *(State.APPLIED, State.FAILED, State.PENDING, State.INTERRUPTED),
            State.INTERRUPTED,
        ]


class TestAHistoryWithoutAColumn:
    @pytest.mark.parametrize("name", NULLABLE)
    async def test_a_history_without_a_column_is_read_by_an_ordinary_reader(
        self, dsn: str, write: Write, name: str
    ) -> None:
        folder = write(dict(list(FILES.items())[:3]))
        await Migrator(dsn, folder).up()
        await tell(dsn, f"ALTER TABLE {HISTORY} DROP COLUMN {name}")
        async with a_role(dsn) as role:
            await tell(dsn, f"GRANT SELECT ON {HISTORY} TO {role}")
            reader = Migrator(as_role(dsn, role), folder)
            await reader.check()
            await reader.wait()
            entries = await reader.status()
        assert [entry.state for entry in entries] == [State.APPLIED] * 3
        assert {getattr(entry.row, name) for entry in entries} == {None}
        async with connected(dsn) as connection:
            rows = await History(TABLE).read_some(connection, ["1", "2", "3"])
        assert set(rows) == {entry.row for entry in entries}

    @pytest.mark.parametrize("name", NULLABLE)
    async def test_a_history_without_a_column_gets_it_from_a_runner_that_owns_the_table(
        self, dsn: str, write: Write, name: str
    ) -> None:
        folder = write({"001_a.sql": "SELECT 1;"})
        await Migrator(dsn, folder).up()
        before = await type_of(dsn, name)
        await tell(dsn, f"ALTER TABLE {HISTORY} DROP COLUMN {name}")
        write({"002_b.sql": "-- pgratchet: compatible-with=1\nSELECT 2;"})

        assert [step.version for step in await Migrator(dsn, folder).up()] == ["2"]

        assert await type_of(dsn, name) == before
        rows = await history(dsn)
        assert rows["1"][name] is None
        assert (rows["2"][name] is None) is (name in {"cursor", "reason", "error"})

    async def test_a_history_without_a_column_gets_it_from_a_migrator_that_acts_as_the_owner(
        self, dsn: str, write: Write
    ) -> None:
        async with a_role(dsn) as role:
            await tell(dsn, f"GRANT CREATE ON SCHEMA public TO {role}")
            folder = write({"001_a.sql": "SELECT 1;"})
            await Migrator(dsn, folder, owner=role).up()
            await tell(dsn, f"ALTER TABLE {HISTORY} DROP COLUMN reason")
            write({"002_b.sql": "SELECT 2;"})
            await Migrator(dsn, folder, owner=role).up()
            assert "reason" in await names(dsn)

    @pytest.mark.parametrize("name", OPTIONAL)
    async def test_a_role_that_may_not_add_a_missing_column_writes_the_history_without_it(
        self, dsn: str, write: Write, caplog: pytest.LogCaptureFixture, name: str
    ) -> None:
        folder = write({"001_a.sql": "SELECT 1;", "001_a.down.sql": "SELECT 1;"})
        await Migrator(dsn, folder).up()
        await tell(dsn, f"ALTER TABLE {HISTORY} DROP COLUMN {name}")
        async with a_writer(dsn) as hers:
            migrator = Migrator(hers, folder)
            assert [step.version for step in await migrator.redo()] == ["1", "1"]
            alter = f'ALTER TABLE "public"."schema_migrations" ADD COLUMN IF NOT EXISTS {name} {COLUMNS[name].type}'
            warnings = [record.getMessage() for record in caplog.records if f"lacks {name}" in record.getMessage()]
            assert len(warnings) == 1
            assert warnings[0].endswith(alter)

            write({"002_b.sql": "-- pgratchet: no-transaction\nCREATE TABLE public.b ();\nSELECT 1/0;"})
            with pytest.raises(MigrationFailedError, match="division by zero"):
                await migrator.up()
            write({"002_b.sql": "-- pgratchet: no-transaction\nCREATE TABLE public.b ();\nSELECT 1;"})
            write({"003_c.sql": "SELECT 1/0;"})
            with pytest.raises(MigrationFailedError, match="division by zero"):
                await migrator.up()
            assert await states(dsn) == {"1": "applied", "2": "applied", "3": "failed"}
            row = (await migrator.repair("3", Verdict.APPLIED, "by hand")).row
            assert row is not None
            assert row.state is RecordState.APPLIED
            write({"004_d.sql": "SELECT 4;"})
            assert [step.version for step in await migrator.rehearse()] == ["4"]
        assert await states(dsn) == {"1": "applied", "2": "applied", "3": "applied"}
        assert name not in await names(dsn)
        await tell(dsn, alter)
        assert name in await names(dsn)

    @pytest.mark.parametrize("name", OPTIONAL)
    async def test_a_history_without_a_column_takes_adopted_rows(self, dsn: str, write: Write, name: str) -> None:
        folder = write({"001_a.sql": "SELECT 1;"})
        await Migrator(dsn, folder, table="public.ours").up()
        await tell(
            dsn,
            f"ALTER TABLE public.ours RENAME TO schema_migrations; DELETE FROM {HISTORY};"
            f"ALTER TABLE {HISTORY} DROP COLUMN {name};"
            "CREATE TABLE public.old (version int, description text, filename text, executed_at timestamptz, "
            "success bool, error_message text);"
            "INSERT INTO public.old VALUES (1, 'a', '001_a.sql', now(), true)",
        )
        async with a_writer(dsn) as hers:
            role = await ask(hers, "SELECT current_user")
            await tell(dsn, f"ALTER TABLE public.old OWNER TO {role}")
            adoption = await Migrator(hers, folder).adopt("public.old", dry_run=False)
        assert adoption.adopted == ("1",)
        assert await states(dsn) == {"1": "applied"}

    @pytest.mark.parametrize("name", ESSENTIAL)
    async def test_a_history_without_a_column_that_a_guarantee_rests_on_is_not_written(
        self, dsn: str, write: Write, name: str
    ) -> None:
        folder = write({"001_a.sql": "SELECT 1;"})
        await Migrator(dsn, folder).up()
        await tell(dsn, f"ALTER TABLE {HISTORY} DROP COLUMN {name}")
        write({"002_b.sql": "CREATE TABLE public.b ();"})
        async with a_writer(dsn) as hers:
            migrator = Migrator(hers, folder)
            with pytest.raises(ServerError, match=rf"lacks {name}.*ADD COLUMN IF NOT EXISTS {name}"):
                await migrator.up()
        assert await states(dsn) == {"1": "applied"}
        assert [step.version for step in await Migrator(dsn, folder).up()] == ["2"]

    @pytest.mark.parametrize("name", [name for name in COLUMNS if name not in NULLABLE])
    async def test_a_table_without_a_column_that_every_release_has_is_no_history(
        self, dsn: str, write: Write, name: str
    ) -> None:
        folder = write({"001_a.sql": "SELECT 1;"})
        await tell(dsn, RELEASE_0_1_0 + f"ALTER TABLE {HISTORY} DROP COLUMN {name}")
        migrator = Migrator(dsn, folder)
        for work in (migrator.status, migrator.check, migrator.up, migrator.rehearse):
            with pytest.raises(ForeignTableError, match="was made by something else, not by pgratchet"):
                await work()
        with pytest.raises(ForeignTableError, match="was made by something else, not by pgratchet"):
            await migrator.repair("1", Verdict.APPLIED, "by hand")
        assert name not in await names(dsn)

    async def test_a_run_that_adds_a_column_waits_for_the_session_that_has_locked_the_history(
        self, dsn: str, write: Write
    ) -> None:
        folder = write({"001_a.sql": "SELECT 1;"})
        await Migrator(dsn, folder).up()
        await tell(dsn, f"ALTER TABLE {HISTORY} DROP COLUMN reason")
        write({"002_b.sql": "SELECT 2;"})

        async def adding() -> bool:
            return any("ADD COLUMN" in row["query"] and row["wait_event_type"] == "Lock" for row in await sessions(dsn))

        with anyio.fail_after(PATIENCE):
            async with connected(dsn) as somebody, anyio.create_task_group() as tasks:
                await somebody.execute(f"BEGIN; SELECT FROM {HISTORY}")
                tasks.start_soon(Migrator(dsn, folder, lock_timeout=0.1).up)
                await until(adding)
                await somebody.execute("COMMIT")
        assert await states(dsn) == {"1": "applied", "2": "applied"}

    async def test_a_run_with_nothing_pending_adds_no_column(self, dsn: str, write: Write) -> None:
        folder = write({"001_a.sql": "SELECT 1;"})
        await Migrator(dsn, folder).up()
        await tell(dsn, f"ALTER TABLE {HISTORY} DROP COLUMN reason")
        assert await Migrator(dsn, folder).up() == ()
        assert "reason" not in await names(dsn)


LATER = {
    "nullable": "later text",
    "a default": "later int DEFAULT 7",
    "NOT NULL with a default": "later int NOT NULL DEFAULT 7",
    "generated": "later text GENERATED ALWAYS AS (name || version) STORED",
    "of a type of its own": "later public.mood DEFAULT 'glad'",
    "of a composite type": "later public.pair DEFAULT ROW(E'a\"\\n\\x1f,', 1)",
    "with a strange name": '"a ""strange""\n,\x1f\x01name" text DEFAULT \'x\'',
    "called as the alias is": "history text DEFAULT 'x'",
    "large": f"later text; UPDATE {HISTORY} SET later = repeat(E'\"\\n\\x1f\\x01\\\\', 200000)",
    "large number": f"later numeric; UPDATE {HISTORY} SET later = repeat('9', 6000)::numeric",
}


class TestAHistoryWithAColumnMore:
    @pytest.mark.parametrize("later", LATER.values(), ids=LATER)
    async def test_a_history_with_a_column_of_a_later_release_is_read_and_written(
        self, dsn: str, write: Write, later: str
    ) -> None:
        await tell(dsn, "CREATE TYPE public.mood AS ENUM ('glad'); CREATE TYPE public.pair AS (a text, b int)")
        folder = write({"001_a.sql": "SELECT 1;"})
        await Migrator(dsn, folder).up()
        before = await read(dsn)
        await tell(dsn, f"ALTER TABLE {HISTORY} ADD COLUMN {later}")
        assert await read(dsn) == before
        async with connected(dsn) as connection:
            assert await History(TABLE).read_some(connection, ["1"]) == (before["1"],)

        write({"002_b.sql": "SELECT 2;", "002_b.down.sql": "SELECT 2;"})
        migrator = Migrator(dsn, folder)
        assert [step.version for step in await migrator.up()] == ["2"]
        assert [step.version for step in await migrator.redo()] == ["2", "2"]
        await migrator.check()
        assert len(await names(dsn)) == len(COLUMNS) + 1

    async def test_a_history_may_have_a_column_of_a_later_release_in_front(self, dsn: str, write: Write) -> None:
        folder = write({"001_a.sql": "SELECT 1;"})
        await Migrator(dsn, folder).up()
        before = await read(dsn)
        await tell(
            dsn,
            f"CREATE TABLE public.other AS SELECT 1 AS first, * FROM {HISTORY}; DROP TABLE {HISTORY};"
            "ALTER TABLE public.other RENAME TO schema_migrations;"
            f"ALTER TABLE {HISTORY} ALTER first SET DEFAULT 0, ADD PRIMARY KEY (version),"
            "ALTER statements_done SET DEFAULT 0, ALTER statements_total SET DEFAULT 0",
        )
        assert await read(dsn) == before
        write({"002_b.sql": "SELECT 2;"})
        assert [step.version for step in await Migrator(dsn, folder).up()] == ["2"]


VALUES = [
    "",
    " ",
    "\n",
    "\r\n",
    "\t",
    '"',
    '""',
    "\\",
    "\\.",
    "\\N",
    "NULL",
    ",",
    "\x01",
    "\x01\x01",
    "\x1f",
    "\x1f\n\x01",
]


class TestAValue:
    @pytest.mark.parametrize("value", [*VALUES, "a\x01b\x1fc\nd", "x" * 300_000, "\x01\n" * 100_000, "é\U0001f600"])
    async def test_a_value_of_any_characters_and_any_length_is_read_as_it_is(self, dsn: str, value: str) -> None:
        await tell(dsn, RELEASE_0_1_0)
        async with connected(dsn) as connection:
            await connection.execute(f"UPDATE {HISTORY} SET name = $1, error = $1 WHERE version = '1'", value)
            await connection.execute(f"UPDATE {HISTORY} SET reason = $1, name = '' WHERE version > '3'", value)
            rows = {row.version: row for row in await History(TABLE).read(connection)}
            some = {row.version: row for row in await History(TABLE).read_some(connection, list("12345"))}
        assert some == rows
        assert (rows["1"].name, rows["1"].error, rows["1"].reason) == (value, value, None)
        assert [(rows[each].name, rows[each].reason) for each in "45"] == [("", value)] * 2

    async def test_values_in_a_history_that_comes_in_many_parts_are_read_as_they_are(self, dsn: str) -> None:
        values = {str(number): VALUES[number % len(VALUES)] for number in range(100, 20_000)}
        async with connected(dsn) as connection:
            await History(TABLE).ensure(connection, (), Budget(None))
            await connection.execute(
                f"INSERT INTO {HISTORY} (version, name, kind, checksum, state, error) "
                "SELECT n, value, 'sql', '', 'applied', value FROM unnest($1::text[], $2::text[]) AS v (n, value)",
                list(values),
                list(values.values()),
            )
            rows = await History(TABLE).read(connection)
        assert {row.version: row.name for row in rows} == {row.version: row.error for row in rows} == values


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process be of a release with one column more."""
    monkeypatch.setitem(COLUMNS, "later", COLUMNS["reason"]._replace(since="0.2.0"))


class TestTwoReleases:
    @pytest.mark.usefixtures("newer")
    async def test_two_releases_write_the_same_history_at_the_same_time(self, dsn: str, write: Write) -> None:
        # The process is of today's release, and between two of its migrations the newer one adds its column.
        folder = write({"001_a.sql": PASS_GATE, "002_b.sql": PASS_GATE, "003_c.sql": "SELECT 3;"})
        async with gate(dsn) as closed, replicas(1, dsn, folder, lock="none") as (old,):
            await old.go()
            await closed.reached()
            async with connected(dsn) as ours, anyio.create_task_group() as tasks:
                tasks.start_soon(History(TABLE).ensure, ours, (), Budget(None))

                async def adding() -> bool:
                    return "ADD COLUMN" in (await ask(dsn, "SELECT query FROM pg_stat_activity WHERE pid = $1 "
                        "AND wait_event_type = 'Lock'", ours.get_server_pid()) or "")  # fmt: skip

                await until(adding)
                await closed.open()
            assert (await old.result())[0] == 0

        assert "later" in await names(dsn)
        write({"004_d.sql": "SELECT 4;"})
        assert [step.version for step in await Migrator(dsn, folder).up()] == ["4"]
        async with replicas(1, dsn, write({"005_e.sql": "SELECT 5;"})) as (old,):
            await old.go()
            assert (await old.result())[0] == 0
        assert await states(dsn) == dict.fromkeys("12345", "applied")
        assert {row["later"] for row in (await history(dsn)).values()} == {None}

    @pytest.mark.usefixtures("newer")
    async def test_two_releases_make_one_history(self, dsn: str, write: Write) -> None:
        folder = write({f"{number:03}_m.sql": "SELECT 1;" for number in range(1, 6)})
        async with replicas(2, dsn, folder) as old:
            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as tasks:
                    for replica in old:
                        await replica.go()
                    tasks.start_soon(Migrator(dsn, folder).up)
                assert {(await replica.result())[0] for replica in old} == {0}
        assert await states(dsn) == dict.fromkeys("12345", "applied")


PARTITIONED = (
    RELEASE_0_1_0.replace("error text\n);", "error text\n) PARTITION BY LIST (version);")
    .replace("COMMENT", "CREATE TABLE public.part PARTITION OF public.schema_migrations DEFAULT; COMMENT", 1)
)  # fmt: skip


class TestAPartitionedHistory:
    async def test_a_partitioned_history_is_read_whatever_the_order_of_columns_in_its_partitions(
        self, dsn: str
    ) -> None:
        await tell(dsn, RELEASE_0_1_0)
        before = await read(dsn)
        await tell(dsn, f"DROP TABLE {HISTORY}")
        await tell(
            dsn,
            PARTITIONED + f"CREATE TABLE public.moved AS SELECT error AS gone, * FROM {HISTORY} WHERE version = '1';"
            "ALTER TABLE public.moved DROP COLUMN gone, DROP COLUMN name; ALTER TABLE public.moved ADD name text;"
            "UPDATE public.moved SET name = 'a';"
            "ALTER TABLE public.moved ALTER name SET NOT NULL, ALTER version SET NOT NULL, ALTER kind SET NOT NULL, "
            "ALTER checksum SET NOT NULL, ALTER state SET NOT NULL, ALTER statements_done SET NOT NULL, "
            "ALTER statements_total SET NOT NULL;" + f"DELETE FROM {HISTORY} WHERE version = '1';"
            f"ALTER TABLE {HISTORY} ATTACH PARTITION public.moved FOR VALUES IN ('1')",
        )
        assert await read(dsn) == before

    async def test_a_partitioned_history_gets_a_missing_column_in_all_its_partitions(
        self, dsn: str, write: Write
    ) -> None:
        await tell(dsn, PARTITIONED + f"DELETE FROM {HISTORY}; ALTER TABLE {HISTORY} DROP COLUMN reason")
        folder = write({"001_a.sql": "SELECT 1;"})
        assert [step.version for step in await Migrator(dsn, folder).up()] == ["1"]
        assert "reason" in await names(dsn)
        assert (await read(dsn))["1"].state is RecordState.APPLIED


async def test_a_large_table_of_somebody_else_is_refused_before_it_is_read(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tell(dsn, f"CREATE TABLE {HISTORY} AS SELECT generate_series(1, 1000) AS version")
    chunks: list[bytes] = []
    copy_out = asyncpg.Connection._copy_out  # type: ignore[attr-defined]  # a read goes through this

    async def noted(connection: Connection, statements: str, output: Output, patience: float | None) -> object:
        async def take(chunk: bytes) -> None:
            chunks.append(chunk)
            await output(chunk)

        return await copy_out(connection, statements, take, patience)

    monkeypatch.setattr(asyncpg.Connection, "_copy_out", noted)
    async with connected(dsn) as connection:
        with pytest.raises(ForeignTableError, match="not by pgratchet"):
            await History(TABLE).read(connection)
        assert chunks == []

        await tell(dsn, f"DROP TABLE {HISTORY}; {RELEASE_0_1_0}")
        assert len(await History(TABLE).read(connection)) == 5
        assert chunks != []
