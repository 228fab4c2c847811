"""Defaults of databases, roles and DSNs that change how strings are read: files have the effect that psql gives."""

from collections.abc import AsyncIterator
from urllib.parse import quote, urlsplit

import pytest

from pgratchet import FilesError, Migrator
from pgratchet.core.sql import scripts
from tests.support import (
    HEAD,
    Write,
    a_role,
    as_role,
    column,
    connected,
    exists,
    failure_of,
    needs_plain_escapes,
    states,
    tell,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

PADDING = f"SELECT '{'x' * scripts.CHUNK}';\n" * 5
HEADS = {"one message": "", "statement by statement": HEAD, "several messages": PADDING}
KEPT = ["C:\\dir\n", "ends with \\", "it's"]


@pytest.fixture(params=["the database", "the role", "the DSN"])
async def off(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[str]:
    """The DSN of sessions in which standard_conforming_strings is off by default, set in that way."""
    await needs_plain_escapes(dsn)
    match request.param:
        case "the database":
            await tell(dsn, f"ALTER DATABASE {urlsplit(dsn).path[1:]} SET standard_conforming_strings = off")
            yield dsn
        case "the role":
            async with a_role(dsn, "SUPERUSER") as role:
                await tell(dsn, f"ALTER ROLE {role} SET standard_conforming_strings = off")
                yield as_role(dsn, role)
        case _:
            yield f"{dsn}{'&' if '?' in dsn else '?'}options={quote('-c standard_conforming_strings=off')}"


@pytest.mark.parametrize("mode", HEADS)
async def test_a_file_has_the_effect_that_its_statements_have_alone(off: str, write: Write, mode: str) -> None:
    statements = [
        "CREATE TABLE {} (t text);",
        r"INSERT INTO {} VALUES ('C:\\dir\n'), ('ends with \\'), ('it''s');",
        r"DO $$BEGIN INSERT INTO {} VALUES ('in a body: \\'); END$$;",
    ]
    async with connected(off) as alone:
        for statement in statements:
            await alone.execute(statement.format("psql"))

    await Migrator(off, write({"001_t.sql": HEADS[mode] + "\n".join(statements).replace("{}", "ours")})).up()

    assert await column(off, "TABLE ours") == await column(off, "TABLE psql") == [*KEPT, "in a body: \\"]


@pytest.mark.parametrize("mode", HEADS)
@pytest.mark.parametrize("string", [r"'it\'s'", r"'one \'"])
async def test_a_string_whose_end_a_default_moves_is_refused_with_its_line(
    off: str, write: Write, mode: str, string: str
) -> None:
    text = f"{HEADS[mode]}CREATE TABLE t (t text);\nINSERT INTO t VALUES ({string});"
    migrator = Migrator(off, write({"001_t.sql": text}))
    line = text[: text.index(string)].count("\n") + 1

    for work in (migrator.up, migrator.rehearse) if mode == "one message" else (migrator.up,):
        with pytest.raises(FilesError) as caught:
            await work()
        assert [problem.line for problem in caught.value.problems] == [line]

    assert not await exists(off, "t")
    write({"001_t.sql": text.replace(string, "E" + string.replace(r"one \'", r"one \\'"))})
    await migrator.up()
    assert await states(off) == {"1": "applied"}


async def test_a_file_that_switches_the_default_on_is_refused_or_runs_statement_by_statement(
    off: str, write: Write
) -> None:
    text = "SET standard_conforming_strings = on;\nCREATE TABLE t (t text);\nINSERT INTO t VALUES ('C:\\dir');"
    migrator = Migrator(off, write({"001_t.sql": text}))

    with pytest.raises(FilesError) as caught:
        await migrator.up()

    assert [problem.line for problem in caught.value.problems] == [3]
    write({"001_t.sql": HEAD + text})
    await migrator.up()
    assert await column(off, "TABLE t") == ["C:\\dir"]


@pytest.mark.parametrize("mode", ["one message", "statement by statement"])
async def test_an_escaped_quote_that_a_default_forbids_fails_with_its_line(dsn: str, write: Write, mode: str) -> None:
    name = urlsplit(dsn).path[1:]
    await tell(dsn, f"ALTER DATABASE {name} SET backslash_quote = off")
    text = f"{HEADS[mode]}CREATE TABLE t (t text);\nINSERT INTO t VALUES (E'it\\'s');"
    migrator = Migrator(dsn, write({"001_t.sql": text}))

    error = await failure_of(migrator)

    assert (error.failure.sqlstate, error.failure.line) == ("22P06", text.count("\n") + 1)
    await tell(dsn, f"ALTER DATABASE {name} RESET backslash_quote")
    await migrator.up()
    assert await column(dsn, "TABLE t") == ["it's"]
