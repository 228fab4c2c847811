import ast
import importlib.metadata
import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import pytest

import pgratchet
from pgratchet.core import errors

SOURCE = Path(pgratchet.__file__).parent
EXAMPLES = Path(__file__).parents[2] / "examples"
PAGE = (EXAMPLES.parent / "docs" / "python-api.md").read_text(encoding="utf-8")


def imported_names() -> set[str]:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_the_package_imports_exactly_its_public_names() -> None:
    assert set(pgratchet.__all__) == imported_names()


def test_the_public_names_are_sorted_and_told_once() -> None:
    assert pgratchet.__all__ == sorted(set(pgratchet.__all__))


def hints_of(thing: Any) -> Iterator[Any]:
    """Yield the annotations of a function or a class: of its fields, its methods and its properties."""
    yield from get_type_hints(thing).values()
    if inspect.isclass(thing):
        for name, member in vars(thing).items():
            called = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if inspect.isfunction(called) and (name == "__init__" or not name.startswith("_")):
                yield from hints_of(called)
        yield from (base for base in thing.__mro__[1:] if is_ours(base))


def is_ours(thing: Any) -> bool:
    return inspect.isclass(thing) and thing.__module__.partition(".")[0] == pgratchet.__name__


def classes_in(hint: Any) -> Iterator[type]:
    """Yield the classes of ours in an annotation: in unions, containers and callables, too."""
    if is_ours(hint):
        yield hint
    for part in hint if isinstance(hint, list) else get_args(hint):
        yield from classes_in(part)


def reachable(things: Iterable[Any]) -> set[type]:
    """Return the classes of ours that the annotations of things lead to."""
    found: set[type] = set()
    to_follow = list(things)
    while to_follow:
        thing = to_follow.pop()
        new = {kind for hint in hints_of(thing) for kind in classes_in(hint)} - found
        found |= new
        to_follow += new
    return found


def test_everything_that_a_public_value_leads_to_is_public() -> None:
    public = [getattr(pgratchet, name) for name in pgratchet.__all__]
    followed = [each for each in public if inspect.isclass(each) or inspect.isfunction(each)]
    found = reachable(followed)

    assert {pgratchet.Migration, pgratchet.RecordState, pgratchet.Segment, pgratchet.Traversable} <= found
    assert found - set(followed) == set()


def test_every_public_name_and_every_member_of_an_enum_is_explained() -> None:
    quoted = re.findall(r"```.*?```|`[^`]+`", PAGE, re.DOTALL)
    explained = {text.strip("`") for text in quoted} | set(re.findall(r"[\w-]+", " ".join(quoted)))
    public = {name: getattr(pgratchet, name) for name in pgratchet.__all__}
    enums = [each for each in public.values() if inspect.isclass(each) and issubclass(each, StrEnum)]
    members = {str(member) for each in enums for member in each}

    assert len(enums) > 5
    assert (set(public) | members) - explained == set()


@pytest.mark.parametrize("name", ["Migrator", "migrated"])
def test_every_argument_is_explained_in_its_order(name: str) -> None:
    (call,) = re.findall(rf"^{name}\(\n(.*?)^\)", PAGE, re.DOTALL | re.MULTILINE)

    assert re.findall(r"^    (\w+)=", call, re.MULTILINE) == [
        parameter for parameter in inspect.signature(getattr(pgratchet, name)).parameters if parameter != "migrator"
    ]


def test_annotations_are_followed_through_whatever_holds_a_class() -> None:
    class Inner(NamedTuple):
        state: pgratchet.State | None

    class OuterError(Exception):
        part: tuple[pgratchet.Step, ...]

        def __init__(self, kind: "Sequence[pgratchet.Kind]") -> None:
            self.kind = kind

        @property
        def call(self) -> Callable[[pgratchet.Plan], Awaitable[Mapping[str, pgratchet.Lock]]]:
            raise AssertionError

        @classmethod
        def make(cls) -> Iterator[pgratchet.Problem]:
            raise AssertionError

        def _hidden(self) -> pgratchet.Readiness:
            raise AssertionError

    async def work(_: type[pgratchet.Failure]) -> Annotated[pgratchet.Verdict, "why"]:
        raise AssertionError

    met = reachable([Inner, OuterError, work])

    for name in ("State", "Step", "Source", "Segment", "Kind", "Plan", "Lock", "Problem", "Failure", "Verdict"):
        assert getattr(pgratchet, name) in met
    assert pgratchet.Readiness not in met


def test_examples_take_everything_from_the_package_itself() -> None:
    examples = {path.name: path.read_text(encoding="utf-8") for path in EXAMPLES.rglob("*.py")}
    inner = re.compile(r"^\s*(from|import) pgratchet\.", re.MULTILINE)

    assert "app.py" in examples
    assert [name for name, text in examples.items() if inner.search(text)] == []


def test_every_error_is_public() -> None:
    raised = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)}

    assert raised <= set(pgratchet.__all__)


def test_the_version_is_the_installed_one() -> None:
    assert pgratchet.__version__ == importlib.metadata.version("pgratchet")


def test_the_package_is_typed() -> None:
    assert (SOURCE / "py.typed").exists()


def test_a_migrator_has_the_verbs_of_the_command_line() -> None:
    verbs = {
        name for name, kind in inspect.getmembers(pgratchet.Migrator, inspect.isfunction) if not name.startswith("_")
    } - {"serving"}

    assert {"up", "down", "redo", "status", "check", "wait", "plan", "adopt", "repair"} <= verbs
    assert all(inspect.iscoroutinefunction(getattr(pgratchet.Migrator, verb)) for verb in verbs)


@pytest.mark.parametrize("verb", ["up", "down", "plan"])
def test_a_version_may_be_left_out(verb: str) -> None:
    assert inspect.signature(getattr(pgratchet.Migrator, verb)).parameters["to"].default is None


def test_a_password_is_in_no_representation() -> None:
    migrator = pgratchet.Migrator("postgresql://user:secret@localhost/db", "m")

    assert "secret" not in repr(migrator)
    assert "secret" not in str(vars(migrator))
