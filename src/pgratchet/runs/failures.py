"""A step that failed, as lines for a person."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter

from pgratchet.core.model import Direction, Failure, Finished, Mode
from pgratchet.core.printing import printable, ranges
from pgratchet.runs.excerpts import Drawn, drawn


def told(failure: Failure, finished: Sequence[Finished], again: str) -> Iterator[str]:
    """Yield the printable lines about a step that failed after the `finished` ones: place, excerpt, cause and cure.

    `again` tells the reader how to run it again.
    """
    return (line if isinstance(line, Drawn) else printable(line) for line in _lines(failure, finished, again))


def _lines(failure: Failure, finished: Sequence[Finished], again: str) -> Iterator[str]:
    place = ":".join(str(part) for part in (failure.path, failure.line, failure.column) if part is not None)
    where = f" in statement {failure.statement} of {failure.statements}" if failure.statement else ""
    step = f"{failure.direction} {failure.version} {failure.name}"
    yield f"{place}: {step} failed{where}" if failure.history is None else f"{step} could not be recorded"
    if failure.excerpt and failure.line is not None:
        yield ""
        yield from drawn(failure.excerpt, failure.line, failure.column)
        yield ""
    yield f"SQLSTATE {failure.sqlstate}: {failure.message}" if failure.sqlstate else failure.message
    for name in ("detail", "hint", "context"):
        if said := getattr(failure, name):
            yield f"{name}: {said}"
    yield ""
    if finished:
        yield f"finished before it: {_together(finished)}; they stay"
    yield _advice(failure, again)


def _together(finished: Sequence[Finished]) -> str:
    """Return the versions by direction: between those that a run has finished in one direction it has left none."""
    groups = [
        (direction, [step.version for step in steps]) for direction, steps in groupby(finished, attrgetter("direction"))
    ]
    plain = all(direction is Direction.UP for direction, _ in groups)
    return ", ".join(f"{'' if plain else f'{way} '}{ranges(versions, versions)}" for way, versions in groups)


def _advice(failure: Failure, again: str) -> str:
    what = "the file" if failure.history is None else f"{failure.history}, not the file,"
    cure = f"fix {what} and {again}"
    if failure.mode is Mode.TRANSACTION:
        return f"{cure}: the failed migration was rolled back"
    return f"{cure}: the statements before this one stay committed, and the run goes on after them"
