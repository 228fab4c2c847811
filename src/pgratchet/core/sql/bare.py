"""The objects of a statement that runs outside a transaction: a later run finds its remains by them.

Names are as written, without comments, for the server to resolve.
"""

from typing import NamedTuple

from pgratchet.core.sql.statements import Nature, effect_of, tokens


class Bare(NamedTuple):
    """A statement's nature and objects: `name` is an index or a partition, `table` the table that it belongs to.

    A statement that works `concurrently` waits for other transactions without a limit.
    """

    nature: Nature
    name: str | None = None
    table: str | None = None
    concurrently: bool = False

    @property
    def is_recoverable(self) -> bool:
        """True if a later run can go on after it without a person: it can look it up, or run it again."""
        return self.nature is not Nature.OPAQUE

    @property
    def is_looked_up(self) -> bool:
        """True if a later run compares the objects that are there with those that were there before."""
        return self.nature in {Nature.BUILD, Nature.DROP, Nature.DETACH}


class _Words:
    """The words of a statement, read from the left."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(tokens(text, 0, len(text)))
        self._at = 0

    def next_is(self, *words: str) -> bool:
        ahead = self._tokens[self._at : self._at + len(words)]
        return tuple(lexeme for lexeme, _, _ in ahead) == words

    def take(self, *words: str) -> bool:
        """Pass over the words if they come next."""
        there = self.next_is(*words)
        self._at += len(words) if there else 0
        return there

    def name(self) -> str | None:
        """Return a name, qualified or not; None for anything else, and for a name with escapes (U&)."""
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
    """Return the nature and the objects of a statement that has been, or is to be, run outside a transaction.

    A statement whose objects cannot be read is opaque.
    """
    effect = effect_of(text, 0, len(text))
    concurrently = effect.refuses is not None and effect.refuses.endswith("CONCURRENTLY")
    words = _Words(text)
    name = table = None
    match effect.nature:
        case Nature.BUILD:
            words.take("CREATE")
            words.take("UNIQUE")
            words.take("INDEX", "CONCURRENTLY")
            words.take("IF", "NOT", "EXISTS")
            if (words.next_is("ON") or (name := words.name())) and words.take("ON"):
                if words.take("ONLY"):
                    words.take("(")
                table = words.name()
            if table is None:
                return Bare(Nature.OPAQUE, concurrently=concurrently)
        case Nature.DROP:
            # Even with IF EXISTS it is not repeatable: another index of that name may have come to light.
            words.take("DROP", "INDEX", "CONCURRENTLY")
            words.take("IF", "EXISTS")
            name = words.name()
            if name is None:
                return Bare(Nature.OPAQUE, concurrently=concurrently)
        case Nature.DETACH:
            words.take("ALTER", "TABLE")
            words.take("IF", "EXISTS")
            words.take("ONLY")
            table = words.name()
            words.take("*")
            name = words.name() if words.take("DETACH", "PARTITION") else None
            if table is None or name is None or not words.take("CONCURRENTLY"):
                return Bare(Nature.OPAQUE)
        case _:
            pass
    return Bare(effect.nature, name, table, concurrently)
