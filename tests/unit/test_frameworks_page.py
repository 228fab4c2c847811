import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
RECIPES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "examples" / "frameworks").glob("*.py")}


def test_every_recipe_on_the_page_is_a_file_as_it_is_and_every_file_is_on_the_page() -> None:
    shown = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)

    assert sorted(shown) == sorted(RECIPES.values())


def test_every_framework_in_the_table_has_its_section() -> None:
    linked = re.findall(r"\]\(#([\w-]+)\)", PAGE)
    sections = [title.lower().replace(" ", "-") for title in re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE)]

    assert linked == sections[: len(linked)]
    assert len(linked) == len(RECIPES)
