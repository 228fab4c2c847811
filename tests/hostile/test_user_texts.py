"""Texts of users, in any script and with any quotes, are names and values for the server, and never SQL."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

import pytest

from pgratchet import (
    Catalogue,
    File,
    Kind,
    Migration,
    Migrator,
    Options,
    Source,
    State,
    Verdict,
    new,
)
from tests.support import Write, ask, column, connected, exists, failure_of, history, missing, tell

pytestmark = pytest.mark.anyio

TITLES = {
    "Arabic": "إضافة_مستخدمين",
    "Armenian": "ավելացնել_օգտվողներ",
    "Bengali": "ব্যবহারকারী_যোগ",
    "Cyrillic": "й_ё_ї_додати",
    "Devanagari": "उपयोगकर्ता_जोड़ें",
    "Ethiopic": "ተጠቃሚዎች",
    "Georgian": "მომხმარებლები",
    "Greek": "προσθήκη_ΐ",
    "Hangul": "사용자_추가",
    "Han": "添加用户_館",
    "Hebrew": "הוספת_שָׁלוֹם",
    "Kana": "ユーザー_が_ぱ",
    "Khmer": "អ្នកប្រើ",
    "Latin": "añadir_größe_ǖ_ệ_ﬁ_İ",
    "Persian": "می\u200cروم",
    "Sinhala": "ශ්\u200dරී",
    "Tamil": "பயனர்_கொ",
    "Thai": "เพิ่มผู้ใช้",
    "Tibetan": "སྤྱོད་མཁན".replace("་", "_"),
    "Digits": "\N{FULLWIDTH DIGIT ONE}_٣٤",
    "Many marks": "a\u0323\u0307\u0301_q\u0307\u0323",
}


@pytest.mark.parametrize("first", ["NFC", "NFD", "NFKD"])
async def test_names_in_any_script_mean_the_same_in_each_normal_form(
    dsn: str, write: Write, first: Literal["NFC", "NFD", "NFKD"]
) -> None:
    # A compatibility form is another name: the folder keeps that one.
    titles = [unicodedata.normalize("NFKC", title) if first == "NFKD" else title for title in TITLES.values()]
    named = {f"{at:03}_{title}": at for at, title in enumerate(titles, 1)}

    def files(form: Literal["NFC", "NFD", "NFKD"]) -> Mapping[str, str]:
        ups = {f"{unicodedata.normalize(form, name)}.sql": f"CREATE TABLE t{at} ();" for name, at in named.items()}
        downs = {f"{unicodedata.normalize(form, name)}.down.sql": f"DROP TABLE t{at};" for name, at in named.items()}
        return ups | downs

    folder = write(files(first))
    migrator = Migrator(dsn, folder)
    assert len(await migrator.up()) == len(titles)
    recorded = [row["name"] for row in sorted((await history(dsn)).values(), key=lambda row: int(row["version"]))]
    assert recorded == [unicodedata.normalize("NFC", title) for title in titles]

    # Another system checks the same files out in the other form.
    for path in folder.iterdir():
        path.unlink()
    write(files("NFC" if first != "NFC" else "NFD"))
    await migrator.check()
    assert {entry.state for entry in await migrator.status()} == {State.APPLIED}
    assert len(await migrator.down(0)) == len(titles)
    assert not await exists(dsn, "t1")


async def test_a_description_in_any_script_becomes_a_file_that_is_applied(dsn: str, tmp_path: Path) -> None:
    folder = tmp_path / "versions"
    for at, title in enumerate(TITLES.values(), 1):
        up, _ = new(folder, unicodedata.normalize("NFD", title.replace("_", " ")))
        up.write_text(f"{up.read_text()}CREATE TABLE t{at} ();")
    assert len(await Migrator(dsn, folder).up()) == len(TITLES)
    assert await column(dsn, "SELECT count(*) FROM pg_tables WHERE tablename ~ '^t[0-9]+$'") == [len(TITLES)]


SPRUNG = "DROP TABLE IF EXISTS victim CASCADE"
HOSTILE = {
    "quote": f"'; {SPRUNG}; --",
    "backslash": f"\\'; {SPRUNG}; --",
    "backslash at the end": "x\\",
    "double quote": f'"; {SPRUNG}; --',
    "dollars": f"$pgratchet$; {SPRUNG}; $pgratchet$",
    "comment": f"*/ ; {SPRUNG}; /*",
    "never closed": "/* $$ ' \" E'",
    "parameters": "$1 %s {0} {held} %(x)s :name",
    "line break": f"x\n;{SPRUNG};\r\n--",
    "braces of an array": '{a,b}","{',
}


class AnyNames:
    """A layout whose files are `n<TAB>version<TAB>title.sql`: versions and titles are any texts."""

    name = "any"
    form = "versions are any texts"

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def recognises(self, files: Iterable[File]) -> bool:
        return any(True for _ in files)

    def parse(self, files: Iterable[File], *, strict: bool = False) -> Catalogue:
        del strict
        migrations = []
        for at, file in enumerate(sorted(files)):
            version, text = self.texts[at], file.content.decode()
            up, down = Source(file.path, text, Options()), Source(file.path, f"DROP TABLE t{at};", Options())
            migrations.append(Migration(version, (at,), self.texts[at - 1], Kind.SQL, "c" * 64, up, down))
        return Catalogue(tuple(migrations))

    def canonical(self, text: str) -> str | None:
        return text if text in self.texts else None

    def meant(self, text: str) -> str | None:
        return self.canonical(text)

    def rank(self, version: str) -> tuple[int, ...] | None:
        return (self.texts.index(version),) if version in self.texts else None

    def draft(self, migrations: Sequence[Migration], description: str, kind: Kind, now: datetime) -> Mapping[str, str]:
        raise NotImplementedError(migrations, description, kind, now)


@pytest.fixture(params=["on", "off"])
async def settled(request: pytest.FixtureRequest, dsn: str) -> str:
    """The DSN of a database whose sessions read plain strings in this way by default, with a table to lose."""
    await tell(dsn, "CREATE TABLE victim ()")
    if request.param == "off":
        async with connected(dsn) as session:
            try:
                await session.execute("SET standard_conforming_strings = off")
            except Exception:  # noqa: BLE001 - PostgreSQL 20 has no other value than on
                missing("this server reads plain strings in one way only")
        await tell(dsn, f"ALTER DATABASE {urlsplit(dsn).path[1:]} SET standard_conforming_strings = off")
    return dsn


@pytest.mark.parametrize("lock", ["session", "transaction"])
async def test_versions_and_titles_of_any_text_run_nothing(settled: str, write: Write, lock: str) -> None:
    texts = list(HOSTILE.values())
    folder = write({f"{at:02}.sql": f"CREATE TABLE t{at} ();" for at in range(len(texts))})
    migrator = Migrator(settled, folder, layout=AnyNames(texts), lock=lock)  # type: ignore[arg-type]  # a parameter is a str
    assert [step.version for step in await migrator.up()] == texts
    assert set(await history(settled)) == set(texts)
    await migrator.check()
    assert [step.version for step in await migrator.redo(2)] == [texts[-1], texts[-2], texts[-2], texts[-1]]
    assert len(await migrator.down(0)) == len(texts)
    assert await exists(settled, "victim")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
async def test_reasons_roles_and_errors_of_any_text_run_nothing(settled: str, write: Write, text: str) -> None:
    # The names of roles are as they are seen: a line break in one is refused.
    role = text.replace("\r", "").replace("\n", "")[:40]
    name = f"{role} {urlsplit(settled).path[-8:]}"
    quoted = '"' + name.replace('"', '""') + '"'
    folder = write(
        {
            "001_a.sql": "CREATE TABLE a ();",
            "002_b.py": "async def up(connection):\n    raise LookupError(" + ascii(text) + ")\n",
        }
    )
    await tell(settled, f"CREATE ROLE {quoted} SUPERUSER")
    try:
        migrator = Migrator(settled, folder, owner=name, readers=[name], trusted_owners=[name])
        assert (await failure_of(migrator)).failure.version == "2"
        entry = await migrator.repair("2", Verdict.APPLIED, text)
        assert entry.row is not None
        assert await ask(settled, "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'a'") == quoted
        await migrator.check()
    finally:
        await tell(settled, f"REASSIGN OWNED BY {quoted} TO CURRENT_USER; DROP OWNED BY {quoted}; DROP ROLE {quoted}")
    assert await exists(settled, "victim")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
async def test_an_application_name_of_any_text_runs_nothing(settled: str, write: Write, text: str) -> None:
    name = text.replace("\r", "").replace("\n", "")
    given = f"{settled}{'&' if '?' in settled else '?'}application_name={quote(name)}"
    assert len(await Migrator(given, write({"001_a.sql": "CREATE TABLE a ();"})).up()) == 1
    assert await exists(settled, "victim")
