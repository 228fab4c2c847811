"""A second layout, written here alone: what the package knows of versions, it knows from a layout."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgratchet import (
    Catalogue,
    Direction,
    Event,
    File,
    FilesError,
    HistoryError,
    Kind,
    Looked,
    Migration,
    Migrator,
    Problem,
    RecordState,
    Started,
    UsageError,
)
from pgratchet.files import parsing
from pgratchet.files.layout import Layout
from pgratchet.files.layouts import DEFAULT_LAYOUT
from pgratchet.postgres.ledger.records import Applied
from pgratchet.postgres.link.sql import Table
from pgratchet.postgres.wire.message import Message
from pgratchet.postgres.wire.sending import Meanwhile, Wire
from tests.support import HISTORY, Connection, Write, ask, column, connect, connected, missing, states, tell

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
        found: dict[str, Migration] = {}
        problems: list[Problem] = []
        for file in files:
            name = NAME.fullmatch(file.name)
            version = self.canonical(name[1]) if name else None
            if name is None or version is None:
                problems.append(Problem(file.path, "the name is not V<version>__<description>.sql", "rename the file"))
            elif version in found:
                message = f"version {version} is already {found[version].up.path}"
                problems.append(Problem(file.path, message, "give one of them another version"))
            else:
                content = parsing.read(file, Kind.SQL, version, self)
                problems += content.problems
                rank = self.rank(version) or ()
                found[version] = Migration(version, rank, name[2], Kind.SQL, content.checksum, content.source)
        if problems:
            raise FilesError(problems)
        return Catalogue(tuple(sorted(found.values(), key=lambda migration: migration.rank)))

    def canonical(self, text: str) -> str | None:
        parts = re.split("[._]", text)
        if not all(re.fullmatch("[0-9]{1,18}", part) for part in parts):
            return None
        return ".".join(part.lstrip("0") or "0" for part in parts)

    def meant(self, text: str) -> str | None:
        return self.canonical(text.strip())

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


async def test_ranks_tell_late_versions_and_versions_without_a_file(dsn: str, write: Write) -> None:
    await Migrator(dsn, write(FILES), layout=Flyway()).up()
    fewer = write({name: text for name, text in FILES.items() if "1.10" not in name} | {"V1.2__late.sql": "SELECT 1;"})
    migrator = Migrator(dsn, fewer, layout=Flyway())

    assert [entry.version for entry in await migrator.status()] == ["1", "1.2", "1.9", "1.10", "2"]
    with pytest.raises(HistoryError) as caught:
        await migrator.up()
    assert caught.value.versions == ("1.2",)


async def test_a_name_that_a_layout_has_made_up_is_shown_without_its_controls(dsn: str, write: Write) -> None:
    class Renaming(Flyway):
        def parse(self, files: Iterable[File], *, strict: bool = False) -> Catalogue:
            (migration,) = super().parse(files, strict=strict).migrations
            return Catalogue((migration._replace(name="a\x1b\n\udce4"),))

    folder = write({"V1__a.sql": "CREATE TABLE seen AS SELECT current_setting('application_name') AS name;"})
    await Migrator(dsn, folder, layout=Renaming()).up()

    (name,) = await column(dsn, "SELECT name FROM seen")
    assert name.endswith(r": up 1 a\x1b\n\udce4")
    assert await states(dsn) == {"1": "applied"}


async def test_an_invalid_version_is_refused_in_the_words_of_the_layout(dsn: str, write: Write) -> None:
    with pytest.raises(UsageError, match="'x', which is no version: versions are numbers with dots between"):
        await Migrator(dsn, write(FILES), layout=Flyway()).up("x")


async def test_a_file_that_the_layout_cannot_read_is_a_problem_and_not_passed_over(dsn: str, write: Write) -> None:
    folder = write({"V01__e.sql": "SELECT 1;", "V3__f.sql": "\0", "R__g.sql": "SELECT 1;"} | FILES)
    with pytest.raises(FilesError) as caught:
        await Migrator(dsn, folder, layout=Flyway()).up()

    assert {problem.path.rpartition("/")[2] for problem in caught.value.problems} == {
        "R__g.sql",
        "V1__a.sql",
        "V3__f.sql",
    }


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


async def test_the_collation_of_the_history_has_no_part_in_a_set_of_versions(dsn: str, write: Write) -> None:
    if not await ask(dsn, "SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu'"):
        missing("the server has no collations of ICU")
    await Migrator(dsn, write({"001_a.sql": "SELECT 1;"})).up()
    await tell(dsn, f'ALTER TABLE {HISTORY} ALTER version TYPE text COLLATE "und-x-icu"; DELETE FROM {HISTORY}')
    for version in ("Z", "a", "z", "ä"):
        row = f"('{version}', '', 'sql', '', 'applied')"
        await tell(dsn, f"INSERT INTO {HISTORY} (version, name, kind, checksum, state) VALUES {row}")

    utf8 = [version.encode() for version in ("Z", "a", "z", "ä")]
    assert await column(dsn, f"SELECT version FROM {HISTORY} ORDER BY version") == ["a", "ä", "z", "Z"]
    assert await ask(dsn, f"SELECT {Applied.of(utf8).holds(Table.parse(HISTORY))}")


async def test_the_server_leaves_versions_that_are_not_applied_out_of_the_set(dsn: str, write: Write) -> None:
    await Migrator(dsn, write({"001_a.sql": "SELECT 1;"})).up()
    for number, state in enumerate(RecordState, 2):
        row = f"('{number}', '', 'sql', '', '{state}')"
        await tell(dsn, f"INSERT INTO {HISTORY} (version, name, kind, checksum, state) VALUES {row}")
    applied = sorted(version.encode() for version, state in (await states(dsn)).items() if state == "applied")

    assert len(applied) == 2
    assert await ask(dsn, f"SELECT {Applied.of(applied).holds(Table.parse(HISTORY))}")


class Versions(NamedTuple):
    """Versions of one layout in order, and the names of their files; as a text, `following` comes before `newest`."""

    layout: Layout
    old: str
    late: str
    newest: str
    following: str
    pattern: str

    def file(self, version: str) -> dict[str, str]:
        return {self.pattern.format(version): f"INSERT INTO ledger VALUES ('{version}');"}


NUMBERS = Versions(DEFAULT_LAYOUT, "1", "2", "9", "10", "{:0>3}_x.sql")
DOTTED = Versions(Flyway(), "1", "1.2", "1.9", "1.10", "V{}__x.sql")


class Interruption:
    """Changes the history when a run has planned a version, and is about to send the step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, version: str, change: Callable[[], Awaitable[object]]) -> None:
        self.over = False
        send = Wire.send

        async def interrupted(wire: Wire, message: Message, meanwhile: Meanwhile | None = None) -> None:
            if not self.over and message.text.startswith(f"/* pgratchet {version} */"):
                self.over = True
                await change()
            await send(wire, message, meanwhile)

        monkeypatch.setattr(Wire, "send", interrupted)


