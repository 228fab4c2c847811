"""The results of commands, as lines for people and as documents for programs."""

import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from pgratchet.core.model import Adoption, Destination, Direction, Entry, Finished, Mode, Plan, RecordState, State
from pgratchet.core.plan import planning
from pgratchet.core.plan.halfway import HALF_DONE
from pgratchet.core.printing import printable, ranges

NEVER = "-"

GUTTER = "  "
CUT = "..."
NEEDED = 3
"""The number of columns, from the first on, that the status never leaves out."""


class Report(NamedTuple):
    """One result in two forms: lines of text, and the content of a JSON object."""

    lines: Sequence[str]
    document: dict[str, Any]

    def at(self, destination: Destination) -> Self:
        """Return the report with the place that it is about: its first line, and four fields."""
        place = destination._replace(table=self.document.get("table", destination.table))
        head = [] if place.host is None else _fitted([str(place)])
        return self._replace(lines=[*head, *self.lines], document=place._asdict() | self.document)


def done(steps: Sequence[Finished]) -> Report:
    """Report the steps of a run."""
    verbs = {Direction.UP: "applied", Direction.DOWN: "reverted"}
    lines = [
        f"{verbs[step.direction]} {step.version} {step.name} ({_statements(step.statements)}{_time(step.seconds)})"
        for step in steps
    ]
    return Report(lines or ["nothing to do"], {"finished": [step._asdict() for step in steps]})


def rehearsed(steps: Sequence[Finished]) -> Report:
    """Report the steps of a rehearsal."""
    lines = [f"rehearsed {step.version} {step.name} ({_statements(step.statements)})" for step in steps]
    lines.append("rolled back: nothing has changed" if steps else "nothing to do")
    return Report(lines, {"rehearsed": [step._asdict() for step in steps]})


def planned(plan: Plan) -> Report:
    """Report a plan."""
    lines = [f"warning: {warning}" for warning in plan.warnings]
    steps = []
    for step in plan.steps:
        migration, script = step.migration, step.script
        how = "one transaction" if script.mode is Mode.TRANSACTION else "statement by statement"
        rest = f", {step.done} of them done already" if step.done else ""
        lines.append(
            f"would apply {migration.version} {migration.name} ({_statements(script.statements)}{rest}, {how})"
        )
        steps.append(
            {
                "version": migration.version,
                "name": migration.name,
                "direction": step.direction,
                "path": script.source.path,
                "mode": script.mode,
                "statements": script.statements,
                "done": step.done,
            }
        )
    return Report(lines if steps else [*lines, "nothing to do"], {"steps": steps, "warnings": list(plan.warnings)})


def status(entries: Sequence[Entry]) -> Report:
    """Report a table of all versions, the work that is half done, errors, reasons of repairs, and a count of states."""
    heading = ("version", "state", "name", "when", "by")
    rows = [(entry.version, entry.state, entry.name, _shown(_when(entry)), _by(entry) or NEVER) for entry in entries]
    begun = [line for entry in entries if (line := _begun(entry))]
    errors = [f"{entry.version} {entry.state}: {error}" for entry in entries if (error := _error(entry))]
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if entry.row and entry.row.reason:
            reasons.setdefault(entry.row.reason, []).append(entry.version)
    order = [entry.version for entry in entries]
    why = [f"{ranges(versions, order)}: {reason}" for reason, versions in reasons.items()]
    table = _aligned([heading, *rows], shutil.get_terminal_size().columns) if rows else []
    lines = [*table, *_fitted([*begun, *errors, *why, _total(entries)])]
    return Report(lines, {"entries": [_entry(entry) for entry in entries]})


def left(entries: Sequence[Entry]) -> str:
    """Return a line that says what an interrupted run has left: a count of states, and the work that is half done."""
    return "; ".join([_total(entries), *filter(None, map(_begun, entries))])


def up_to_date(_: None) -> Report:
    """Report that nothing is pending."""
    return Report(["everything is applied"], {})


def created(paths: Iterable[Path]) -> Report:
    """Report the new files."""
    names = [str(path) for path in paths]
    return Report([f"created {name}" for name in names], {"created": names})


def repaired(entry: Entry) -> Report:
    """Report the state of a version after a repair."""
    row = entry.row
    how = f", {row.statements_done} of {row.statements_total} statements done" if row and row.state in HALF_DONE else ""
    return Report([f"repaired {entry.version} {entry.name}: {entry.state}{how}"], {"entry": _entry(entry)})


