"""The pages of the documentation: their blocks of code, their headings and the commands in their lines."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import typer

from pgratchet.cli import program

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in (".", "docs", "benchmarks", "migrations", "model")
    for path in sorted((ROOT / folder).glob("*.md"))
}
"""Each page by its path."""

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>.*)\n(?P<text>(?:.*\n)*?)(?P=indent)```$", re.MULTILINE)
_PATH = re.compile(r"(?:#|--) (\S+\.\w+)\n")


class Block(NamedTuple):
    """A block of code on a page."""

    page: str
    language: str
    text: str

    @property
    def first(self) -> str:
        """The first line."""
        return self.text.partition("\n")[0]

    @property
    def path(self) -> str | None:
        """The path of the file that the block shows, which is a comment of its own in the first line."""
        found = _PATH.match(self.text)
        return found and found[1]

    @property
    def content(self) -> str:
        """The text below that comment."""
        return _PATH.sub("", self.text, count=1)


def blocks(page: str, *languages: str) -> list[Block]:
    """Return the blocks of a page in their order; all of them, or those in these languages."""
    found = [Block(page, block["language"], dedent(block["text"])) for block in _BLOCK.finditer(PAGES[page])]
    return [block for block in found if not languages or block.language in languages]


def prose(page: str) -> str:
    """Return a page without its blocks."""
    return _BLOCK.sub("", PAGES[page])


def spans(page: str) -> list[str]:
    """Return the pieces of code in the lines of a page."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: str) -> set[str]:
    """Return the names by which a link reaches the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: str) -> Iterator[tuple[str, str]]:
    """Yield the paths, from the root, and the anchors to which a page links."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        if ":" not in path:
            yield str((ROOT / page).parent.joinpath(path).resolve().relative_to(ROOT)) if path else page, anchor


def commands(page: str) -> Iterator[list[str]]:
    """Yield the words of each command of pgratchet that a page has in its lines."""
    for span in spans(page):
        if re.match("pgratchet [a-z]", span):
            yield shlex.split(span)


def signature(block: Block) -> ast.FunctionDef | None:
    """Return the signature that a block shows in the place of code: one with a bare `*`, which no call has."""
    if not re.search(r"^ *\*,$|\w, \*, ", block.text, re.MULTILINE):
        return None
    (found,) = ast.parse(f"def {block.text.rstrip()}: ...").body
    assert isinstance(found, ast.FunctionDef)
    return found


def parsed(command: list[str]) -> Any:
    """Return what the command line makes of a command; raises for one that it would refuse."""
    name, verb, *arguments = command
    assert name == "pgratchet"
    group: Any = typer.main.get_command(program.app)
    chosen = group.get_command(group.make_context(name, [verb]), verb)
    return chosen, chosen.make_context(verb, list(arguments)).params
