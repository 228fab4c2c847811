from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pgratchet.postgres.link.sql import Table
from pgratchet.testing import dumps
from pgratchet.testing.databases import Databases
from tests.support import HISTORY, a_role, tell

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

COLUMN_AGAIN = "ALTER TABLE p DROP COLUMN a", "ALTER TABLE p ADD COLUMN a text"
"""There and back, but to the end of the table."""

ONE, OTHER = "pg_read_all_data", "pg_write_all_data"


def dumped(dsn: str) -> dumps.Dump:
    return dumps.dump(dumps.find_pg_dump(Databases(dsn).server_major()), dsn, Table.parse(HISTORY))


async def changed(dsn: str, setup: str, *changes: str) -> list[str]:
    """Return how the schema differs after the changes from what the set-up made."""
    await tell(dsn, setup)
    before = dumped(dsn)
    for change in changes:
        await tell(dsn, change)
    return list(dumps.differences(before, dumped(dsn)))


def named(differences: list[str]) -> list[str]:
    return [line[2:].partition(";")[0] for line in differences if line[2] != " "]


@pytest.mark.parametrize(
    "table",
    [
        "CREATE TABLE p (id int, a text, b text)",
        "CREATE TABLE p (id int, a text, b text) PARTITION BY RANGE (id, b)",
        "CREATE TABLE p (id int, a text, b text) WITH (fillfactor = 70)",
        "CREATE UNLOGGED TABLE p (id int, a text, b text)",
        "CREATE TABLE q (z int); CREATE TABLE p (id int, a text, b text) INHERITS (q)",
        """CREATE TABLE p (id int, a text, ", ""(" text DEFAULT '(, ''x', n numeric(9, 2))""",
    ],
)
async def test_the_order_of_columns_does_not_count(dsn: str, table: str) -> None:
    assert await changed(dsn, table, *COLUMN_AGAIN) == []


async def test_the_order_of_settings_of_columns_does_not_count(dsn: str) -> None:
    setup = (
        "CREATE TABLE p (a text, b text);"
        "ALTER TABLE p ALTER a SET STORAGE external; ALTER TABLE p ALTER b SET STORAGE external"
    )
    again = "ALTER TABLE p DROP COLUMN a; ALTER TABLE p ADD COLUMN a text; ALTER TABLE p ALTER a SET STORAGE external"

    assert await changed(dsn, setup, again) == []


@pytest.mark.parametrize(
    ("setup", "on"),
    [("CREATE TABLE p (id int)", "GRANT SELECT ON p"), ("", "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES")],
)
async def test_the_order_of_grants_does_not_count(dsn: str, setup: str, on: str) -> None:
    grants = [f"{on} TO {role}" for role in (ONE, OTHER)]
    revoked = grants[0].replace("GRANT", "REVOKE").replace(" TO ", " FROM ")

    assert await changed(dsn, f"{setup};{';'.join(grants)}", revoked, grants[0]) == []


async def test_the_grantor_of_a_right_counts(dsn: str) -> None:
    def grants(first: str, second: str) -> str:
        return (
            f"GRANT SELECT, INSERT ON p TO {ONE}, {OTHER} WITH GRANT OPTION;"
            f"SET ROLE {ONE}; GRANT {first} ON p TO PUBLIC;"
            f"SET ROLE {OTHER}; GRANT {second} ON p TO PUBLIC; RESET ROLE;"
        )

    undone = f"REVOKE ALL ON p FROM {ONE}, {OTHER} CASCADE;"

    found = await changed(
        dsn, f"CREATE TABLE p (id int); {grants('SELECT', 'INSERT')}", undone + grants("INSERT", "SELECT")
    )

    assert named(found) == ["TABLE p"]


@pytest.mark.parametrize(
    ("setup", "change", "line"),
    [
        pytest.param(
            "CREATE TABLE p (id int, CONSTRAINT c CHECK (CASE WHEN id > 1 THEN id < 5 WHEN id > 0 THEN id < 9 END))",
            "ALTER TABLE p DROP CONSTRAINT c;"
            "ALTER TABLE p ADD CONSTRAINT c CHECK (CASE WHEN id > 0 THEN id < 9 WHEN id > 1 THEN id < 5 END)",
            "-    WHEN (id > 0) THEN (id < 9)",
            id="branches",
        ),
        pytest.param(
            "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$SELECT 'a\n--\nb'$$",
            "CREATE OR REPLACE FUNCTION f() RETURNS text LANGUAGE sql AS $$SELECT 'a\nb'$$",
            "---",
            id="dashes",
        ),
        pytest.param(
            "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$SELECT 'a\n\nb'$$",
            "CREATE OR REPLACE FUNCTION f() RETURNS text LANGUAGE sql AS $$SELECT 'a\nb'$$",
            "-",
            id="blank line",
        ),
        pytest.param(
            "CREATE TYPE t AS (a int, b int); CREATE TABLE p OF t PARTITION BY RANGE (a, b)",
            "DROP TABLE p; CREATE TABLE p OF t PARTITION BY RANGE (b, a)",
            "-PARTITION BY RANGE (a, b);",
            id="partitioning",
        ),
        pytest.param(
            "CREATE TABLE p (id int); CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler",
            "DROP TABLE p; CREATE TABLE p (id int) USING other",
            "+SET default_table_access_method = other;",
            id="access method",
        ),
    ],
)
async def test_every_other_leftover_is_found(dsn: str, setup: str, change: str, line: str) -> None:
    assert f"    {line}" in await changed(dsn, setup, change)


async def test_a_comparison_names_only_the_differences(dsn: str) -> None:
    setup = "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE VIEW v AS SELECT 1 AS a"

    found = await changed(dsn, setup, "CREATE TABLE p (id int); CREATE TABLE q (id int); GRANT SELECT ON v TO PUBLIC")

    assert named(found) == ["p", "q", "TABLE v"]


@pytest.mark.parametrize("written", ["{user}:{secret}@{host}{path}?", "{host}{path}?user={user}&password={secret}&"])
async def test_a_password_is_no_part_of_the_command_and_settings_of_the_server_are_passed_over(
    dsn: str, tmp_path: Path, written: str
) -> None:
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    program = tmp_path / "pg_dump"
    real = dumps.find_pg_dump(Databases(dsn).server_major())
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$PGPASSWORD" "$@" >"$0.seen"\nexec {real} "$@"\n')
    program.chmod(0o755)
    async with a_role(dsn, "SUPERUSER") as role:
        await tell(dsn, f"ALTER ROLE {role} PASSWORD 's%e/cret'")
        values = {"user": role, "secret": "s%25e%2Fcret", "host": host, "path": parts.path}
        address = f"postgresql://{written.format(**values)}timezone=UTC&sslmode=prefer"
        await tell(address, "CREATE TABLE p ()")

        objects = dumps.dump(program, address, Table.parse(HISTORY))

    assert "p; Type: TABLE" in " ".join(objects)
    password, *command = (tmp_path / "pg_dump.seen").read_text().splitlines()
    assert password == "s%e/cret"  # noqa: S105 - of this test alone
    assert "cret" not in " ".join(command)
    assert command[-1].endswith("sslmode=prefer")
