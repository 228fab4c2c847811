import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.faults import Kind
from tests.chaos.plan import Manner, plan
from tests.chaos.run import run

TRIALS = 12
SEED = 1


def test_replicas_that_are_hurt_in_every_way_apply_every_statement_exactly_once(tmp_path: Path) -> None:
    """The same as `make chaos`, for a minute; what was found is below the test's folder."""
    if "DATABASE_URL" in os.environ:
        pytest.skip("needs servers of its own, and DATABASE_URL names another's")
    outcomes = list(run(range(SEED, SEED + TRIALS), 4, tmp_path))
    assert {outcome.seed: outcome.violations for outcome in outcomes if outcome.violations} == {}
    assert len(outcomes) == TRIALS
    assert sum(sum(outcome.injected.values()) for outcome in outcomes) >= TRIALS


def test_a_seed_says_what_a_trial_does_in_every_process() -> None:
    seeds = range(100)
    code = f"from tests.chaos.plan import plan; print([plan(seed) for seed in {seeds!r}])"
    # Another order of sets than here.
    salted = os.environ | {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    said = subprocess.check_output([sys.executable, "-c", code], env=salted, text=True)
    assert said == f"{[plan(seed) for seed in seeds]}\n"
    assert len({str(plan(seed)) for seed in seeds}) == len(seeds)


def test_plans_have_every_kind_of_fault_file_and_statement() -> None:
    plans = [plan(seed) for seed in range(200)]
    assert {fault.kind for each in plans for fault in each.faults} == set(Kind)
    replicas = [replica for each in plans for replica in each.replicas]
    assert {replica.manner for replica in replicas} == set(Manner)
    old = [each for each in plans if any(replica.files < len(each.history.files) for replica in each.replicas)]
    assert 0 < len(old) < len(plans)
    assert all(max(replica.files for replica in each.replicas) == len(each.history.files) for each in plans)
    text = "\n".join(file.text for each in plans for file in each.history.files)
    for words in (
        "async def up",
        "CONCURRENTLY IF NOT EXISTS",
        "INDEX CONCURRENTLY i_",
        "VACUUM",
        "DROP INDEX",
        "CALL",
    ):
        assert words in text
    assert all(4 <= len(each.history.files) <= 8 and 3 <= len(each.replicas) <= 5 for each in plans)
