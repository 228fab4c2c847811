"""A second layout, written here alone: what the package knows of versions, it knows from a layout."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal

import pytest

from pgratchet import Catalogue, File, HistoryError, Kind, Migration, Migrator, Source, UsageError
from pgratchet.postgres.ledger.records import Applied
from pgratchet.postgres.link.sql import Table
from tests.support import HISTORY, Write, ask, column, connected, states, tell

pytestmark = pytest.mark.anyio

NAME = re.compile(r"V([0-9]+(?:[._][0-9]+)*)__(\w+)\.sql")
FILES = {
    "V1__a.sql": "CREATE TABLE ledger (n text); INSERT INTO ledger VALUES ('1');",
    "V1.9__b.sql": "INSERT INTO ledger VALUES ('1.9');",
    "V1.10__c.sql": "INSERT INTO ledger VALUES ('1.10');",
    "V2__d.sql": "INSERT INTO ledger VALUES ('2');",
}
ORDER = ["1", "1.9", "1.10", "2"]
Locks = Literal["session", "transaction", "none"]


class Flyway:
    name = "Flyway"
    form = "versions are numbers with dots between"

    def recognises(self, files: Iterable[File]) -> bool:
        return any(NAME.fullmatch(file.name) for file in files)

    def parse(self, files: Iterable[File], *, strict: bool = False) -> Catalogue:  # noqa: ARG002 - nothing is odd
        return Catalogue(tuple(sorted(map(self._migration, files), key=lambda migration: migration.rank)))

    def _migration(self, file: File) -> Migration:
        found = NAME.fullmatch(file.name)
        assert found is not None
        version, source = found[1].replace("_", "."), Source(file.path, file.content.decode())
        rank = tuple(map(int, version.split(".")))
        return Migration(version, rank, found[2], Kind.SQL, hashlib.sha256(file.content).hexdigest(), source)

    def canonical(self, text: str) -> str | None:
        dotted = text.replace("_", ".")
        return dotted if re.fullmatch(r"[0-9]+(\.[0-9]+)*", dotted) else None

    def meant(self, text: str) -> str | None:
        return self.canonical(text)

    def rank(self, version: str) -> tuple[int, ...] | None:
        return None if self.canonical(version) is None else tuple(map(int, version.split(".")))

    def draft(
        self,
        migrations: Sequence[Migration],
        description: str,
        kind: Kind,  # noqa: ARG002 - SQL only
        now: datetime,  # noqa: ARG002 - versions are no dates
    ) -> Mapping[str, str]:
        return {f"V{len(migrations) + 1}__{description}.sql": ""}


@pytest.mark.parametrize("lock", ["session", "transaction", "none"])
async def test_dotted_versions_are_applied_in_their_order(dsn: str, write: Write, lock: Locks) -> None:
    migrator = Migrator(dsn, write(FILES), lock=lock, layout=Flyway())

    first = await migrator.up("1_9")
    assert migrator.readiness.pending == ("1.10", "2")
    rest = await migrator.up()
    await migrator.check()

    assert [step.version for step in (*first, *rest)] == ORDER
    assert len(first) == 2
    assert await column(dsn, "SELECT n FROM ledger") == ORDER
    assert await states(dsn) == dict.fromkeys(ORDER, "applied")


async def test_what_is_late_and_what_has_no_file_is_known_by_rank(dsn: str, write: Write) -> None:
    await Migrator(dsn, write(FILES), layout=Flyway()).up()
    fewer = write({name: text for name, text in FILES.items() if "1.10" not in name} | {"V1.2__late.sql": "SELECT 1;"})
    migrator = Migrator(dsn, fewer, layout=Flyway())

    assert [entry.version for entry in await migrator.status()] == ["1", "1.2", "1.9", "1.10", "2"]
    with pytest.raises(HistoryError) as caught:
        await migrator.up()
    assert caught.value.versions == ("1.2",)


async def test_what_is_no_version_is_said_in_the_words_of_the_layout(dsn: str, write: Write) -> None:
    with pytest.raises(UsageError, match="'x', which is no version: versions are numbers with dots between"):
        await Migrator(dsn, write(FILES), layout=Flyway()).up("x")


@pytest.mark.parametrize(
    "versions",
    [[], [""], ["1.10", "1.9", "10", "9"], ["a\nb", "c"], ["a", "b\nc"], ["ä", "z", "Z", "\U0001f600", "\uffff"]],
)
async def test_the_server_tells_a_set_of_versions_as_python_does(dsn: str, write: Write, versions: list[str]) -> None:
    await Migrator(dsn, write({"001_a.sql": "SELECT 1;"})).up()
    await tell(dsn, f"DELETE FROM {HISTORY}")
    async with connected(dsn) as connection:
        await connection.executemany(
            f"INSERT INTO {HISTORY} (version, name, kind, checksum, state) VALUES ($1, '', 'sql', '', 'applied')",
            [(version,) for version in versions],
        )
    utf8 = sorted(version.encode() for version in versions)

    assert await ask(dsn, f"SELECT {Applied.of(utf8).holds(Table.parse(HISTORY))}")
    assert not await ask(dsn, f"SELECT {Applied.of([*utf8, b'more']).holds(Table.parse(HISTORY))}")
