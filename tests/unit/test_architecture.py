"""The rules of the house that the source shows: imports, docstrings, printing, reasons behind ignores."""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "pgratchet"
SOURCE = ROOT / "src" / PACKAGE

FLOORS = (
    ("core", "version"),
    ("core.sql",),
    ("core.plan",),
    ("files", "postgres.link", "embedded"),
    ("postgres.ledger",),
    ("postgres.wire",),
    ("postgres.steps",),
    ("runs",),
    ("migrator",),
    ("web",),
    ("",),
    ("cli", "testing"),
    ("__main__",),
)
"""The rooms, from the ground up: each imports from itself and from floors below; "" is the package itself."""

HOMES = {"asyncpg": ("postgres",), "typer": ("cli",), "rich": ("cli", "runs.excerpts"), "pytest": ("testing",)}
"""Where alone a package may be imported; anyio may be anywhere but in core and files."""


@cache
def modules() -> Mapping[str, ast.Module]:
    """Return the trees of all modules by name, without the package's: "core.model", and "" for itself."""
    trees = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        name = "" if name == "__init__" else name.removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


@cache
def nodes(name: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(modules()[name]))


@cache
def imported(name: str) -> frozenset[str]:
    """Return the full names of what a module imports anywhere, inside functions and conditions too."""
    found: set[str] = set()
    for node in nodes(name):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno} of {name}"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def inner_imports(name: str) -> set[str]:
    """Return the modules of ours that a module imports."""
    found = set()
    for target in imported(name):
        if target.partition(".")[0] == PACKAGE:
            inner = target.removeprefix(PACKAGE).removeprefix(".")
            found.add(inner if inner in modules() else inner.rpartition(".")[0])
    return found


def outer_imports(name: str) -> set[str]:
    """Return the packages of others that a module imports, the standard library's aside."""
    packages = {target.partition(".")[0] for target in imported(name)}
    return packages - sys.stdlib_module_names - {PACKAGE}


def room_of(name: str) -> str:
    """Return the innermost room that a module is in, the module itself where it has none."""
    rooms = [room for floor in FLOORS for room in floor if room and is_below(name, room)]
    return max(rooms, key=len, default=name)


def floor_of(name: str) -> int | None:
    return next((number for number, floor in enumerate(FLOORS) if room_of(name) in floor), None)


def is_below(name: str, *folders: str) -> bool:
    return any(name == folder or name.startswith(f"{folder}.") for folder in folders)


@cache
def calls(name: str) -> tuple[tuple[str, str], ...]:
    """Return what a module calls, and where."""
    return tuple(
        (ast.unparse(node.func), f"{name}:{node.lineno}") for node in nodes(name) if isinstance(node, ast.Call)
    )


def library() -> list[str]:
    """Return the modules that an application imports: all but the command line."""
    return [name for name in modules() if not is_below(name, "cli", "__main__")]


def test_every_module_is_in_a_room() -> None:
    # A folder of rooms, which holds nothing itself.
    assert [name for name in modules() if floor_of(name) is None] == ["postgres"]
    assert inner_imports("postgres") == set()


def test_every_room_is_lived_in() -> None:
    assert {room for floor in FLOORS for room in floor} == {room_of(name) for name in modules()} - {"postgres"}


def test_imports_point_down() -> None:
    upward = [
        f"{name} -> {target}"
        for name in modules()
        for target in inner_imports(name)
        if room_of(name) != room_of(target) and not (floor_of(target) or 0) < (floor_of(name) or 0)
    ]

    assert upward == []


def test_the_page_about_the_house_draws_its_rooms_and_how_they_import() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = dict(re.findall(r'(\w+)\["([\w/.]+) ·', page))
    rooms = {node: path.removesuffix("/").removesuffix(".py").replace("/", ".") for node, path in drawn.items()}
    rooms = {node: "" if room == "__init__" else room for node, room in rooms.items()}
    arrows = re.findall(r"^ +(\w+)(?:\[.*?\])? --> (\w+)", page, re.MULTILINE)
    used = {(room_of(name), room_of(target)) for name in modules() for target in inner_imports(name)}

    assert sorted(rooms.values()) == sorted(room for floor in FLOORS for room in floor)
    assert len(arrows) >= len(rooms)
    assert [(above, below) for above, below in arrows if (rooms[above], rooms[below]) not in used] == []


def test_there_is_no_import_circle() -> None:
    left = {name: inner_imports(name) for name in modules()}
    while True:
        wanted = {target for targets in left.values() for target in targets}
        circle = {name: targets & left.keys() for name, targets in left.items() if name in wanted}
        circle = {name: targets for name, targets in circle.items() if targets}
        if circle == left:
            break
        left = circle

    assert sorted(left) == []


def test_the_core_imports_the_standard_library_and_itself() -> None:
    core = [name for name in modules() if is_below(name, "core")]

    assert len(core) > 5
    for name in core:
        assert outer_imports(name) == set(), name
        assert all(is_below(target, "core") for target in inner_imports(name)), name


