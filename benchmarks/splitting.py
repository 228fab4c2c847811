"""The time to split a script: 1 MB of ordinary DDL, and 20 MB of INSERTs.

Run it with the interpreter that has pgratchet: `python benchmarks/splitting.py [--runs 7] [--json FILE]`.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from pgratchet.core.sql.statements import scan

MEGABYTE = 1_000_000

DDL = """\
-- The orders of region {n}: one row each; a line is in order_lines_{n}.
CREATE TABLE shop.orders_{n} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES shop.customers (id) ON DELETE CASCADE,
    state text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'paid', 'customer''s')), -- what it is; not how
    total numeric(12, 2) NOT NULL DEFAULT 0,
    placed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX orders_{n}_customer ON shop.orders_{n} (customer_id, placed_at DESC) WHERE state <> 'paid';
CREATE UNIQUE INDEX orders_{n}_once ON shop.orders_{n} (customer_id, placed_at);
ALTER TABLE shop.orders_{n} ADD CONSTRAINT orders_{n}_total CHECK (total >= 0);
ALTER TABLE shop.orders_{n} ADD COLUMN note text;
COMMENT ON TABLE shop.orders_{n} IS 'Orders; one row each';

CREATE OR REPLACE FUNCTION shop.touch_{n}() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    NEW.placed_at := now(); -- it's the body's own
    RETURN NEW;
END;
$body$;
CREATE TRIGGER touch_{n} BEFORE UPDATE ON shop.orders_{n}
    FOR EACH ROW EXECUTE FUNCTION shop.touch_{n}();
GRANT SELECT, INSERT ON shop.orders_{n} TO reader, writer;

"""

INSERT = """\
INSERT INTO shop.orders (id, customer, note, total, placed_at) VALUES \
({n}, 'Customer {n}', 'it''s; a -- note', {n}.50, '2024-01-01 10:00:00');
"""


def main() -> None:
    """Measure both scripts, print a table, and write the numbers to the file of `--json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="how often each script is split (at least 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    options = parser.parse_args()
    runs = max(5, options.runs)
    results = [
        measured("1 MB of DDL", filled(DDL, MEGABYTE), runs, limit=0.5),
        measured("20 MB of INSERTs", filled(INSERT, 20 * MEGABYTE), runs),
    ]
    print(f"{'script':<18}{'statements':>11}{'median s':>10}{'best s':>8}{'MB/s':>7}  limit")
    for result in results:
        limit = "none" if result["limit"] is None else f"{result['limit']} s"
        print(
            f"{result['script']:<18}{result['statements']:>11}{result['median']:>10.3f}"
            f"{result['best']:>8.3f}{result['megabytes_per_second']:>7.1f}  {limit}"
        )
    if options.json:
        about = {"python": platform.python_version(), "machine": platform.machine(), "runs": runs}
        options.json.write_text(json.dumps({**about, "results": results}, indent=2) + "\n", "utf-8")


def filled(template: str, size: int) -> str:
    """Return numbered copies of the template, at least `size` characters together."""
    times = size // len(template.format(n=0)) + 1
    return "".join(template.format(n=n) for n in range(times))


def measured(script: str, text: str, runs: int, limit: float | None = None) -> dict[str, str | float | None]:
    """Return the seconds to split the text; the statements are dropped at once."""
    seconds = [timed(lambda: sum(1 for _ in scan(text))) for _ in range(runs)]
    median = statistics.median(seconds)
    return {
        "script": script,
        "bytes": len(text.encode()),
        "statements": sum(1 for _ in scan(text)),
        "median": median,
        "best": min(seconds),
        "megabytes_per_second": len(text.encode()) / median / MEGABYTE,
        "limit": limit,
    }


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that the action takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
