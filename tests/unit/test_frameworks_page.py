import ast
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests.pages import PAGES, ROOT, blocks

PAGE = "docs/frameworks.md"
PROGRAMS = str(Path(sys.executable).parent)
RECIPES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "examples" / "frameworks").glob("*.py")}


def test_every_recipe_on_the_page_is_a_file_as_it_is_and_every_file_is_on_the_page() -> None:
    assert sorted(block.text for block in blocks(PAGE, "python")) == sorted(RECIPES.values())


def test_every_framework_in_the_table_has_its_section() -> None:
    linked = re.findall(r"\]\(#([\w-]+)\)", PAGES[PAGE])
    sections = [title.lower().replace(" ", "-") for title in re.findall(r"^## (.*)$", PAGES[PAGE], flags=re.MULTILINE)]

    assert linked == sections[: len(linked)]
    assert len(linked) == len(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_each_command_of_a_recipe_starts_an_installed_program_with_something_that_is_in_it(name: str) -> None:
    tree = ast.parse(RECIPES[name])
    commands = [shlex.split(command) for command in re.findall("`([^`]+)`", str(ast.get_docstring(tree)))]
    targets = [re.split("[:.]", command[-1]) for command in commands]
    defined = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    defined |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}

    assert commands
    assert [command[0] for command in commands if shutil.which(command[0], path=PROGRAMS) is None] == []
    assert [target for target in targets if target[0] != name or target[1] not in {*defined, "py"}] == []
