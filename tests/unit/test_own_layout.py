from collections.abc import Mapping

import pytest

from pgratchet.core.errors import FilesError
from pgratchet.core.model import Catalogue, File, Kind, Problem
from pgratchet.files.layouts.own import own

UP = "async def up(connection): ...\n"


def files(contents: Mapping[str, str | bytes]) -> list[File]:
    return [
        File(name, f"m/{name}", content.encode() if isinstance(content, str) else content)
        for name, content in contents.items()
    ]


def parsed(*names: str, strict: bool = False) -> Catalogue:
    return own.parse(files(dict.fromkeys(names, "")), strict=strict)


def problems_of(contents: Mapping[str, str | bytes], *, strict: bool = False) -> tuple[Problem, ...]:
    with pytest.raises(FilesError) as caught:
        own.parse(files(contents), strict=strict)
    return caught.value.problems


def problem_of(*names: str) -> Problem:
    (problem,) = problems_of(dict.fromkeys(names, ""))
    return problem


def versions(catalogue: Catalogue) -> list[str]:
    return [migration.version for migration in catalogue.migrations]


def test_an_empty_directory_has_no_migrations() -> None:
    assert own.parse([]) == Catalogue(())


def test_a_migration_is_made_of_its_name_and_its_content() -> None:
    (migration,) = own.parse(files({"007_add_users.sql": "SELECT 1;"})).migrations

    assert (migration.version, migration.rank, migration.name) == ("7", (7,), "add_users")
    assert (migration.kind, migration.up.path, migration.up.text) == (Kind.SQL, "m/007_add_users.sql", "SELECT 1;")
    assert migration.down is None
    assert len(migration.checksum) == 64


def test_migrations_are_ordered_as_numbers() -> None:
    assert versions(parsed("10_c.sql", "9_b.sql", "011_d.sql", "08_a.sql")) == ["8", "9", "10", "11"]


def test_a_down_file_goes_with_its_up() -> None:
    (migration,) = own.parse(files({"1_a.down.sql": "DROP TABLE a;", "1_a.sql": "CREATE TABLE a ();"})).migrations

    assert migration.down is not None
    assert (migration.down.path, migration.down.text) == ("m/1_a.down.sql", "DROP TABLE a;")


def test_the_way_down_is_no_part_of_the_checksum() -> None:
    alone = own.parse(files({"1_a.sql": "SELECT 1;"})).migrations[0]
    with_down = own.parse(files({"1_a.sql": "SELECT 1;", "1_a.down.sql": "SELECT 2;"})).migrations[0]

    assert alone.checksum == with_down.checksum


def test_a_python_file_goes_both_ways() -> None:
    (migration,) = own.parse(files({"1_a.py": UP})).migrations

    assert migration.kind is Kind.PYTHON
    assert migration.down == migration.up


@pytest.mark.parametrize("name", ["1_a", "1_größe", "1_a-b.c", "1_2", "000000000000000001_a", "20260101120000_a"])
def test_good_names_are_read(name: str) -> None:
    (migration,) = parsed(f"{name}.sql").migrations

    assert migration.name == name.partition("_")[2]


@pytest.mark.parametrize(
    "name",
    [
        "add_users.sql",
        "1.sql",
        "1_.sql",
        "_1_a.sql",
        "1-a.sql",
        "1 _a.sql",
        "1_a b.sql",
        "-1_a.sql",
        "1.5_a.sql",
        "v1_a.sql",
        "1_a.sql ",
        "1_a.sql\n",
        "1_.down.sql",
        "1_.py",
        "1_-a.sql",
        "setup.py",
        "1_a.SQL",
        "1_a;drop.sql",
        "1" * 19 + "_a.sql",
        "1_\udcff.sql",
    ],
)
def test_bad_names_are_refused_with_an_example(name: str) -> None:
    problem = problem_of(name)

    assert problem.path == f"m/{name}"
    assert "<digits>_<description>" in problem.message
    assert "rename" in problem.cure


