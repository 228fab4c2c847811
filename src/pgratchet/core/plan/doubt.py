"""A statement that was begun outside a transaction and never counted: which, since when, and what to do about it."""

from collections.abc import Iterable, Iterator

from pgratchet.core.errors import HistoryError
from pgratchet.core.model import HistoryRow, Script, Segment, Step
from pgratchet.core.plan import cursor
from pgratchet.core.plan.cursor import Begun
from pgratchet.core.plan.halfway import digest_at
from pgratchet.core.printing import line_of, printable
from pgratchet.core.sql.bare import read
from pgratchet.core.sql.lexing import head, tokens

FIRST_CHARACTERS = 60
"""How much of a statement is told."""


def doubt(row: HistoryRow | None) -> Begun | None:
    """Return the statement of a row that is in doubt."""
    at = cursor.of(row)
    return at and at.begun


def refuse_unjudged(steps: Iterable[Step]) -> None:
    """Raise HistoryError, with all that is known, where a statement is in doubt that only a person can judge.

    To be asked under the lock, when the runner that has begun it is gone.
    """
    for step in steps:
        begun = doubt(step.over)
        if begun is None:
            continue
        if digest_at(step.script, step.done + 1) != begun.digest:
            raise refusal(step, "The file has another statement there now. ")
        bare = read(text_of(step.script, step.script.segments[step.done]))
        if not bare.is_judged or (bare.is_looked_up and begun.there is None):
            raise refusal(step)


def refusal(step: Step, found: str = "") -> HistoryError:
    """Return the error that a statement is in doubt, and what else was `found`."""
    begun, row = doubt(step.over), step.over
    since = begun.at if begun else "an unknown time"
    who = f"{row.applied_by} (server process {row.backend_pid})" if row else "somebody"
    repair = f"pgratchet repair {step.migration.version}"
    message = (
        f"{_place(step)} was begun outside a transaction at {since} by {who}, and nobody knows whether it took "
        f"effect; {step.done} statement(s) before it are committed. {found}Look at the database, then say "
        f"`{repair} --skip` if it took effect, `{repair} --again` if it did not; --applied or --not-applied "
        "settle the whole migration"
    )
    return HistoryError(printable(message), [step.migration.version])


def other_session(step: Step, was: str, now: str) -> HistoryError:
    """Return the error that the session which the next statement needs is gone, and cannot be made again."""
    repair = f"pgratchet repair {step.migration.version}"
    message = (
        f"{_place(step)} comes next, but what the {step.done} statement(s) before it have made of their session is "
        f"gone with it, and cannot be made again. It had: {was or 'nothing of its own'}. The new one has: "
        f"{now or 'nothing of its own'}. Move this statement and all behind it, with what they need, into a new file "
        f"and say `{repair} --applied`, or undo what is committed and say `{repair} --not-applied`"
    )
    return HistoryError(printable(message), [step.migration.version])


def _place(step: Step) -> str:
    script, path = step.script, step.script.source.path
    number = f"statement {step.done + 1} of {script.statements}"
    if step.done >= len(script.segments):
        return f"{path}: {number}"
    segment = script.segments[step.done]
    words = " ".join(text_of(script, segment).split())
    shown = words if len(words) <= FIRST_CHARACTERS else f"{words[:FIRST_CHARACTERS]}..."
    return f"{path}:{line_of(script.source.text, segment.start)}: {number} ({shown})"


def text_of(script: Script, segment: Segment) -> str:
    """Return a segment's own text."""
    return script.source.text[segment.start : segment.end]


def lasting(script: Script, done: int) -> Iterator[Segment]:
    """Yield those of the first `done` statements that have changed their session's settings, and nothing else."""
    for segment in script.segments[:done]:
        match head(script.source.text, segment.start, segment.end, 2):
            case ("SET", "LOCAL" | "TRANSACTION" | "CONSTRAINTS"):
                continue
            case ("SET" | "RESET", *_):
                yield segment
            case ("SELECT", "SET_CONFIG" | "PG_CATALOG") if _is_setting(script, segment):
                yield segment


def _is_setting(script: Script, segment: Segment) -> bool:
    """Say whether a SELECT is nothing but set_config() with constants, as pg_dump writes it."""
    words = [word for word, _, _ in tokens(script.source.text, segment.start, segment.end)]
    return words[3 if words[2:3] == ["."] else 1 :] == ["SET_CONFIG", "(", "'", ",", "'", ",", "FALSE", ")"]
