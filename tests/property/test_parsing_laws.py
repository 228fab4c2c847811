import hashlib
import tempfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pgratchet.core.errors import FilesError
from pgratchet.core.model import Catalogue, Direction, File, Kind, Mode, Options, Script, Source
from pgratchet.core.sql.scripts import MOST_MARKERS, compile_script
from pgratchet.core.sql.statements import scan
from pgratchet.files import directory, parsing
from pgratchet.files.layouts.own import own

quick = settings(max_examples=60)

LINES = [
    "-- pgratchet: no-transaction",
    "-- pgratchet: lock-timeout=5s",
    "-- pgratchet: lock_timeout=5s",
    "-- pgratchet no-transaction",
    "-- Version: 7",
    "-- Version: 8",
    "-- Migration: users",
    "/* a comment",
    "*/",
    "SELECT 1;",
    "SELECT 'ä😀';",
    "COMMIT;",
    "\\i x",
    "\\restrict x",
    "",
]
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\ufeff"), max_size=40)
TEXTS = st.lists(st.sampled_from(LINES) | PLAIN, max_size=8).map("\n".join)
NAMES = st.from_regex(r"[1-3]_[ab](\.(up|down|Down))?\.(sql|py|SQL)|[ab1_.]{1,6}\.sql", fullmatch=True)
STATEMENTS = st.sampled_from(
    ["SELECT 1", "SELECT ';' -- ;", "SELECT $$;$$", "CREATE TABLE a (b int)", "/* ; */ SELECT 2"]
)


def outcome(read: Callable[[], object]) -> object:
    """Return what is read, or the problems with it: laws hold for what is refused too."""
    try:
        return read()
    except FilesError as error:
        return error.problems


def content_of(body: bytes, kind: Kind = Kind.SQL) -> parsing.Content:
    return parsing.read(File("7_x.sql", "m/7_x.sql", body), kind, "7", own)


def compiled(text: str, *, no_transaction: bool = False) -> Script:
    source = Source("m/1_x.sql", text, Options(no_transaction=no_transaction))
    return compile_script(source, Kind.SQL, Direction.UP)


@st.composite
def directories(draw: st.DrawFn) -> dict[str, bytes]:
    """Valid ones: any names and contents, a down file here and there, Python too."""
    contents: dict[str, bytes] = {}
    title = st.from_regex(r"[a-zäß0-9][a-z0-9_-]{0,8}", fullmatch=True)
    for version in draw(st.sets(st.integers(0, 10**14), max_size=6)):
        name = f"{'0' * draw(st.integers(0, 3))}{version}_{draw(title)}"
        if draw(st.booleans()):
            contents[f"{name}.py"] = b"async def up(connection): ...\n"
            continue
        contents[f"{name}.sql"] = draw(PLAIN).encode()
        if draw(st.booleans()):
            contents[f"{name}.down.sql"] = draw(PLAIN).encode()
    return contents


def files_of(contents: Mapping[str, bytes]) -> list[File]:
    return [File(name, f"m/{name}", body) for name, body in contents.items()]


def without_folders(catalogue: Catalogue) -> list[tuple[object, ...]]:
    return [
        (each.version, each.name, each.kind, each.checksum, each.up.text, each.down and each.down.text)
        for each in catalogue.migrations
    ]


@quick
@given(TEXTS)
def test_line_endings_and_a_byte_order_mark_change_no_checksum_and_no_option(text: str) -> None:
    plain = content_of(text.encode())
    windows = text.replace("\r\n", "\n").replace("\n", "\r\n")

    assert content_of(parsing.BYTE_ORDER_MARK + text.encode()) == plain
    for mark in (b"", parsing.BYTE_ORDER_MARK):
        found = content_of(mark + windows.encode())
        assert found.source.text == ("" if found.problems and not plain.source.text else windows)
        assert (found.checksum, found.source.options) == (plain.checksum, plain.source.options)
        assert found.problems == plain.problems


@quick
@given(PLAIN, PLAIN)
def test_other_texts_have_other_checksums(one: str, other: str) -> None:
    first, second = content_of(one.encode()), content_of(other.encode())

    assert (first.checksum == second.checksum) == (one == other)
    assert (first.source.text, second.source.text) == (one, other)