@pytest.mark.parametrize(
    "name",
    ["1_a.up.sql", "1_a.Up.sql", "1_a.DOWN.sql", "1_a.down.py", "1_a.up.py", "1_a.up.down.sql", "1_a.down.down.sql"],
)
def test_a_wrong_way_to_write_the_direction_is_refused_with_the_right_one(name: str) -> None:
    (problem,) = problems_of({name: UP})

    assert problem.path == f"m/{name}"
    assert "direction" in problem.message
    assert all(ending in problem.cure for ending in (".sql", ".down.sql", ".py"))


@pytest.mark.parametrize("name", ["1_up.sql", "1_a_down.sql", "1_down.b.sql", "1_a.updown.sql", "1_shut-down.py"])
def test_a_direction_may_be_part_of_a_description(name: str) -> None:
    assert versions(own.parse(files({name: UP}))) == ["1"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("1_a.sql", "1_b.sql"), ("001_a.sql", "1_a.sql"), ("1_a.sql", "1_a.py"), ("01_a.down.sql", "1_a.down.sql")],
)
def test_two_files_with_one_version_are_refused_with_both_names(first: str, second: str) -> None:
    problems = problems_of({first: UP, second: UP} | ({"1_a.sql": ""} if "down" in first else {}))

    texts = [str(problem) for problem in problems]
    assert any(first in text and second in text for text in texts)
    assert any("another number" in problem.cure for problem in problems)


def test_three_files_with_one_version_are_two_problems() -> None:
    assert len(problems_of({"1_a.sql": "", "1_b.sql": "", "1_c.sql": ""})) == 2


def test_a_gap_is_a_warning_at_the_file_behind_it() -> None:
    catalogue = parsed("001_a.sql", "002_b.sql", "004_c.sql")

    (warning,) = catalogue.warnings
    assert versions(catalogue) == ["1", "2", "4"]
    assert warning.path == "m/004_c.sql"
    assert "gap" in warning.message
    assert warning.message.endswith(": 3")
    assert warning.cure


def test_each_gap_is_told_once() -> None:
    warnings = parsed("1_a.sql", "3_b.sql", "4_c.sql", "9_d.sql").warnings

    assert [warning.message.rpartition(": ")[2] for warning in warnings] == ["2", "5 to 8"]


def test_a_gap_is_a_problem_under_strict() -> None:
    (problem,) = problems_of({"1_a.sql": "", "3_b.sql": ""}, strict=True)

    assert problem.path == "m/3_b.sql"
    assert "gap" in problem.message


@pytest.mark.parametrize(
    "names",
    [
        ["20260101_a.sql", "20260401_b.sql"],
        ["20260101120000_a.sql", "20260401093000_b.sql"],
        ["1700000000_a.sql", "1800000000_b.sql"],
        ["1_a.sql", "2_b.sql", "20260401093000_c.sql"],
        ["10_a.sql", "20_b.sql", "50_c.sql"],
        ["10_a.sql", "15_b.sql", "20_c.sql", "30_d.sql"],
        ["10_a.sql", "15_b.sql", "18_c.sql", "50_d.sql"],
        ["5_a.sql", "6_b.sql"],
        ["0_a.sql", "1_b.sql"],
        ["00000001_a.sql", "00000002_b.sql"],
    ],
    ids=" ".join,
)
def test_a_series_of_tens_or_timestamps_has_no_gaps(names: list[str]) -> None:
    assert parsed(*names, strict=True).warnings == ()


@pytest.mark.parametrize(
    "names", [["10_a.sql", "11_b.sql", "20_c.sql", "21_d.sql", "23_e.sql"], ["8_a.sql", "9_b.sql", "20_c.sql"]]
)
def test_a_series_goes_by_tens_only_if_most_of_it_does(names: list[str]) -> None:
    assert len(parsed(*names).warnings) > 0


def test_leading_zeros_do_not_make_a_timestamp() -> None:
    assert len(parsed("00000001_a.sql", "00000003_b.sql").warnings) == 1


def test_a_down_file_without_its_up_is_refused() -> None:
    (problem,) = problems_of({"1_a.sql": "", "2_b.down.sql": ""})

    assert problem.path == "m/2_b.down.sql"
    assert "no up file" in problem.message


def test_a_down_file_of_another_name_is_refused_with_the_name_of_the_up() -> None:
    problem = problem_of("1_a.sql", "1_b.down.sql")

    assert problem.path == "m/1_b.down.sql"
    assert "m/1_a.sql" in problem.message


