import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages import PAGES, ROOT, blocks, prose

SOURCE = ROOT / "src" / "pgratchet"
README, GUARANTEES = PAGES["README.md"], PAGES["docs/guarantees.md"]


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
        assert "| case | test |" in section
        assert "**Not promised.**" in section
        assert all(named(line) for line in section.splitlines() if re.match(r"\| (?!case)\w", line)), section
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


def test_the_guarantees_keep_their_numbers() -> None:
    # G11 and G12 are promises that are not built yet.
    assert [row[0] for row in rows()] == [f"G{number}" for number in (*range(1, 11), 13)]


PAGES_OF_CODE = ("architecture.md", "layouts.md", "protocol.md")
"""The pages that name our files by their paths below the package, or below one of these folders."""

FOLDERS = ("docs/", "examples/", "model/", "src/", "tests/")
IS_PATH = re.compile(r"[\w/.-]+(/|\.(py|md|pml))")
IS_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


def quoted(page: str) -> Iterator[list[str]]:
    """Yield the words in backticks of each line outside blocks of code; of a table's line, those of each cell."""
    for line in prose(f"docs/{page}").splitlines():
        for cell in line.split("|") if line.startswith("|") else [line]:
            yield re.findall(r"`([^`]+)`", cell)


def place(path: str) -> Path:
    return ROOT / path if path.startswith(FOLDERS) else SOURCE / path


def defined(file: Path) -> set[str]:
    """Return the names that a module defines, those in its classes with the name of the class before them."""

    def names(nodes: list[ast.stmt], prefix: str = "") -> Iterator[str]:
        for node in nodes:
            match node:
                case ast.ClassDef(name=name):
                    yield prefix + name
                    yield from names(node.body, f"{prefix}{name}.")
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    yield prefix + name
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    yield prefix + name

    return set(names(ast.parse(file.read_text(encoding="utf-8")).body))


@pytest.mark.parametrize("page", PAGES_OF_CODE)
def test_every_path_that_a_page_about_the_code_names_is_there(page: str) -> None:
    paths = {word for words in quoted(page) for word in words if IS_PATH.fullmatch(word)}

    assert paths
    assert [path for path in sorted(paths) if not place(path).exists()] == []


def test_every_name_behind_a_path_in_a_table_about_the_code_is_defined_there() -> None:
    missing, count = [], 0
    for words in quoted("architecture.md"):
        path = ""
        for word in words:
            if IS_PATH.fullmatch(word):
                path = word
            elif path.endswith(".py") and place(path).is_file() and IS_NAME.fullmatch(word):
                count += 1
                missing += [] if word in defined(place(path)) else [f"{path} {word}"]

    assert missing == []
    assert count > 50


def test_the_example_of_a_layout_is_the_one_that_is_tested() -> None:
    tested = (ROOT / "tests" / "integration" / "test_layouts.py").read_text(encoding="utf-8")
    name, example = blocks("docs/layouts.md", "python")[-1].text.split("\n\n\n")

    assert "def parse" in example
    assert name in tested
    assert example in re.sub("  # noqa.*", "", tested)


def test_the_tutorial_quotes_messages_as_the_code_has_them() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    quoted_messages = re.findall(r"^- \*([^*]+)\*", PAGES["docs/tutorial.md"], re.MULTILINE)

    assert len(quoted_messages) == 3
    # A string that goes on in the next line is one string.
    assert [text for text in quoted_messages if text not in re.sub(r'"\s*\n\s*f?"', "", code)] == []
