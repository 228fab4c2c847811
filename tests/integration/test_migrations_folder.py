import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import pytest

from pgratchet import Migrator, State
from tests.support import column, connected, exists

pytestmark = pytest.mark.anyio

FOLDER = Path(__file__).resolve().parents[2] / "migrations"
VERSIONS = FOLDER / "versions"
NUMBERS = [str(number) for number in range(1, 9)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of migrations/, so that this checkout gets no journal."""
    copy = tmp_path / "project" / "migrations"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__", ".migration_history"))
    return copy


async def shape(dsn: str) -> set[tuple[object, ...]]:
    """Return what the schema consists of, our own table aside."""
    async with connected(dsn) as connection:
        rows = await connection.fetch(
            "SELECT 'column', attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull::text "
            "FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid WHERE attnum > 0 AND NOT attisdropped "
            "AND relnamespace = 'public'::regnamespace AND relname NOT LIKE 'schema_migrations%' "
            "UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), '' "
            "FROM pg_constraint WHERE connamespace = 'public'::regnamespace "
            "AND conrelid::regclass::text NOT LIKE '%schema_migrations' "
            "UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname, '', '' FROM pg_trigger "
            "WHERE NOT tgisinternal "
            "UNION ALL SELECT 'function', '', proname, prosrc, '' FROM pg_proc "
            "WHERE pronamespace = 'public'::regnamespace"
        )
    return {tuple(row) for row in rows}


async def rows(dsn: str) -> list[tuple[object, ...]]:
    async with connected(dsn) as connection:
        return [
            tuple(row) for row in await connection.fetch("SELECT name, strikes, lasts FROM ban_policies ORDER BY 2")
        ]


def call(arguments: Sequence[str | Path], cwd: Path, dsn: str | None) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DATABASE_URL"))}
    env = kept if dsn is None else kept | {"DATABASE_URL": dsn}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, text=True, capture_output=True, timeout=60, check=False
    )


async def applied(dsn: str) -> list[str]:
    if not await exists(dsn, "public.schema_migrations"):
        return []
    return await column(dsn, "SELECT version FROM schema_migrations WHERE state = 'applied' ORDER BY version::bigint")


async def test_the_whole_folder_applies_on_an_empty_database(dsn: str) -> None:
    done = await Migrator(dsn, VERSIONS, strict=True).up()
    assert [step.version for step in done] == NUMBERS
    assert {entry.state for entry in await Migrator(dsn, VERSIONS).status()} == {State.APPLIED}
    async with connected(dsn) as connection:
        assert await connection.fetchval(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = 'user_bans_user_expires_idx'::regclass"
        )


async def test_every_migration_undoes_exactly_what_it_did(dsn: str) -> None:
    migrator = Migrator(dsn, VERSIONS)
    for number in NUMBERS:
        before = await shape(dsn)
        await migrator.up(to=number)
        after = await shape(dsn)
        await migrator.down()
        assert await shape(dsn) == before
        await migrator.up(to=number)
        assert await shape(dsn) == after


async def test_down_to_nothing_and_up_again_ends_where_it_began(dsn: str) -> None:
    migrator = Migrator(dsn, VERSIONS)
    await migrator.up()
    schema, seeds = await shape(dsn), await rows(dsn)
    reverted = await migrator.down(to=0)
    assert [step.version for step in reverted] == NUMBERS[::-1]
    assert await shape(dsn) == set()
    await migrator.up()
    assert await shape(dsn) == schema
    assert await rows(dsn) == seeds
    assert [name for name, *_ in seeds] == ["warning", "time-out", "for good"]


async def test_an_update_touches_updated_at(dsn: str) -> None:
    await Migrator(dsn, VERSIONS).up()
    async with connected(dsn) as connection:
        await connection.execute("INSERT INTO tenants (name, slug, updated_at) VALUES ('One', 'one', '2000-01-01')")
        await connection.execute("UPDATE tenants SET knowledge_base_enabled = true")
        assert await connection.fetchval("SELECT updated_at > '2000-01-02' FROM tenants")


async def test_preferences_go_with_their_user_and_are_there_once(dsn: str) -> None:
    await Migrator(dsn, VERSIONS).up()
    prefer = "INSERT INTO user_preferences (user_id, name, value) SELECT id, 'language', 'en' FROM users"
    async with connected(dsn) as connection:
        await connection.execute("INSERT INTO tenants (name, slug) VALUES ('One', 'one')")
        await connection.execute("INSERT INTO users (tenant_id, email) SELECT id, 'a@example.org' FROM tenants")
        await connection.execute(prefer)
        with pytest.raises(asyncpg.UniqueViolationError) as caught:
            await connection.execute(prefer)
        assert caught.value.constraint_name == "user_preferences_user_name_key"
        await connection.execute("DELETE FROM users")
        assert await connection.fetchval("SELECT count(*) FROM user_preferences") == 0


async def test_tenants_from_before_the_slugs_get_one_each(dsn: str) -> None:
    migrator = Migrator(dsn, VERSIONS)
    await migrator.up(to=7)
    async with connected(dsn) as connection:
        for name in ("Café Zürich", "Cafe  Zurich!", "東京"):
            await connection.execute("INSERT INTO tenants (name) VALUES ($1)", name)
        await migrator.up()
        slugs = await connection.fetch("SELECT slug FROM tenants ORDER BY created_at")
    assert [row["slug"] for row in slugs] == ["cafe-zurich", "cafe-zurich-2", "tenant"]


async def test_the_runner_applies_everything_from_any_folder(dsn: str, folder: Path, tmp_path: Path) -> None:
    runner = folder / "run_migrations.py"
    first = call([runner], tmp_path, dsn)
    assert (first.returncode, await applied(dsn)) == (0, NUMBERS)
    again = call([Path("project", "migrations", "run_migrations.py")], tmp_path, dsn)
    assert again.returncode == 0
    journal = [json.loads(line) for line in (folder / ".migration_history").read_text().splitlines()]
    assert [(line["version"], line["direction"]) for line in journal] == [(number, "up") for number in NUMBERS]


async def test_a_dry_run_shows_everything_and_applies_nothing(dsn: str, folder: Path, tmp_path: Path) -> None:
    shown = call([folder / "run_migrations.py", "--dry-run"], tmp_path, dsn)
    assert shown.returncode == 0
    assert len(shown.stdout.splitlines()) == 1 + len(NUMBERS)
    assert (await shape(dsn), await applied(dsn)) == (set(), [])
    assert not (folder / ".migration_history").exists()


async def test_the_runner_says_what_is_wrong_and_exits_like_the_command_line(dsn: str, folder: Path) -> None:
    runner, last = folder / "run_migrations.py", folder / "versions" / "009_broken.sql"
    assert call([runner], folder, None).returncode == 2
    assert call([runner, "--bogus"], folder, dsn).returncode == 2
    assert call([runner, "--budget=0.1"], folder, "postgresql://postgres@127.0.0.1:1/nowhere").returncode == 5
    last.write_text("SELECT 1;\nSELECT * FROM nowhere;\n")
    failed = call([runner], folder, dsn)
    assert (failed.returncode, await applied(dsn)) == (1, NUMBERS)
    assert f"{last}:2:15" in failed.stderr
    assert "Traceback" not in failed.stderr
    (folder / "versions" / "001_create_tenants_and_users.sql").write_text("SELECT 1;\n")
    assert call([runner], folder, dsn).returncode == 4


def test_a_python_without_pgratchet_gets_one_sentence_that_says_how_to_install_it(tmp_path: Path) -> None:
    told = call(["-I", "-S", FOLDER / "run_migrations.py"], tmp_path, None)
    assert (told.returncode, told.stdout) == (2, "")
    (line,) = told.stderr.splitlines()
    assert "pgratchet" in line
    assert line.endswith(shlex.join(["-m", "pip", "install", str(FOLDER.parent)]))
