"""The results of commands, as lines for people and as documents for programs."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pgratchet.core.model import Adoption, Direction, Entry, Finished, Mode, Plan, RecordState, State
from pgratchet.core.plan import planning
from pgratchet.core.plan.halfway import HALF_DONE
from pgratchet.core.printing import printable

NEVER = "-"


class Report(NamedTuple):
    """One result in two forms: lines of text, and the content of a JSON object."""

    lines: Sequence[str]
    document: dict[str, Any]


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
    errors = [f"{entry.version} {entry.state}: {error}" for entry in entries if (error := planning.failure_of(entry))]
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if entry.row and entry.row.reason:
            reasons.setdefault(entry.row.reason, []).append(entry.version)
    why = [f"{', '.join(versions)}: {reason}" for reason, versions in reasons.items()]
    lines = [*(_aligned([heading, *rows]) if rows else ()), *begun, *errors, *why, _total(entries)]
    return Report(lines, {"entries": [_entry(entry) for entry in entries]})


def left(entries: Sequence[Entry]) -> str:
    """Return a line that says what an interrupted run has left: a count of states, and the work that is half done."""
    return "; ".join([_total(entries), *filter(None, map(_begun, entries))])


def up_to_date() -> Report:
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
    lines = [f"{what}: {', '.join(versions)}" for what, versions in said.items() if versions]
    if adoption.dry_run and adoption.adopted:
        lines.append("nothing has changed; --yes does it")
    elif not adoption.dry_run:
        lines.append(f"from now on give --table {adoption.target}, or set it: see PGRATCHET_TABLE and [tool.pgratchet]")
    return Report(lines if adoption.adopted else [*lines, "nothing to adopt"], adoption._asdict())


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
    return (entry.row.finished_at or entry.row.started_at) if entry.row else None


def _by(entry: Entry) -> str | None:
    return entry.row.applied_by if entry.row else None


def _shown(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S%z}" if moment else NEVER


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _entry(entry: Entry) -> dict[str, Any]:
    when = _when(entry)
    return {
        "version": entry.version,
        "state": entry.state,
        "name": entry.name,
        "path": entry.migration.up.path if entry.migration else None,
        "when": when.isoformat() if when else None,
        "by": _by(entry),
        "error": planning.failure_of(entry),
        "reason": entry.row.reason if entry.row else None,
        "statements_done": entry.row.statements_done if entry.row else None,
        "statements_total": entry.row.statements_total if entry.row else None,
    }
