import inspect
from enum import Enum

import pytest

from pgratchet.core import model
from pgratchet.core.model import Entry, Problem, State

NOUNS = [kind for _, kind in inspect.getmembers(model, inspect.isclass) if kind.__module__ == model.__name__]
VALUES = [kind for kind in NOUNS if not issubclass(kind, Enum)]


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
def test_every_noun_is_a_value_that_cannot_be_changed(kind: type) -> None:
    assert issubclass(kind, tuple)
    assert vars(kind)["__slots__"] == ()


@pytest.mark.parametrize(
    ("line", "expected"), [(None, "m/1_a.sql: a gap; fill it"), (3, "m/1_a.sql:3: a gap; fill it")]
)
def test_a_problem_reads_as_place_message_and_cure(line: int | None, expected: str) -> None:
    assert str(Problem("m/1_a.sql", "a gap", "fill it", line)) == expected


def test_an_entry_without_either_side_has_no_name() -> None:
    assert Entry("1", State.PENDING).name == ""
