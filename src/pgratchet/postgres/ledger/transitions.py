"""The states of a history row, and each way from one to another: no SQL of ours writes a state in any other way.

The model (`model/protocol.pml`) names the same transitions. A write that keeps the state, such as a count, a mark or
an error, is no transition.
"""

from enum import StrEnum
from typing import NamedTuple

from pgratchet.core.model import RecordState
from pgratchet.postgres.link.sql import EQ, literal


class Who(StrEnum):
    """The writer of a transition, always under the lock."""

    RUNNER = "a run, of a version that it claims"
    PERSON = "a person, by repair or adopt"


class Transition(NamedTuple):
    """One change of a row's state; None in `before` or `after` stands for no row.

    `condition` is the SQL condition that a row is in a state of `before`; `value` is the SQL of the state `after`.
    """

    name: str
    before: frozenset[RecordState | None]
    after: RecordState | None
    who: Who
    condition: str
    value: str


def _transition(name: str, before: set[RecordState | None], after: RecordState | None, who: Who) -> Transition:
    states = ",".join(sorted(state for state in before if state))
    condition = f"state {EQ} ANY ('{{{states}}}'::pg_catalog.text[])"
    return Transition(name, frozenset(before), after, who, condition, literal(after))


_RUNNING, _APPLIED, _FAILED = RecordState.RUNNING, RecordState.APPLIED, RecordState.FAILED
_REVERTING, _PENDING = RecordState.REVERTING, RecordState.PENDING

CLAIM = _transition("claim", {None, _FAILED, _PENDING}, _RUNNING, Who.RUNNER)
RESUME = _transition("resume", {_RUNNING, _FAILED}, _RUNNING, Who.RUNNER)
RECORD = _transition("record", {_RUNNING}, _APPLIED, Who.RUNNER)
FAIL = _transition("fail", {None, _RUNNING, _FAILED, _PENDING}, _FAILED, Who.RUNNER)
REVERT = _transition("revert", {_APPLIED}, _REVERTING, Who.RUNNER)
RESUME_REVERT = _transition("resume revert", {_REVERTING}, _REVERTING, Who.RUNNER)
REMOVE = _transition("remove", {_REVERTING}, None, Who.RUNNER)
SETTLE_APPLIED = _transition("settle as applied", {None, _RUNNING, _FAILED, _REVERTING, _PENDING}, _APPLIED, Who.PERSON)
SETTLE_NOT_APPLIED = _transition(
    "settle as not applied", {_RUNNING, _APPLIED, _FAILED, _REVERTING}, _PENDING, Who.PERSON
)
ADOPT = _transition("adopt", {None}, _APPLIED, Who.PERSON)

TRANSITIONS = (
    *(CLAIM, RESUME, RECORD, FAIL, REVERT, RESUME_REVERT, REMOVE),
    *(SETTLE_APPLIED, SETTLE_NOT_APPLIED, ADOPT),
)
