"""Places in what passes through a proxy, and the harm that is done there."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

LONGEST_PATTERN = 1 << 10


class Way(Enum):
    """Which way bytes go."""

    TO_SERVER = auto()
    TO_CLIENT = auto()


class Harm(Enum):
    """What can be done to a connection, both sides of it."""

    NONE = auto()
    CLOSE = auto()
    """FIN: what was forwarded arrives."""
    RESET = auto()
    """RST: what was forwarded may be lost."""
    FREEZE = auto()
    """Nothing is forwarded any more, on any connection, until `resume`; nobody is told."""
    DELAY = auto()
    """What comes behind the place is late, on this connection and this way only."""


@dataclass(eq=False, slots=True)
class Trap:
    """Harm done once, to the first connection that comes to a place: so many bytes, or a byte string.

    With `forward` the byte string passes first, otherwise it does not: where it came in pieces, all but the
    last one are through. The first `skip` byte strings pass unharmed. A delay is one of so many `seconds`.
    """

    way: Way
    at: int | bytes
    harm: Harm
    forward: bool
    skip: int = 0
    seconds: float = 0.0
    sprung: asyncio.Event = field(default_factory=asyncio.Event)

    def place(self, passed: int, tail: bytes, chunk: bytes) -> int | None:
        """Return how much of a chunk comes before the harm, None for all; `passed` bytes, ending in `tail`, did."""
        if isinstance(self.at, int):
            return self.at - passed if passed <= self.at < passed + len(chunk) else None
        found = list(_found(self.at, tail, chunk))[self.skip :]
        return max(0, found[0] + (len(self.at) if self.forward else 0)) if found else None

    def let_pass(self, tail: bytes, chunk: bytes) -> None:
        """Count what passes unharmed."""
        if isinstance(self.at, bytes):
            self.skip -= len(list(_found(self.at, tail, chunk)))


def _found(pattern: bytes, tail: bytes, chunk: bytes) -> Iterator[int]:
    """Yield where in a chunk a byte string begins that ends in it; below 0 it began in the tail of what passed."""
    before = tail[-(len(pattern) - 1) :] if len(pattern) > 1 else b""
    found = (before + chunk).find(pattern)
    while found >= 0:
        yield found - len(before)
        found = (before + chunk).find(pattern, found + len(pattern))
