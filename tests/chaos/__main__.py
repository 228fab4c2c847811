"""`make chaos`: trials that hurt replicas in every way, and their results."""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.chaos.faults import Kind
from tests.chaos.run import run
from tests.chaos.trial import Outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos ARGS=...", description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of the first trial; each has the next one")
    parser.add_argument("--jobs", type=int, default=4, help="trials at once, each on a server of its own")
    parser.add_argument("--keep", type=Path, help="folder for the evidence of violations")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="pgratchet-chaos-"))
    began = time.monotonic()
    outcomes = []
    jobs = min(arguments.jobs, arguments.trials)
    for outcome in run(range(arguments.seed, arguments.seed + arguments.trials), jobs, folder):
        outcomes.append(outcome)
        _tell(_line(outcome))
    _tell(_summary(outcomes, time.monotonic() - began))
    if any(outcome.violations for outcome in outcomes):
        _tell(f"the evidence is in {folder}; `--seed N --trials 1` repeats the plan of one trial")
        return 1
    if arguments.keep is None:
        folder.rmdir()
    return 0


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _line(outcome: Outcome) -> str:
    faults = ", ".join(f"{kind} {count}" for kind, count in sorted(outcome.injected.items()) if count)
    text = f"seed {outcome.seed}: {outcome.seconds:.1f} s; {faults or 'no fault came'}; in doubt {outcome.doubts}"
    return "\n".join([text, *(f"  VIOLATION: {violation}" for violation in outcome.violations)])


def _summary(outcomes: Iterable[Outcome], seconds: float) -> str:
    outcomes = list(outcomes)
    injected: Counter[str] = Counter()
    for outcome in outcomes:
        injected.update(outcome.injected)
    planned = sum(outcome.planned for outcome in outcomes)
    lines = [f"trials       {len(outcomes)}, {sum(bool(outcome.violations) for outcome in outcomes)} with violations"]
    lines += [f"faults       {injected.total()} injected of {planned} planned; the others' moments never came"]
    lines += [f"  {injected[kind.name]:5} {kind.value}" for kind in Kind]
    lines += [f"in doubt     {sum(outcome.doubts for outcome in outcomes)}"]
    lines += [f"violations   {sum(len(outcome.violations) for outcome in outcomes)}"]
    return "\n".join([*lines, f"time         {seconds:.0f} s"])


if __name__ == "__main__":
    sys.exit(main())