def test_a_down_file_beside_a_python_file_is_refused() -> None:
    (problem,) = problems_of({"1_a.py": UP, "1_a.down.sql": ""})

    assert problem.path == "m/1_a.down.sql"
    assert "async def down" in problem.cure


def test_all_problems_of_a_directory_are_told_at_once_in_order() -> None:
    problems = problems_of(
        {
            "001_a.sql": "-- Version: 2\n",
            "1_b.sql": "",
            "002_c.sql": b"\xff",
            "003_d.sql": b"SELECT\n'\0'",
            "004_e.sql": "-- pgratchet: no-transactions\n",
            "005_f.sql": "SELECT 1;\n-- pgratchet: no-transaction\n",
            "006_g.sql": "SELECT 1;\n\\i x\n",
            "007_h.sql": "COPY t FROM STDIN;\n1\n\\.\n",
            "008_i.sql": "SELECT 1;\nCOMMIT;\n",
            "009_j.sql": "SELECT 1;\nVACUUM;\n",
            "010_k.sql": "SELECT 'a",
            "011_l.py": "def up(connection): ...\n",
            "012_m.py": "async def up(\n",
            "013_n.py": "",
            "014_o.down.sql": "",
            "bad.sql": "",
            "1000_gap.sql": "",
        },
        strict=True,
    )

    assert len(problems) >= 17
    assert {problem.path for problem in problems} >= {
        "m/001_a.sql",
        "m/002_c.sql",
        "m/003_d.sql",
        "m/004_e.sql",
        "m/005_f.sql",
        "m/006_g.sql",
        "m/007_h.sql",
        "m/008_i.sql",
        "m/009_j.sql",
        "m/010_k.sql",
        "m/011_l.py",
        "m/012_m.py",
        "m/013_n.py",
        "m/014_o.down.sql",
        "m/1000_gap.sql",
        "m/bad.sql",
    }
    assert all(problem.message and problem.cure for problem in problems)
    assert [problem.path for problem in problems] == sorted(problem.path for problem in problems)


def test_a_file_that_cannot_be_read_is_the_only_problem() -> None:
    unreadable = {"2_b.sql": b"\xff", "4_d.down.sql": b"\0"}
    readable = {"1_a.sql": "", "2_b.down.sql": "", "3_c.sql": "", "4_d.sql": ""}
    problems = problems_of({**unreadable, **readable}, strict=True)

    assert [problem.path for problem in problems] == [f"m/{name}" for name in unreadable]


def test_a_python_file_that_cannot_be_read_is_one_problem() -> None:
    (problem,) = problems_of({"1_a.py": b"\xff"})

    assert "UTF-8" in problem.cure


def test_a_file_with_a_problem_in_its_head_is_read_to_its_end() -> None:
    problems = problems_of({"1_a.sql": "-- pgratchet: no_transaction\nCOMMIT;\n", "2_b.sql": "SELECT 'a"})

    assert [(problem.path, problem.line) for problem in problems] == [
        ("m/1_a.sql", 1),
        ("m/1_a.sql", 2),
        ("m/2_b.sql", 1),
    ]


def test_a_down_script_is_checked_too_where_the_directory_has_problems() -> None:
    problems = problems_of({"1_a.sql": "", "1_a.down.sql": "COMMIT;", "bad.sql": ""})

    assert [problem.path for problem in problems] == ["m/1_a.down.sql", "m/bad.sql"]


def test_scripts_are_not_checked_where_the_directory_has_no_problems() -> None:
    assert versions(own.parse(files({"1_a.sql": "COMMIT; \\i x"}))) == ["1"]


@pytest.mark.parametrize("content", [b"\r\n", b"\xef\xbb\xbf", b"-- nothing", b"", b"SELECT 1", b"SELECT 1;\r\n"])
def test_harmless_oddities_are_fine(content: bytes) -> None:
    assert versions(own.parse(files({"1_a.sql": content}), strict=True)) == ["1"]


def test_a_file_whose_version_is_taken_is_read_as_sql_all_the_same() -> None:
    problems = problems_of({"1_a.sql": b"SELECT 1", "1_b.sql": b"SELECT 'a"})

    assert [problem.path for problem in problems] == ["m/1_b.sql", "m/1_b.sql"]
