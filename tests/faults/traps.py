"""Places in the bytes that pass a proxy, and the harm that happens there."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

LONGEST_PATTERN = 1 << 10


class Way(Enum):
    """The direction of bytes."""

    TO_SERVER = auto()
    TO_CLIENT = auto()


class Harm(Enum):
    """A kind of harm to a connection, on both sides."""

    NONE = auto()
    CLOSE = auto()
    """FIN: the forwarded bytes arrive."""
    RESET = auto()
    """RST: the forwarded bytes may be lost."""
    FREEZE = auto()
    """The proxy forwards nothing, on any connection, until `resume`; no side is told."""
    DELAY = auto()
    """The bytes behind the place are late, on this connection and in this direction only."""


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
        """Return the number of a chunk's bytes before the harm, None for all. `passed` bytes up to `tail` passed."""
        if isinstance(self.at, int):
            return self.at - passed if passed <= self.at < passed + len(chunk) else None
        found = list(_found(self.at, tail, chunk))[self.skip :]
        return max(0, found[0] + (len(self.at) if self.forward else 0)) if found else None

    def let_pass(self, tail: bytes, chunk: bytes) -> None:
        """Count bytes that pass unharmed."""
        if isinstance(self.at, bytes):
            self.skip -= len(list(_found(self.at, tail, chunk)))


def _found(pattern: bytes, tail: bytes, chunk: bytes) -> Iterator[int]:
    """Yield each position at which a byte string begins that ends in this chunk; below 0 it began in `tail`."""
    before = tail[-(len(pattern) - 1) :] if len(pattern) > 1 else b""
    found = (before + chunk).find(pattern)
    while found >= 0:
        yield found - len(before)
        found = (before + chunk).find(pattern, found + len(pattern))
