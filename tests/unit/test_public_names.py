import ast
import importlib.metadata
import inspect
import re
from pathlib import Path

import pytest

import pgratchet
from pgratchet.core import errors

SOURCE = Path(pgratchet.__file__).parent
EXAMPLES = Path(__file__).parents[2] / "examples"


def imported_names() -> set[str]:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_what_is_imported_is_what_is_public() -> None:
    assert set(pgratchet.__all__) == imported_names()


def test_the_public_names_are_sorted_and_told_once() -> None:
    assert pgratchet.__all__ == sorted(set(pgratchet.__all__))


def test_every_public_name_is_there() -> None:
    assert [name for name in pgratchet.__all__ if not hasattr(pgratchet, name)] == []


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