@pytest.mark.parametrize("versions", [NUMBERS, DOTTED], ids=["numbers", "dotted numbers"])
class TestTheSetOfAppliedVersions:
    """... tells that a plan is out of date although the newest applied version is still the same."""

    async def test_a_step_is_planned_again_if_an_old_version_is_reverted_before_it_begins(
        self, dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch, versions: Versions
    ) -> None:
        await tell(dsn, "CREATE TABLE ledger (n text)")
        folder = write(versions.file(versions.old) | versions.file(versions.newest))
        await Migrator(dsn, folder, layout=versions.layout).up()
        write(versions.file(versions.following))
        revert = (
            f"DELETE FROM {HISTORY} WHERE version = '{versions.old}'; DELETE FROM ledger WHERE n = '{versions.old}'"
        )
        interruption = Interruption(monkeypatch, versions.following, lambda: tell(dsn, revert))

        migrator = Migrator(dsn, folder, layout=versions.layout, lock="transaction", allow_late=True)
        steps = await migrator.up()

        assert interruption.over
        assert [step.version for step in steps] == [versions.old, versions.following]
        assert await column(dsn, "SELECT n FROM ledger") == [versions.newest, versions.old, versions.following]
        assert await migrator.up() == ()

    async def test_a_step_is_planned_again_if_another_release_applies_a_late_version_before_it_begins(
        self, dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch, versions: Versions
    ) -> None:
        await tell(dsn, "CREATE TABLE ledger (n text)")
        folder = write(versions.file(versions.old) | versions.file(versions.newest))
        await Migrator(dsn, folder, layout=versions.layout).up()

        async def apply_late() -> None:
            other = Migrator(dsn, write(versions.file(versions.late)), layout=versions.layout, allow_late=True)
            assert [step.version for step in await other.up(versions.late)] == [versions.late]

        write(versions.file(versions.following))
        interruption = Interruption(monkeypatch, versions.following, apply_late)
        told: list[Event] = []
        migrator = Migrator(dsn, folder, layout=versions.layout, lock="transaction", listener=told.append)
        steps = await migrator.up()

        assert interruption.over
        assert [step.version for step in steps] == [versions.following]
        looks = [each.unknown if isinstance(each, Looked) else each for each in told]
        started = Started(versions.following, "x", Direction.UP, 1)
        assert looks[-4:-2] == [(versions.late,), started]
        assert looks.count(started) == 1
        assert await column(dsn, "SELECT n FROM ledger") == [
            versions.old,
            versions.newest,
            versions.late,
            versions.following,
        ]


VERSIONS = st.one_of(
    st.lists(st.integers(0, 120).map(str), min_size=1, max_size=4).map(".".join),
    st.integers(0, 10**18 - 1).map(str),
    st.binary(min_size=2, max_size=20).map(bytes.hex),
    st.sampled_from(["add users", "it's", 'a"b', "a\\b", "$$", "%s", "{}", "ä", "a\u0308", "Ä", "ß", "SS"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
)
SETS = st.frozensets(VERSIONS, max_size=8)


@settings(deadline=None)
@given(versions=SETS, others=SETS)
@example(versions=frozenset({"a", "b"}), others=frozenset({"ab"}))
@example(versions=frozenset({"1.10", "1.9"}), others=frozenset({"1.1", "01.9"}))
@example(versions=frozenset(), others=frozenset({""}))
def compare_sets(
    runner: asyncio.Runner, connection: Connection, versions: frozenset[str], others: frozenset[str]
) -> None:
    async def holds(wanted: Iterable[str]) -> object:
        condition = Applied.of(sorted(version.encode() for version in wanted)).holds(Table.parse(HISTORY))
        return await connection.fetchval(f"SELECT {condition}")

    async def compare() -> None:
        await connection.execute(f"DELETE FROM {HISTORY}")
        await connection.execute(
            f"INSERT INTO {HISTORY} (version, name, kind, checksum, state) "
            "SELECT version, '', 'sql', '', 'applied' FROM unnest($1::text[]) AS version",
            list(versions),
        )
        assert await holds(versions) is True
        assert await holds(others) is (versions == others)

    runner.run(compare())


def test_the_server_and_python_agree_on_the_digest_of_any_set_of_applied_versions(dsn: str, write: Write) -> None:
    with asyncio.Runner() as runner:
        runner.run(Migrator(dsn, write({"001_a.sql": "SELECT 1;"})).up())
        connection = runner.run(connect(dsn))
        try:
            compare_sets(runner, connection)
        finally:
            connection.terminate()