def test_files_import_the_standard_library_and_the_core() -> None:
    for name in modules():
        if is_below(name, "files"):
            assert outer_imports(name) == set(), name
            assert all(is_below(target, "core", "files") for target in inner_imports(name)), name


@pytest.mark.parametrize(("package", "homes"), HOMES.items())
def test_a_package_is_imported_in_its_home_only(package: str, homes: tuple[str, ...]) -> None:
    strays = [name for name in modules() if package in outer_imports(name) and not is_below(name, *homes)]

    assert strays == []


def test_nothing_is_imported_that_is_not_asked_for_at_installation() -> None:
    packages = {package for name in modules() for package in outer_imports(name)}

    assert packages <= {"anyio", *HOMES}


def test_nothing_is_imported_for_the_type_checker_alone() -> None:
    strays = [name for name in modules() if "typing.TYPE_CHECKING" in imported(name)]

    assert strays == []


def public(node: ast.Module | ast.ClassDef) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the classes and functions that others may use, methods of such classes included."""
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public(child)


def test_everything_public_says_what_it_is_for() -> None:
    silent = [
        f"{name}.{each.name}" for name, tree in modules().items() for each in public(tree) if not documented(each)
    ]

    assert silent == []
    assert [name for name, tree in modules().items() if not documented(tree)] == []


def documented(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return bool(ast.get_docstring(node, clean=False))


def test_our_own_sql_goes_through_one_door() -> None:
    asking = re.compile(r"(?!own\.).*\.(fetch|fetchrow|fetchval|execute|executemany|prepare|cursor|copy_\w+)")

    assert {place.partition(":")[0] for name in modules() for call, place in calls(name) if asking.fullmatch(call)} == {
        "postgres.link.own"
    }


def test_only_a_layout_takes_a_version_for_a_number() -> None:
    number = re.compile(r"\bint\([^()]*\b(version|floor|to)\b|\.number\b|key=int\b")
    found = {name for name, tree in modules().items() if number.search(ast.unparse(tree))}

    assert found == {"files.layouts.own"}


def test_only_the_list_of_layouts_names_one() -> None:
    assert [name for name in modules() if "files.layouts.own" in inner_imports(name)] == ["files.layouts"]


def test_the_library_neither_prints_nor_exits_and_one_module_writes_to_stderr() -> None:
    forbidden = {"print", "exit", "quit", "sys.exit", "os._exit", "SystemExit", "input", "sys.stdout.write"}
    forbidden |= {"warnings.warn", "breakpoint"}

    assert [place for name in library() for call, place in calls(name) if call in forbidden] == []
    assert {name for name in library() for call, _ in calls(name) if call == "sys.stderr.write"} == {"web.voice"}


def test_the_library_leaves_logging_alone() -> None:
    forbidden = re.compile(r"logging\.(basicConfig|config\b.*|disable|captureWarnings)|.*\.(setLevel|addHandler)")

    assert [place for name in library() for call, place in calls(name) if forbidden.match(call)] == []


def test_one_module_of_the_library_handles_signals() -> None:
    handling = re.compile(r"signal\.(signal|set_wakeup_fd|setitimer)|.*\.add_signal_handler")

    assert {name for name in library() for call, _ in calls(name) if handling.match(call)} == {"web.interruption"}


def test_the_library_logs_under_one_name() -> None:
    loggers = {
        ast.unparse(node)
        for name in library()
        for node in nodes(name)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger"
    }

    assert loggers == {f"logging.getLogger('{PACKAGE}')"}


def comments(path: Path, pattern: re.Pattern[str]) -> Iterator[tokenize.TokenInfo]:
    """Yield the comments of a file that hold a match; what only looks like one, in a string, is none."""
    text = path.read_text(encoding="utf-8")
    if pattern.search(text):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and pattern.search(token.string):
                yield token


def unreasoned(path: Path) -> Iterator[str]:
    """Yield what switches a checker off without a reason: behind a dash, or in the comment line above."""
    reasoned = r"(noqa: [A-Z0-9, ]+|type: ignore\[[\w, -]+\]|pragma: no cover)\s+[#-] \S"
    pattern = re.compile(rf"#\s*(?!{reasoned})(noqa|type:\s*ignore|pragma|ruff:|mypy:)")
    lines = path.read_text(encoding="utf-8").splitlines()
    for token in comments(path, pattern):
        above = lines[token.start[0] - 2].strip() if token.start[0] > 1 else ""
        if not above.startswith("#"):
            yield f"{path.relative_to(ROOT)}:{token.start[0]}"


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "examples", "migrations"])
def test_a_checker_is_switched_off_for_a_reason(folder: str) -> None:
    assert [place for path in sorted((ROOT / folder).rglob("*.py")) for place in unreasoned(path)] == []


def test_there_are_no_banners() -> None:
    banner = re.compile(r"#\s*([-=#*~_])\1{3,}")
    found = [
        f"{path.relative_to(ROOT)}:{token.start[0]}"
        for folder in ("src", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for token in comments(path, banner)
    ]

    assert found == []
