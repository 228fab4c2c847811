import re

from tests.pages import PAGES, ROOT, blocks

PAGE = "docs/frameworks.md"
RECIPES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "examples" / "frameworks").glob("*.py")}


def test_every_recipe_on_the_page_is_a_file_as_it_is_and_every_file_is_on_the_page() -> None:
    assert sorted(block.text for block in blocks(PAGE, "python")) == sorted(RECIPES.values())


def test_every_framework_in_the_table_has_its_section() -> None:
    linked = re.findall(r"\]\(#([\w-]+)\)", PAGES[PAGE])
    sections = [title.lower().replace(" ", "-") for title in re.findall(r"^## (.*)$", PAGES[PAGE], flags=re.MULTILINE)]

    assert linked == sections[: len(linked)]
    assert len(linked) == len(RECIPES)
