"""The table of transitions is the only home of the states that our SQL writes, and the model has the same names."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from pgratchet.core.model import RecordState
from pgratchet.postgres.ledger.transitions import TRANSITIONS

ROOT = Path(__file__).parents[2]
MODEL = (ROOT / "model" / "protocol.pml").read_text(encoding="utf-8")
POSTGRES = ROOT / "src" / "pgratchet" / "postgres"


def test_the_model_names_exactly_the_transitions_of_the_table() -> None:
    modelled = set(re.findall(r"/\* transition: ([a-z ]+?) \*/", MODEL))
    left_out = re.search(r"Not modelled: ([^.]+)\.", MODEL)
    assert left_out is not None
    not_modelled = [name.strip(" *\n") for name in re.sub(r"\n \* ", " ", left_out[1]).split(",")]

    assert sorted([*modelled, *not_modelled]) == sorted(transition.name for transition in TRANSITIONS)


def test_every_state_is_reached_and_left_by_a_transition() -> None:
    assert {transition.after for transition in TRANSITIONS} == {*RecordState, None}
    assert {state for transition in TRANSITIONS for state in transition.before} == {*RecordState, None}


def test_no_sql_of_ours_writes_a_state_outside_the_table() -> None:
    writing = re.compile(r"(INSERT INTO|UPDATE|DELETE FROM) \{[\w.]*table\.quoted\}")
    texts = {path.name: path.read_text(encoding="utf-8") for path in POSTGRES.rglob("*.py")}

    assert {name for name, text in texts.items() if writing.search(text)} == {"records.py", "history.py"}
    assert {value for value in new_states(texts["records.py"]) if "row." not in value} == {
        "CLAIM.value",
        "FAIL.value",
        "RECORD.value",
        "transition.value",
    }
    # The condition that a version is applied.
    assert named_states(texts["records.py"]) == ["RecordState.APPLIED"]
    assert named_states(texts["history.py"]) == []


def new_states(text: str) -> Iterator[str]:
    """Yield the expressions for the value of the column `state`, in dicts of values and of conditions."""
    for node in ast.walk(ast.parse(text)):
        pairs: list[tuple[ast.expr | None, ast.expr]] = []
        if isinstance(node, ast.Dict):
            pairs = list(zip(node.keys, node.values, strict=True))
        elif isinstance(node, ast.Assign):
            pairs = [(target.slice, node.value) for target in node.targets if isinstance(target, ast.Subscript)]
        yield from (
            ast.unparse(value) for key, value in pairs if isinstance(key, ast.Constant) and key.value == "state"
        )


def named_states(text: str) -> list[str]:
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "RecordState"
    ]