def adopted(adoption: Adoption) -> Report:
    """Report the versions that were adopted from another tool's table, or would be."""
    verb = "would adopt" if adoption.dry_run else "adopted"
    said = {
        f"{verb}, from {adoption.source} into {adoption.target}": adoption.adopted,
        "among them without a file here": adoption.unknown,
        "recorded already": adoption.already,
        "left out, because they had failed": adoption.skipped,
    }
    lines = [f"{what}: {ranges(versions, adoption.versions)}" for what, versions in said.items() if versions]
    if adoption.dry_run and adoption.adopted:
        lines.append("nothing has changed; --yes does it")
    elif not adoption.dry_run:
        lines.append(f"from now on give --table {adoption.target}, or set it: see PGRATCHET_TABLE and [tool.pgratchet]")
    document = {"table": adoption.target} | adoption._asdict()
    return Report(lines if adoption.adopted else [*lines, "nothing to adopt"], document)


def _total(entries: Sequence[Entry]) -> str:
    counts = Counter(entry.state for entry in entries)
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "no migrations"


def _begun(entry: Entry) -> str | None:
    """Return how far a half-done version has come and what the next run does about it; None for any other version."""
    row = entry.row
    if row is None or row.state not in HALF_DONE:
        return None
    next_run = f"the next `pgratchet {Direction.UP if row.state is RecordState.RUNNING else Direction.DOWN}`"
    then = {
        State.RUNNING: "a session is at work on it",
        State.INTERRUPTED: f"{next_run} goes on with it",
        State.IN_DOUBT: f"{next_run} stops, and says what to look at before `pgratchet repair {entry.version}`",
    }
    done = f"{row.statements_done} of {row.statements_total} statements are committed"
    return f"{entry.version} {entry.state}: {done}; {then[entry.state]}"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f", {seconds:.3f} s"


def _statements(count: int) -> str:
    return "1 statement" if count == 1 else f"{count} statements"


def _when(entry: Entry) -> datetime | None:
    return (row.finished_at or row.started_at) if (row := planning.attempt_at(entry)) else None


def _by(entry: Entry) -> str | None:
    return row.applied_by if (row := planning.attempt_at(entry)) else None


def _error(entry: Entry) -> str | None:
    return row.error if (row := planning.attempt_at(entry)) else None


def _shown(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S%z}" if moment else NEVER


def _aligned(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return the rows as lines of at most `width` cells: without their last columns, or with the last one cut."""
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415 - needed only here

    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    while (excess := sum(widths) + len(GUTTER) * (len(widths) - 1) - width) > 0 and len(widths) > NEEDED:
        widths.pop()
    widths[-1] = max(len(CUT), widths[-1] - max(0, excess))

    def cell(text: str, wide: int) -> str:
        return set_cell_size(text, wide) if cell_len(text) <= wide else f"{set_cell_size(text, wide - len(CUT))}{CUT}"

    # Not strict: the columns that are left out have no width.
    return [GUTTER.join(map(cell, row, widths)).rstrip() for row in rows]


def _fitted(lines: Sequence[str]) -> Sequence[str]:
    """Return the lines, folded in a terminal; a program that reads them gets each text in one line."""
    return _folded(lines, shutil.get_terminal_size().columns) if sys.stdout.isatty() else lines


def _folded(lines: Sequence[str], width: int) -> list[str]:
    """Return the lines, each cut at blanks into lines of at most `width` cells, all but the first of them indented."""
    from rich.cells import cell_len  # noqa: PLC0415 - needed only here

    lines = list(map(printable, lines))
    if all(cell_len(line) <= width for line in lines):
        return lines
    from rich.console import Console  # noqa: PLC0415 - most lines are short
    from rich.text import Text  # noqa: PLC0415 - the same

    cut = (Text(line).wrap(Console(), width - len(GUTTER)) for line in lines)
    return [f"{GUTTER if number else ''}{part.plain}" for parts in cut for number, part in enumerate(parts)]


def _entry(entry: Entry) -> dict[str, Any]:
    when = _when(entry)
    return {
        "version": entry.version,
        "state": entry.state,
        "name": entry.name,
        "path": entry.migration.up.path if entry.migration else None,
        "when": when.isoformat() if when else None,
        "by": _by(entry),
        "error": _error(entry),
        "reason": entry.row.reason if entry.row else None,
        "statements_done": entry.row.statements_done if entry.row else None,
        "statements_total": entry.row.statements_total if entry.row else None,
    }
