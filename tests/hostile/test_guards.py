"""What a run raises to itself, and hears from its markers, cannot be said by a row's value, a script or a trigger."""

from typing import Any
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest

from pgratchet import HistoryError, Migrator, ServerError
from pgratchet.core.events import Event, Started
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.link.own import Guard, Guards
from tests.support import (
    HEAD,
    HISTORY,
    PATIENCE,
    Write,
    a_role,
    as_role,
    connected,
    exists,
    failure_of,
    history,
    states,
    tell,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

OLD = ("pgratchet: another runner is at work", "pgratchet: another runner has been at work", "pgratchet fence: lost")
"""What an earlier release raised to itself."""

MADE = {"001_people.sql": "CREATE TABLE people (age text);"}
CASTS = {
    "SQL": {"002_cast.sql": "ALTER TABLE people ALTER age TYPE int USING age::int;"},
    "Python": {
        "002_cast.py": "async def up(c):\n    await c.execute('ALTER TABLE people ALTER age TYPE int USING age::int')\n"
    },
    "statement by statement": {
        "002_cast.sql": "-- pgratchet: no-transaction\nSELECT 1;\nALTER TABLE people ALTER age TYPE int USING age::int;"
    },
}


TEXTS = (*OLD, *(f"pgratchet {'0' * 32}: {guard}" for guard in (Guard.BUSY, Guard.ROW)), str(Guard.MOVED))
"""What a value may say to be taken for a guard, as far as anybody knows who has no run's secret."""


@pytest.mark.parametrize(
    ("files", "by"),
    [
        *((files, None) for files in CASTS.values()),
        *((CASTS[kind], by) for kind in ("SQL", "Python") for by in ("transaction", "none")),
    ],
)
async def test_a_value_that_says_what_a_guard_says_fails_the_migration_once(
    dsn: str, write: Write, files: dict[str, str], by: Any
) -> None:
    started: list[Event] = []
    folder = write(MADE)
    migrator = Migrator(dsn, folder, lock=by, listener=started.append)
    await migrator.up()
    write(files)
    for text in TEXTS:
        await tell(dsn, "TRUNCATE people")
        async with connected(dsn) as connection:
            await connection.execute("INSERT INTO people SELECT $1", text)
        started.clear()

        error = await failure_of(migrator)

        assert error.failure.sqlstate == "22P02"
        assert text in error.failure.message
        assert sum(isinstance(event, Started) for event in started) == 1
        assert (await states(dsn))["2"] == "failed"
    await tell(dsn, "UPDATE people SET age = '42'")
    assert [step.version for step in await migrator.up()] == ["2"]


async def test_a_value_that_says_a_rows_own_token_is_no_guard(dsn: str, write: Write) -> None:
    # The token of a row can be read by whoever reads the history, also while its migration runs.
    folder = write(MADE)
    await Migrator(dsn, folder).up()
    write(
        {
            "002_cast.sql": f"""
INSERT INTO people SELECT 'pgratchet ' || token || ': {Guard.BUSY}' FROM {HISTORY} WHERE version = '2';
ALTER TABLE people ALTER age TYPE int USING age::int;
"""
        }
    )
    migrator = Migrator(dsn, folder, lock="transaction", budget=5)
    assert (await failure_of(migrator)).failure.statement == 2
    write({"002_cast.sql": "SELECT 1"})
    assert [step.version for step in await migrator.up()] == ["2"]


async def test_no_secret_of_a_run_is_stored(dsn: str, write: Write) -> None:
    secrets: set[str] = set()
    raised = Guards.raised

    def noting(guards: Guards, error: BaseException) -> Guard | None:
        secrets.add(guards.sign.removeprefix("pgratchet "))
        return raised(guards, error)

    folder = write({"001_a.sql": "SELECT 1;\nSELECT 2;", "002_b.sql": f"{HEAD}SELECT 1;\nSELECT 1/0;"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guards, "raised", noting)
        await failure_of(Migrator(dsn, folder))
    (secret,) = secrets
    rows = await history(dsn)
    assert len(rows) == 2
    assert secret not in str([dict(row) for row in rows.values()])
    write({"002_b.sql": f"{HEAD}SELECT 1;\nSELECT 2;"})
    assert len(await Migrator(dsn, folder).up()) == 1


async def test_a_notice_that_says_marker_does_not_shift_the_statement_that_failed(dsn: str, write: Write) -> None:
    lines = [
        "DO $$BEGIN RAISE INFO 'pgratchet marker'; END$$;",
        f"DO $$BEGIN RAISE INFO 'pgratchet {'0' * 32}'; END$$;",
        "SELECT 1/0;",
        "SELECT 4;",
    ]
    folder = write({"001_a.sql": "\n".join(lines)})
    failure = (await failure_of(Migrator(dsn, folder))).failure
    assert (failure.statement, failure.line) == (3, 3)
    write({"001_a.sql": "SELECT 1;"})
    assert len(await Migrator(dsn, folder).up()) == 1


FENCED = {
    "rewrites its row": f"UPDATE {HISTORY} SET token = 'x' WHERE version = '1';",
    "gives the lock away": "SELECT pg_advisory_unlock_all();",
}


@pytest.mark.parametrize("text", FENCED.values(), ids=FENCED)
async def test_a_fence_is_told_in_our_words(dsn: str, write: Write, text: str) -> None:
    folder = write({"001_a.sql": text})
    failure = (await failure_of(Migrator(dsn, folder))).failure
    assert failure.message in {str(Guard.ROW), str(Guard.LOCK)}
    assert failure.hint == "a migration must not end its transaction, release locks, or write to the history"
    write({"001_a.sql": "SELECT 1;"})
    assert len(await Migrator(dsn, folder).up()) == 1


QUOTED = (
    'invalid input syntax for type integer: "%s"',
    "ungültige Eingabesyntax für Typ integer: »%s«",
    "syntaxe en entrée invalide pour le type integer : « %s »",
    "integer型の入力構文が不正です: 「%s」",
)


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_guard_is_known_in_every_translation_and_only_as_the_whole_value(quoted: str) -> None:
    ours, theirs = Guards(), Guards()
    for guard in Guard:
        word = f"{ours.sign}: {guard}"
        assert ours.raised(asyncpg.InvalidTextRepresentationError(quoted % word)) is guard
        assert theirs.raised(asyncpg.InvalidTextRepresentationError(quoted % word)) is None
        assert ours.raised(asyncpg.InvalidTextRepresentationError(quoted % f"{word} and more")) is None
        assert ours.raised(asyncpg.RaiseError(quoted % word)) is None


async def test_a_trigger_that_keeps_the_old_row_fails_the_migration(dsn: str, write: Write) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})
    await Migrator(dsn, folder).up()
    await tell(
        dsn,
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN OLD; END$$;"
        f"CREATE TRIGGER keep BEFORE UPDATE ON {HISTORY} FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    write({"002_b.sql": "CREATE TABLE b ();"})
    failure = (await failure_of(Migrator(dsn, folder))).failure
    assert failure.history == HISTORY
    assert failure.message.endswith("something undoes what this run writes there")
    assert not await exists(dsn, "b")
    await tell(dsn, f"DROP TRIGGER keep ON {HISTORY}")
    assert [step.version for step in await Migrator(dsn, folder).up()] == ["2"]


async def test_a_run_that_is_shown_an_old_history_again_and_again_gives_up(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write({"001_a.sql": "SELECT 1;"})
    migrator = Migrator(dsn, folder, lock="transaction")
    await migrator.up()

    async def read_from_a_standby(*_: object, **__: object) -> tuple[()]:
        return ()

    with monkeypatch.context() as patch, anyio.fail_after(PATIENCE):
        patch.setattr(History, "read", read_from_a_standby)
        with pytest.raises(HistoryError, match="another history than the one that it writes"):
            await migrator.up()
    assert await migrator.up() == ()


async def test_a_login_without_the_right_to_connect_is_not_told_to_become_a_member(dsn: str, write: Write) -> None:
    database = urlsplit(dsn).path.removeprefix("/")
    async with a_role(dsn) as role:
        await tell(dsn, f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC")
        migrator = Migrator(as_role(dsn, role), write({"001_a.sql": "SELECT 1;"}), owner="postgres")
        with pytest.raises(ServerError, match="permission denied for database"):
            await migrator.up()
        await tell(dsn, f"GRANT CONNECT ON DATABASE {database} TO {role}")
        with pytest.raises(ServerError, match=r"cannot work as the role postgres.*GRANT"):
            await migrator.up()
        await tell(dsn, f"GRANT postgres TO {role}")
        assert len(await migrator.up()) == 1
