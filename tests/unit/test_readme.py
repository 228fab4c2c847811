import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")


def rows() -> list[list[str]]:
    lines = [line for line in README.splitlines() if re.match(r"\| G\d+ \|", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_guarantee_names_a_test_that_is_there() -> None:
    missing = [(number, test) for number, *_, test in rows() if not is_there(test.strip("`"))]

    assert missing == []


def test_each_guarantee_has_its_faults_its_tests_and_its_limits() -> None:
    head, *sections = re.split(r"^## (?=G\d)", GUARANTEES, flags=re.MULTILINE)

    assert [section.split(":")[0] for section in sections] == [row[0] for row in rows()]
    for section in sections:
        assert "| under | by |" in section
        assert "**Not promised.**" in section
        assert all(named(line) for line in section.splitlines() if re.match(r"\| (?!under)\w", line)), section
    assert [test for test in named(head) + named("".join(sections)) if not is_there(test)] == []


def named(text: str) -> list[str]:
    """Return the tests that a text names."""
    return re.findall(r"`(tests/[\w/.:]+)`", text)


def is_there(test: str) -> bool:
    path, _, name = test.partition("::")
    file = ROOT / path
    if not (path.startswith("tests/") and file.is_file()):
        return False
    return not name or bool(re.search(rf"(def|class) {name}\b", file.read_text(encoding="utf-8")))


def test_the_guarantees_are_numbered_without_a_gap() -> None:
    assert [row[0] for row in rows()] == [f"G{number}" for number in range(1, 11)]


def test_every_page_that_a_page_links_to_is_there() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    ]

    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []
