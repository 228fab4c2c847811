"""Random folders of migrations, each with the expected state of the database once they are applied."""

from collections.abc import Mapping
from random import Random
from typing import NamedTuple

DIRECTIVE = "-- pgratchet: no-transaction\n"

FOUNDATION = """
CREATE TABLE ledger (id bigserial, version int NOT NULL, statement int NOT NULL,
                     at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL);
INSERT INTO items SELECT i, i FROM generate_series(1, 2000) i;
CREATE TABLE few (id int PRIMARY KEY, n int NOT NULL);
INSERT INTO few SELECT i, i FROM generate_series(1, 8) i;
CREATE FUNCTION slowly(n int, seconds float8) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    $$BEGIN PERFORM pg_sleep(seconds); RETURN n; END$$;
CREATE PROCEDURE effect(version int, statement int, before float8, after float8) LANGUAGE plpgsql AS
    $$BEGIN
        PERFORM pg_sleep(before);
        INSERT INTO ledger (version, statement) VALUES (effect.version, effect.statement);
        COMMIT;
        PERFORM pg_sleep(after);
    END$$;
"""
"""The schema before the first migration: the ledger of effects, and tables that strangers use, too."""


class File(NamedTuple):
    """One migration: its text, the numbers of the statements that write to the ledger, and how many there are."""

    version: int
    name: str
    text: str
    effects: tuple[int, ...]
    statements: int
    calls: tuple[int, ...] = ()
    """The statements that only a person can judge: bare, and with another effect each time."""


class History(NamedTuple):
    """A folder of migrations. `indexes` are there in the end, by name; `tables` too."""

    files: tuple[File, ...]
    indexes: tuple[str, ...]
    tables: tuple[str, ...]

    @property
    def texts(self) -> Mapping[str, str]:
        """The files by name."""
        return {file.name: file.text for file in self.files}

    @property
    def effects(self) -> list[tuple[int, int]]:
        """The rows of the ledger in the end: version and statement, in order."""
        return [(file.version, statement) for file in self.files for statement in file.effects]


def generate(random: Random, *, bare: bool) -> History:
    """Return a history of 4 to 8 migrations; with `bare` some of them run statement by statement."""
    writers = [_transaction, _transaction, _python]
    if bare:
        writers += [_index, _mixture, _mixture, _mixture]
    draft = _Draft(random)
    versions = range(1, random.randint(4, 8) + 1)
    files = tuple(random.choice(writers)(draft, version) for version in versions)
    return History(files, tuple(draft.indexes), tuple(draft.tables))


class _Draft:
    """The objects that earlier files have made."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.indexes: list[str] = []
        self.tables: list[str] = []

    def seconds(self, most: float) -> float:
        return round(self.random.uniform(0.0, most), 3)

    def chance(self, share: float) -> bool:
        return self.random.random() < share


def _transaction(draft: _Draft, version: int) -> File:
    lines, effects = [], []
    for number in range(1, draft.random.randint(1, 5) + 1):
        kind = draft.random.choice(["insert", "insert", "insert", "table", "items", "column"])
        if kind == "table":
            draft.tables.append(f"t_{version}_{number}")
            lines.append(f"CREATE TABLE t_{version}_{number} (n int);")
        elif kind == "items":
            lines.append(f"UPDATE items SET n = n + 1 WHERE id % 100 = {version};")
        elif kind == "column":
            lines.append(f"ALTER TABLE items ADD COLUMN c_{version}_{number} int;")
        else:
            effects.append(number)
            lines.append(_insert(draft, version, number))
    return File(version, f"{version:03}_transaction.sql", "\n".join(lines) + "\n", tuple(effects), len(lines))


def _python(draft: _Draft, version: int) -> File:
    text = f"""
async def up(connection):
    await connection.execute("INSERT INTO ledger (version, statement) VALUES ({version}, 1)")
    async with connection.transaction():
        await connection.execute("SELECT pg_sleep({draft.seconds(0.4)})")
        await connection.execute("INSERT INTO ledger (version, statement) VALUES ($1, $2)", {version}, 2)
    await connection.fetch("SELECT * FROM items WHERE n = {version}")
"""
    return File(version, f"{version:03}_python.py", text, (1, 2), 0)


def _index(draft: _Draft, version: int) -> File:
    return File(version, f"{version:03}_index.sql", _build(draft, version, 1) + "\n", (), 1)


def _mixture(draft: _Draft, version: int) -> File:
    lines, effects, calls = [], [], []
    for number in range(1, draft.random.randint(2, 6) + 1):
        kind = draft.random.choice(["insert", "insert", "build", "build", "vacuum", "drop", "call"])
        if kind == "build":
            lines.append(_build(draft, version, number))
        elif kind == "vacuum":
            lines.append(f"VACUUM {draft.random.choice(['few', 'items', '(ANALYZE) few'])};")
        elif kind == "drop" and draft.indexes:
            lines.append(_drop(draft))
        else:
            effects.append(number)
            if kind == "call":
                calls.append(number)
                lines.append(f"CALL effect({version}, {number}, {draft.seconds(0.25)}, {draft.seconds(0.25)});")
            else:
                lines.append(_insert(draft, version, number))
    text = DIRECTIVE + "\n".join(lines) + "\n"
    return File(version, f"{version:03}_mixture.sql", text, tuple(effects), len(lines), tuple(calls))


def _insert(draft: _Draft, version: int, number: int) -> str:
    sleep = f" FROM pg_sleep({draft.seconds(0.3)})" if draft.chance(0.7) else ""
    return f"INSERT INTO ledger (version, statement) SELECT {version}, {number}{sleep};"


def _build(draft: _Draft, version: int, number: int) -> str:
    name = f"i_{version}_{number}"
    draft.indexes.append(name)
    unless = "IF NOT EXISTS " if draft.chance(0.5) else ""
    what = "items (n)" if draft.chance(0.3) else f"few (slowly(n, {draft.seconds(0.06)}))"
    return f"CREATE INDEX CONCURRENTLY {unless}{name} ON {what};"


def _drop(draft: _Draft) -> str:
    name = draft.indexes.pop(draft.random.randrange(len(draft.indexes)))
    return f"DROP INDEX CONCURRENTLY {'IF EXISTS ' if draft.chance(0.5) else ''}{name};"
