from collections.abc import Callable, Mapping
from pathlib import Path

import asyncpg
import pytest

from pgratchet import ForeignTableError, HistoryError, Migrator, State, UsageError, Verdict
from pgratchet.postgres.link.sql import literal

pytestmark = pytest.mark.anyio

Write = Callable[[Mapping[str, str]], Path]

HOME_MADE = """
CREATE TABLE schema_migrations (
    version integer PRIMARY KEY,
    description text,
    filename text,
    executed_at timestamp DEFAULT now(),
    success boolean,
    error_message text
);
CREATE TABLE one (id int);
INSERT INTO schema_migrations VALUES
    (1, 'one', 'migrations/versions/001_one.sql', '2024-05-06 07:08:09', true, NULL);
"""
FILES = {"001_one.sql": "CREATE TABLE one (id int)", "002_two.sql": "CREATE TABLE two (id int)"}
OWN = "public.pgratchet_migrations"


@pytest.fixture
async def old_history(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    await connection.execute(HOME_MADE)
    await connection.close()
    return dsn


async def execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(sql)
    await connection.close()


async def states(dsn: str, folder: Path) -> dict[str, State]:
    return {entry.version: entry.state for entry in await Migrator(dsn, folder, table=OWN).status()}


async def test_a_home_made_table_is_refused_with_the_way_out(old_history: str, write: Write) -> None:
    with pytest.raises(ForeignTableError, match="pgratchet adopt"):
        await Migrator(old_history, write(FILES)).up()


async def test_a_dry_run_says_what_would_be_adopted_and_changes_nothing(old_history: str, write: Write) -> None:
    adoption = await Migrator(old_history, write(FILES)).adopt(dry_run=True)

    assert adoption.adopted == ("1",)
    assert adoption.target == OWN
    assert adoption.dry_run
    assert await states(old_history, write(FILES)) == {"1": State.PENDING, "2": State.PENDING}


async def test_adopted_migrations_are_not_applied_again(old_history: str, write: Write) -> None:
    folder = write(FILES)

    adoption = await Migrator(old_history, folder).adopt()
    finished = await Migrator(old_history, folder, table=OWN).up()

    assert adoption.adopted == ("1",)
    assert [step.version for step in finished] == ["2"]
    assert await states(old_history, folder) == {"1": State.APPLIED, "2": State.APPLIED}


async def test_adopting_twice_adds_nothing_and_leaves_the_old_table_alone(old_history: str, write: Write) -> None:
    migrator = Migrator(old_history, write(FILES))
    await migrator.adopt()

    again = await migrator.adopt()

    assert (again.adopted, again.already) == ((), ("1",))
    connection = await asyncpg.connect(old_history)
    assert await connection.fetchval("SELECT count(*) FROM schema_migrations") == 1
    await connection.close()


async def test_the_adopted_rows_keep_their_time_and_say_where_they_come_from(old_history: str, write: Write) -> None:
    await Migrator(old_history, write(FILES)).adopt()

    connection = await asyncpg.connect(old_history)
    row = await connection.fetchrow(f"SELECT * FROM {OWN} WHERE version = '1'")
    await connection.close()
    assert row is not None
    assert (row["state"], row["name"], row["reason"]) == ("applied", "one", "adopted from public.schema_migrations")
    assert row["finished_at"].year == 2024


async def test_a_row_that_only_failed_is_refused_unless_it_is_to_be_skipped(old_history: str, write: Write) -> None:
    await execute(old_history, "INSERT INTO schema_migrations VALUES (2, 'two', '002_two.sql', now(), false, 'boom')")
    folder = write(FILES)

    with pytest.raises(HistoryError, match="boom"):
        await Migrator(old_history, folder).adopt()
    adoption = await Migrator(old_history, folder).adopt(skip_failed=True)

    assert (adoption.adopted, adoption.skipped) == (("1",), ("2",))
    assert await states(old_history, folder) == {"1": State.APPLIED, "2": State.PENDING}


TRACEBACK = """Traceback (most recent call last):
  File "run_migrations.py", line 41, in run
    cursor.execute(sql)
KeyError: 'cause'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "run_migrations.py", line 44, in run
    raise
{}
LINE 1: ALTER TABLE nope
                    ^
"""


@pytest.mark.parametrize(
    ("error", "quoted"),
    [
        (None, ": no reason given;"),
        ("", ": no reason given;"),
        ("boom", ": boom;"),
        ('\n  relation "nope" does not exist\nLINE 1: SELECT\n        ^\n', ': relation "nope" does not exist;'),
        (TRACEBACK.format("psycopg.UndefinedTable: no nope"), ": psycopg.UndefinedTable: no nope;"),
        ("Traceback (most recent call last):\n  File", ": Traceback (most recent call last):"),
        ("x" * 9000, f": {'x' * 200}...;"),
    ],
)
async def test_one_line_of_an_old_error_is_quoted(
    old_history: str, write: Write, error: str | None, quoted: str
) -> None:
    said = "NULL" if error is None else literal(error)
    await execute(old_history, f"INSERT INTO schema_migrations VALUES (2, 'two', '002_two.sql', now(), false, {said})")

    with pytest.raises(HistoryError) as caught:
        await Migrator(old_history, write(FILES)).adopt()
    text = str(caught.value)
    assert quoted in text
    assert text.isprintable()
    assert len(text) < 500
    assert (await Migrator(old_history, write(FILES)).adopt(skip_failed=True)).skipped == ("2",)


FOREIGN = {
    "alembic_version": ("version_num varchar(32) PRIMARY KEY", "Alembic"),
    "django_migrations": ("id bigint, app text, name text, applied timestamptz", "Django"),
    "__diesel_schema_migrations": ("version varchar(50) PRIMARY KEY, run_on timestamp", "Diesel"),
    "things": ("id int, name text, colour text", "something else"),
}


@pytest.mark.parametrize("name", FOREIGN)
async def test_the_way_from_another_tools_table_is_named_and_leads_there(dsn: str, write: Write, name: str) -> None:
    columns, tool = FOREIGN[name]
    await execute(dsn, f"CREATE TABLE {name} ({columns}); CREATE TABLE one (id int)")
    migrator = Migrator(dsn, write(FILES))

    with pytest.raises(ForeignTableError) as caught:
        await migrator.adopt(f"public.{name}")
    assert str(caught.value).startswith(
        f"the table public.{name} was made by {tool}, not by pgratchet; only a home-made"
    )
    assert f"(pg_dump --schema-only --exclude-table=public.{name})" in str(caught.value)
    assert "pgratchet repair VERSION --applied" in str(caught.value)

    await migrator.repair("1", Verdict.APPLIED, f"made by {tool}")
    assert [step.version for step in await migrator.up()] == ["2"]


async def test_our_own_history_is_nothing_to_adopt(dsn: str, write: Write) -> None:
    migrator = Migrator(dsn, write(FILES))
    await migrator.up()

    with pytest.raises(UsageError, match="is a history of pgratchet already"):
        await migrator.adopt()
    with pytest.raises(UsageError, match=r"there is no table public\.nothing to adopt; name the right one: source"):
        await migrator.adopt("public.nothing")
    assert await migrator.up() == ()


async def test_a_row_of_another_file_is_refused(old_history: str, write: Write) -> None:
    await execute(old_history, "UPDATE schema_migrations SET filename = '001_other.sql'")

    with pytest.raises(HistoryError, match=r"001_other\.sql"):
        await Migrator(old_history, write(FILES)).adopt()


@pytest.mark.parametrize("order", ["ASC", "DESC"])
async def test_of_two_files_that_had_one_number_the_one_that_has_kept_it_is_adopted(
    dsn: str, write: Write, order: str
) -> None:
    await execute(dsn, HOME_MADE.replace("version integer PRIMARY KEY", "version integer"))
    names = f"unnest(ARRAY['002_two.sql', '002_too.sql']) name ORDER BY name {order}"
    await execute(dsn, f"INSERT INTO schema_migrations SELECT 2, NULL, name, now(), true, NULL FROM {names}")
    await execute(dsn, "CREATE TABLE two (); CREATE TABLE too ()")
    folder = write({**FILES, "003_too.sql": "CREATE TABLE too ()"})

    assert (await Migrator(dsn, folder).adopt()).adopted == ("1", "2")
    assert await states(dsn, folder) == {"1": State.APPLIED, "2": State.APPLIED, "3": State.PENDING}
    await Migrator(dsn, folder, table=OWN).repair("3", Verdict.APPLIED, "it was a second 002")
    assert await Migrator(dsn, folder, table=OWN).up() == ()


async def test_a_row_without_a_file_is_adopted_and_named(old_history: str, write: Write) -> None:
    await execute(old_history, "INSERT INTO schema_migrations VALUES (9, 'gone', '009_gone.sql', now(), true, NULL)")
    folder = write({"001_one.sql": "CREATE TABLE one (id int)"})

    adoption = await Migrator(old_history, folder).adopt()

    assert adoption.unknown == ("9",)
    assert await states(old_history, folder) == {"1": State.APPLIED, "9": State.UNKNOWN}


async def test_a_table_of_another_form_is_not_adopted(dsn: str, write: Write) -> None:
    await execute(dsn, "CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean)")

    with pytest.raises(ForeignTableError, match="golang-migrate"):
        await Migrator(dsn, write(FILES)).adopt()


async def test_a_missing_table_cannot_be_adopted(dsn: str, write: Write) -> None:
    with pytest.raises(UsageError, match="no table"):
        await Migrator(dsn, write(FILES)).adopt()
