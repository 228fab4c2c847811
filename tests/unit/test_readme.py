import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows() -> list[list[str]]:
    lines = [line for line in README.splitlines() if re.match(r"\| G\d+ \|", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_guarantee_names_a_test_that_is_there() -> None:
    missing = []
    for number, *_, test in rows():
        path, _, name = test.strip("`").partition("::")
        file = ROOT / path
        defined = file.is_file() and (not name or re.search(rf"(def|class) {name}\b", file.read_text(encoding="utf-8")))
        if not (path.startswith("tests/") and defined):
            missing.append((number, test))

    assert missing == []


def test_the_guarantees_are_numbered_without_a_gap() -> None:
    assert [row[0] for row in rows()] == [f"G{number}" for number in range(1, 10)]


def test_every_page_that_a_page_links_to_is_there() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    ]

    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []
