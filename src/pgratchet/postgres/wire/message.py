"""Steps in, one simple-protocol message out, and the way back from a place in it to a place in a file."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pgratchet.core.model import Segment
from pgratchet.core.sql.scripts import CHUNK, MOST_MARKERS
from pgratchet.postgres.ledger.records import Claim

END = "\n;"
"""What ends each segment: a comment that is the last thing in a file would swallow a mere semicolon."""

MOST_STEPS = 50
MOST_CHARACTERS = CHUNK
"""Limits of a message that several steps share."""


class Part(NamedTuple):
    """Where a segment stands in a message: both offsets in characters."""

    at: int
    claim: Claim
    segment: Segment
    marked: bool = False


class Message(NamedTuple):
    """What is sent at once, and where in it the files' own text stands: nowhere, where all of it is ours."""

    text: str
    parts: tuple[Part, ...] = ()


class Frame(NamedTuple):
    """What goes around one script."""

    claim: Claim
    head: str
    tail: str


def mark(marker: str) -> str:
    """Return the statement that has the server say `marker`: what stands before it is done.

    All of a run have the same text, of which pg_stat_statements keeps one entry. INFO, because pg_dump's
    client_min_messages stops NOTICE.
    """
    return f"DO $pgratchet$BEGIN RAISE INFO '{marker}';END$pgratchet$;"


def compose(frames: Sequence[Frame], marker: str | None) -> Iterator[Message]:
    """Yield the messages that run the framed scripts in order: one, or several for one large script.

    The server says `marker` after each segment, where one is given.
    """
    pieces: list[str] = []
    parts: list[Part] = []
    length = 0

    def add(text: str) -> None:
        nonlocal length
        pieces.append(text)
        length += len(text)

    for frame in frames:
        script = frame.claim.step.script
        marked = marker is not None and 1 < len(script.segments) <= MOST_MARKERS + 1
        add(frame.head)
        for segment in script.segments:
            if parts and length + segment.end - segment.start > 4 * CHUNK:
                yield Message("".join(pieces), tuple(parts))
                pieces, parts, length = [], [], 0
            parts.append(Part(length, frame.claim, segment, marked))
            add(script.source.text[segment.start : segment.end])
            add(END + mark(marker) if marked and marker else END)
        add(frame.tail)
    yield Message("".join(pieces), tuple(parts))


def share(claims: Sequence[Claim]) -> Iterator[tuple[Claim, ...]]:
    """Yield the claims in order, in groups that may share a message."""
    group: list[Claim] = []
    size = 0
    for claim in claims:
        length = len(claim.step.script.source.text)
        if group and (len(group) == MOST_STEPS or size + length > MOST_CHARACTERS):
            yield tuple(group)
            group, size = [], 0
        group.append(claim)
        size += length
    if group:
        yield tuple(group)


def part_at(message: Message, position: int) -> Part | None:
    """Return the part that holds the character at `position` (from 1) of a message, if one does.

    A statement that ends too early is noticed at the semicolon that was put behind it.
    """
    offset = position - 1
    for part in message.parts:
        if part.at <= offset < part.at + part.segment.end - part.segment.start + len(END):
            return part
    return None