@quick
@given(st.binary(max_size=60) | TEXTS.map(str.encode), st.sampled_from(Kind))
def test_any_bytes_are_read_or_refused_with_a_place_and_a_cure(body: bytes, kind: Kind) -> None:
    found = content_of(body, kind)
    body = body.removeprefix(parsing.BYTE_ORDER_MARK)
    plain = body.replace(b"\r\n", b"\n")

    assert found.checksum == hashlib.sha256(plain).hexdigest()
    sent = body if kind is Kind.SQL else plain
    assert found.source.text.encode() == sent or (found.source.text == "" and len(found.problems) == 1)
    for problem in found.problems:
        assert problem.path == "m/7_x.sql"
        assert problem.message
        assert problem.cure
        assert problem.line is None or 1 <= problem.line <= body.count(b"\n") + 1


@settings(max_examples=30)
@given(directories())
def test_a_directory_that_is_written_and_read_again_is_the_same(contents: dict[str, bytes]) -> None:
    expected = own.parse(files_of(contents))

    with tempfile.TemporaryDirectory() as folder:
        for name, body in contents.items():
            (Path(folder) / name).write_bytes(body)
        actual = own.parse(directory.read(folder))

    assert without_folders(actual) == without_folders(expected)
    assert len(actual.warnings) == len(expected.warnings)


@quick
@given(directories(), st.data())
def test_the_order_of_files_is_irrelevant(contents: dict[str, bytes], data: st.DataObject) -> None:
    files = files_of(contents)

    assert own.parse(data.draw(st.permutations(files))) == own.parse(files)


@quick
@given(st.dictionaries(NAMES, st.binary(max_size=20) | TEXTS.map(str.encode), max_size=6))
def test_any_directory_is_read_or_refused_with_all_its_problems_in_order(contents: dict[str, bytes]) -> None:
    found = outcome(lambda: own.parse(files_of(contents)))

    if not isinstance(found, Catalogue):
        assert isinstance(found, tuple)
        assert len(found) > 0
        paths = [problem.path for problem in found]
        assert paths == sorted(paths)
        assert set(paths) <= {f"m/{name}" for name in contents}


@quick
@given(directories())
def test_migrations_are_in_the_order_of_their_numbers(contents: dict[str, bytes]) -> None:
    found = [migration.rank for migration in own.parse(files_of(contents)).migrations]

    assert found == sorted(set(found))
    assert len(found) == sum(not name.endswith(".down.sql") for name in contents)


@quick
@given(TEXTS)
def test_any_text_is_a_script_or_refused_with_places_inside_it(text: str) -> None:
    found = outcome(lambda: compiled(text))

    if isinstance(found, Script):
        assert len(found.source.text) == len(text)
    else:
        assert isinstance(found, tuple)
        lines = [problem.line or 0 for problem in found]
        assert lines == sorted(lines)
        assert all(1 <= line <= text.count("\n") + 1 for line in lines)


@quick
@given(st.lists(STATEMENTS, max_size=30), st.integers(1, 40), st.booleans())
def test_segments_hold_every_statement_once_and_in_order(
    statements: list[str],
    times: int,
    no_transaction: bool,  # noqa: FBT001 - drawn, not passed
) -> None:
    text = "".join(f"{statement}\n;" for statement in statements * times)
    script = compiled(text, no_transaction=no_transaction)

    pieces = [text[segment.start : segment.end] for segment in script.segments]
    cut = [piece[each.start : each.end] for piece in pieces for each in scan(piece)]
    assert cut == [text[each.start : each.end] for each in scan(text)]
    assert all(before.end <= after.start for before, after in pairwise(script.segments))
    assert sum(segment.statements for segment in script.segments) == script.statements
    assert script.mode is Mode.STATEMENTS or len(pieces) <= MOST_MARKERS + 1


@quick
@given(st.lists(STATEMENTS, max_size=8), st.sampled_from(["BEGIN", "START TRANSACTION", "begin work"]))
def test_a_transaction_around_a_script_changes_nothing(statements: list[str], opener: str) -> None:
    body = "".join(f"{statement}\n;" for statement in statements)
    plain, wrapped = compiled(body), compiled(f"{opener};\n{body}\nCOMMIT;")

    def pieces(script: Script) -> list[str]:
        return [script.source.text[segment.start : segment.end] for segment in script.segments]

    assert pieces(wrapped) == pieces(plain)
    assert (wrapped.mode, wrapped.statements, wrapped.begin) == (plain.mode, plain.statements, "")


@quick
@given(st.lists(STATEMENTS, min_size=1, max_size=8))
def test_line_endings_do_not_change_the_segments_of_a_script(statements: list[str]) -> None:
    text = "".join(f"{statement}\n;\n" for statement in statements)

    assert len(list(scan(text.replace("\n", "\r\n")))) == len(list(scan(text))) == len(statements)
