"""Every page: its links lead somewhere, its commands and its code can be read by those for whom they are."""

import ast
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import typer
import yaml

import pgratchet
from pgratchet import Readiness
from pgratchet.cli import program
from pgratchet.cli.commands import COMMANDS
from tests.pages import PAGES, ROOT, Block, anchors, blocks, commands, links, parsed, prose, signature, spans
from tests.serving.processes import SERVERS
from tests.support import missing

LANGUAGES = {"json", "mermaid", "python", "sh", "sql", "text", "toml", "yaml"}
BLOCKS = [block for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_are_there(page: str) -> None:
    lost = [
        f"{path}#{anchor}"
        for path, anchor in links(page)
        if not (ROOT / path).exists() or (anchor and anchor not in anchors(path))
    ]

    assert lost == []


def test_links_are_found_and_headings_have_the_names_that_github_gives_them() -> None:
    found = [link for page in PAGES for link in links(page)]

    assert len(found) > 60
    assert ("docs/production.md", "roles-and-rights") in found
    assert {"roles-and-rights", "an-older-image-on-a-newer-schema"} <= anchors("docs/production.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_below_docs_is_linked_from_the_readme(page: str) -> None:
    assert not page.startswith("docs/") or page in {path for path, _ in links("README.md")}


OURS = re.compile(r"((?:docs|examples|model|src|tests|benchmarks)/[\w/.-]*\w)(?:::([\w:]+))?")


@pytest.mark.parametrize("page", PAGES)
def test_every_path_of_ours_that_a_page_names_is_there(page: str) -> None:
    found = [match for span in spans(page) if (match := OURS.fullmatch(span))]

    assert [match[0] for match in found if not (ROOT / match[1]).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_says_its_language(page: str) -> None:
    assert prose(page).count("```") == 0
    assert [block.first for block in blocks(page) if block.language not in LANGUAGES] == []


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in {"json", "toml", "yaml"}])
def test_every_block_of_data_can_be_read(block: Block) -> None:
    match block.language:
        case "json":
            assert json.loads(block.text)
        case "toml":
            assert tomllib.loads(block.text)
        case _:
            assert yaml.safe_load(block.text)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"])
def test_every_shell_block_is_one_for_a_shell(block: Block) -> None:
    done = subprocess.run(["/bin/sh", "-n"], input=block.text, capture_output=True, text=True, check=False)

    assert done.stderr == ""


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"])
def test_every_block_of_python_is_python(block: Block) -> None:
    if shown := signature(block):
        told = inspect.signature(eval(f"lambda {ast.unparse(shown.args)}: ...", {**vars(pgratchet)}))  # noqa: S307 - our own page
        real = inspect.signature(getattr(pgratchet, shown.name))
        assert [*told.parameters] == [*real.parameters]
        for name, parameter in told.parameters.items():
            assert parameter.kind is real.parameters[name].kind, name
            assert parameter.default in {real.parameters[name].default, ...}, name
    else:
        compile(block.text, block.page, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_pgratchet_on_a_page_is_one_that_it_takes(page: str) -> None:
    for command in commands(page):
        # A command without anything behind it is only named.
        assert parsed(command) if len(command) > 2 else command[1] in COMMANDS, command


def test_commands_are_found_in_lines() -> None:
    found = {shlex.join(command) for page in PAGES for command in commands(page)}

    assert {"pgratchet up", "pgratchet down --to 41", "pgratchet up --allow-late"} <= found


GROUP: Any = typer.main.get_command(program.app)


def options(command: str) -> dict[str, list[str]]:
    """Return the options of a command, each with the variables that it reads."""
    chosen = GROUP.get_command(GROUP.make_context("pgratchet", [command]), command)
    parameters = {parameter.opts[0]: parameter.envvar for parameter in chosen.params}
    return {name: [found] if isinstance(found, str) else list(found or ()) for name, found in parameters.items()}


def test_the_synopsis_has_every_command_its_options_and_what_it_says_of_itself() -> None:
    (block,) = blocks("docs/command-line.md", "text")
    lines = [re.split(r"  +", line) for line in block.text.splitlines()]
    words = [line[0].split() for line in lines]

    assert [name for _, name, *_ in words] == list(COMMANDS)
    for (_, name, *_), line in zip(words, lines, strict=True):
        assert set(re.findall(r"--[a-z-]+", " ".join(line[:-1]))) <= set(options(name))
        assert line[-1].lower() == str(COMMANDS[name].__doc__).rstrip(".").replace("`", "").lower()


def test_the_table_of_settings_has_every_option_that_a_variable_sets() -> None:
    rows = re.findall(r"^\| `(--[a-z-]+)`[^|]*\| ([^|]*) \| `(\w+)` \|", PAGES["docs/command-line.md"], re.MULTILINE)
    told = {flag: re.findall(r"`(\w+)`", variables) for flag, variables, _ in rows}
    real = {flag: variables for command in COMMANDS for flag, variables in options(command).items() if variables}

    assert told == real
    assert {f"PGRATCHET_{setting.upper()}" for *_, setting in rows} == {variables[0] for variables in real.values()}


def test_every_option_that_the_page_of_the_command_line_names_is_there() -> None:
    told = {word for span in spans("docs/command-line.md") for word in re.findall(r"^--[a-z-]+", span)}
    real = {name for command in COMMANDS for name in options(command)} | {each.opts[0] for each in GROUP.params}

    assert len(told) > 20
    assert told - real == set()


def test_every_target_of_make_on_a_page_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z%-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(
        [*PAGES.values(), *((ROOT / name).read_text() for name in (".ci/run", ".github/workflows/ci.yml"))]
    )
    found = re.findall(r"(?:^|`|run: )make ([a-z0-9 -]+)", text, re.MULTILINE)
    words = {word for targets in found for word in targets.split()}
    called = {re.sub(r"\d+", "%", word) for word in words if not word.startswith("-")}

    assert {"demo", "test", "lint", "types", "bench", "chaos", "model", "clean"} <= targets
    assert called <= targets


def made(target: str) -> str:
    """Return the commands that make runs for a target, without what only keeps them quiet or makes them fast."""
    if shutil.which("make") is None:
        missing("make is not installed")
    command = ["make", "--dry-run", "--always-make", *shlex.split(target)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return re.sub(
        r" --(quiet|disable-pip-version-check|no-compile|numprocesses \d+|dist worksteal)\b| \|\| \{.*| +$",
        "",
        re.sub(r"(PGRATCHET_POSTGRES_BIN=)\S+ \\\s+", r"\1... ", output),
        flags=re.MULTILINE,
    )


def test_the_demo_without_make_is_what_make_runs() -> None:
    (block,) = (block for block in blocks("README.md", "sh") if block.first == "python3 -m venv .venv")

    assert [line for line in block.text.splitlines() if line not in made("demo").splitlines()] == []


CONTRIBUTING = [
    [re.findall("`([^`]+)`", cell) for cell in re.split(r"(?<!\\)\|", line)[2:4]]
    for line in PAGES["CONTRIBUTING.md"].splitlines()
    if re.match(r"\| [a-z]", line)
]


@pytest.mark.parametrize(("with_make", "without"), CONTRIBUTING)
def test_a_command_of_the_contributors_without_make_is_what_make_runs(with_make: list[str], without: list[str]) -> None:
    targets = [command.removeprefix("make ") for command in with_make] or ["test"]

    assert {line for line in without if line not in made(targets[0]).splitlines()} == set()


def test_the_table_of_the_contributors_is_read() -> None:
    assert sum(bool(without) for _, without in CONTRIBUTING) > 8


def test_each_method_of_the_api_page_has_the_arguments_that_it_shows() -> None:
    calls = re.findall(r"^\| `await (\w+)(\(.*?\))` \|", PAGES["docs/python-api.md"], re.MULTILINE)

    assert len(calls) > 8
    for name, arguments in calls:
        real = inspect.signature(getattr(pgratchet.Migrator, name))
        told = inspect.signature(eval(f"lambda self, {arguments[1:-1]}: ..."))  # noqa: S307 - our own page
        assert [*told.parameters] == [*real.parameters], name
        assert [each.default for each in told.parameters.values()] == [
            each.default for each in real.parameters.values()
        ], name


def test_the_readiness_of_the_api_page_has_every_field() -> None:
    shown = [json.loads(block.text) for block in blocks("docs/python-api.md", "json")]

    assert [each for each in shown if tuple(each) != Readiness._fields] == []


def test_each_command_line_of_a_server_is_one_that_is_started_in_the_tests() -> None:
    cells = re.findall(r"^\|[^|`]*\| `([^`]+)` \|", PAGES["docs/servers.md"], re.MULTILINE)
    lines = [cell.replace("...", cells[0]) for cell in cells]
    started = [
        {*shlex.split(f"{server.command} {server.flags}".format(app="app:app", port=0, folder="src"))}
        for server in SERVERS.values()
    ]

    assert len(lines) > 6
    # The number of workers and the folders to watch are the reader's.
    free = {"--workers", "4", "--reload-dir", "src", "migrations"}
    assert [line for line in lines if not any({*line.split()} - free <= words for words in started)] == []


def test_a_benchmark_has_the_options_that_its_page_gives() -> None:
    (block,) = blocks("benchmarks/README.md", "sh")
    _, script, *arguments = shlex.split(block.text)
    command = [sys.executable, str(ROOT / script), "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert [word for word in arguments if word.startswith("--") and word not in told] == []
