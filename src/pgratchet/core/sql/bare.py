"""What a statement that runs outside a transaction is about: enough to find out later what it has left behind.

Names are as written, without comments, for the server to resolve.
"""

from enum import Enum, auto
from typing import NamedTuple

from pgratchet.core.sql.lexing import tokens


class Nature(Enum):
    """How to find out whether a statement took effect of which nobody knows how it ended."""

    BUILD = auto()
    """Look for an index that was not there before."""
    DROP = auto()
    """Look whether the index is gone."""
    DETACH = auto()
    """Look how far the partition is detached."""
    REINDEX = auto()
    """No need to: it may be run again, but may leave something behind."""
    REPEATABLE = auto()
    """No need to: it may be run again."""
    OPAQUE = auto()
    """Only a person can."""


class Bare(NamedTuple):
    """A statement's nature; `name` is the index or the partition that it is about, `table` where that belongs.

    One that works `concurrently` waits for other transactions however long they take.
    """

    nature: Nature
    name: str | None = None
    table: str | None = None
    concurrently: bool = False

    @property
    def is_recoverable(self) -> bool:
        """Whether a later run can go on after it without a person: it can look it up, or run it again."""
        return self.nature is not Nature.OPAQUE

    @property
    def is_looked_up(self) -> bool:
        """Whether it is found out by comparing what is there with what was there before."""
        return self.nature in {Nature.BUILD, Nature.DROP, Nature.DETACH}


class _Words:
    """The words of a statement, read from the left."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(tokens(text, 0, len(text)))
        self._at = 0

    def __contains__(self, word: str) -> bool:
        return any(word == lexeme for lexeme, _, _ in self._tokens)

    def next_is(self, *words: str) -> bool:
        ahead = self._tokens[self._at : self._at + len(words)]
        return tuple(lexeme for lexeme, _, _ in ahead) == words

    def take(self, *words: str) -> bool:
        """Read on behind the words, if it is them that come next."""
        there = self.next_is(*words)
        self._at += len(words) if there else 0
        return there

    def name(self) -> str | None:
        """Return a name, qualified or not; None where none comes, or one with escapes, which only a parser reads."""
        parts = []
        while self._at < len(self._tokens):
            _, begin, end = self._tokens[self._at]
            part = self._text[begin:end]
            if not (part[0] in '"_' or part[0].isalpha() or not part[0].isascii()) or part[1:3] in {'&"', "&'"}:
                return None
            parts.append(part)
            self._at += 1
            if not self.take("."):
                return ".".join(parts)
        return None


def read(text: str) -> Bare:
    """Return what a statement is about that has been, or is to be, run outside a transaction."""
    words = _Words(text)
    if words.take("CREATE"):
        words.take("UNIQUE")
        return _build(words) if words.take("INDEX", "CONCURRENTLY") else Bare(Nature.OPAQUE)
    if words.take("DROP"):
        return _drop(words)
    if words.take("ALTER"):
        return _alter(words)
    if words.take("REINDEX"):
        return Bare(Nature.REINDEX, concurrently="CONCURRENTLY" in words)
    if words.take("VACUUM") or words.take("CLUSTER") or words.take("REPACK"):
        return Bare(Nature.REPEATABLE, concurrently="CONCURRENTLY" in words)
    return Bare(Nature.OPAQUE)


def _build(words: _Words) -> Bare:
    opaque = Bare(Nature.OPAQUE, concurrently=True)
    words.take("IF", "NOT", "EXISTS")
    name = None
    if not words.next_is("ON") and (name := words.name()) is None:
        return opaque
    if not words.take("ON"):
        return opaque
    if words.take("ONLY"):
        words.take("(")
    table = words.name()
    return opaque if table is None else Bare(Nature.BUILD, name, table, concurrently=True)


def _drop(words: _Words) -> Bare:
    concurrently = words.take("INDEX", "CONCURRENTLY")
    if not (concurrently or any(words.take(kind) for kind in ("DATABASE", "SUBSCRIPTION", "TABLESPACE"))):
        return Bare(Nature.OPAQUE)
    careful = words.take("IF", "EXISTS")
    if not concurrently:
        return Bare(Nature.REPEATABLE if careful else Nature.OPAQUE)
    # Not even with IF EXISTS may it be run again: another index of that name may have come to light.
    name = words.name()
    return Bare(Nature.DROP if name else Nature.OPAQUE, name, concurrently=True)


def _alter(words: _Words) -> Bare:
    if words.take("SYSTEM") or (words.take("DATABASE") and "TABLESPACE" in words):
        return Bare(Nature.REPEATABLE)
    if not words.take("TABLE"):
        return Bare(Nature.OPAQUE)
    words.take("IF", "EXISTS")
    words.take("ONLY")
    table = words.name()
    words.take("*")
    name = words.name() if words.take("DETACH", "PARTITION") else None
    if table is None or name is None or not words.take("CONCURRENTLY"):
        return Bare(Nature.OPAQUE)
    return Bare(Nature.DETACH, name, table, concurrently=True)
