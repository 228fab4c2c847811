"""Run all benchmarks, each in a process of its own, and write their numbers to results/latest.json."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
NAMES = (
    "fresh_apply",
    "far_database",
    "nothing_pending",
    "command_line",
    "herd",
    "memory",
    "splitting",
)


def main() -> int:
    """Return the exit code: 1 if a benchmark could not run, 0 otherwise, even if a target is missed."""
    results, failed = {}, False
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            path = Path(folder, name)
            done = subprocess.run([sys.executable, HERE / f"{name}.py", "--json", path], check=False)
            if done.returncode == 0:
                results[name] = json.loads(path.read_text())
            else:
                failed = True
                print(f"{name} ended with {done.returncode}", file=sys.stderr)
    latest = HERE / "results" / "latest.json"
    latest.parent.mkdir(exist_ok=True)
    latest.write_text(json.dumps(results, indent=2) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
