"""The effect of a statement on transactions, and the recovery after an interruption, by its own words alone.

In doubt a statement counts as one that refuses a transaction block: only the server knows whether a subscription has a
slot.
"""

import re
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from itertools import pairwise
from typing import NamedTuple


class Nature(Enum):
    """The way to find out whether an interrupted statement took effect."""

    BUILD = auto()
    """Look for an index that was not there before."""
    DROP = auto()
    """Check whether the index is gone."""
    DETACH = auto()
    """Check how far the partition is detached."""
    REINDEX = auto()
    """No need to: it may be run again, but may leave something behind."""
    REPEATABLE = auto()
    """No need to: it may be run again."""
    OPAQUE = auto()
    """Only a person can tell."""


class Effect(NamedTuple):
    """The effect of a statement on transactions.

    `refuses` is the name of a statement that cannot run in a transaction block, `controls` of one that begins or ends a
    transaction; a statement that `reads_stdin` waits for data from the client.
    """

    refuses: str | None = None
    controls: str | None = None
    reads_stdin: bool = False
    nature: Nature = Nature.OPAQUE


HARMLESS = Effect()

_BLANK = r"[ \t\n\r\f\v]"
_HIDDEN = rf"(?!{_BLANK}*[a-z])"
OPENING = re.compile(
    "(?ai)(?:BEGIN|COMMIT|END|ROLLBACK|ABORT|START|PREPARE|DISCARD|COPY|VACUUM|CLUSTER|REINDEX|REPACK"
    rf"|SET(?:{_BLANK}+TRANSACTION|{_HIDDEN})"
    rf"|ALTER(?:{_BLANK}+(?:DATABASE|SUBSCRIPTION|SYSTEM|TABLE)|{_HIDDEN})"
    rf"|DROP(?:{_BLANK}+(?:DATABASE|INDEX|SUBSCRIPTION|TABLESPACE)|{_HIDDEN})"
    rf"|CREATE{_BLANK}+(?:DATABASE|INDEX|SUBSCRIPTION|TABLESPACE|UNIQUE)"
    rf"|(?P<nesting>CREATE(?:{_BLANK}+(?:OR|FUNCTION|PROCEDURE|RULE|SCHEMA)|{_HIDDEN})))(?![a-z])"
)
"""The first words of every statement that has an effect, and of some that have none; all others need no further look.

A comment between the two first words hides the second. `nesting` is set where the statement may have semicolons inside.
"""


def classify(  # noqa: C901, PLR0911, PLR0912 - one table: its rows are patterns
    words: Sequence[str], options: Mapping[str, bool]
) -> Effect:
    """Return the effect of a statement by its first words outside parentheses.

    `options` are those in its parentheses: false for one that is switched off.
    """
    match words:
        case ("CREATE", "INDEX", "CONCURRENTLY", *_) | ("CREATE", "UNIQUE", "INDEX", "CONCURRENTLY", *_):
            return Effect("CREATE INDEX CONCURRENTLY", nature=Nature.BUILD)
        case ("CREATE", "DATABASE" | "TABLESPACE" as kind, *_):
            return Effect(f"CREATE {kind}")
        case ("CREATE", "SUBSCRIPTION", *_) if options.get("CREATE_SLOT", options.get("CONNECT", True)):
            return Effect("CREATE SUBSCRIPTION")
        case ("DROP", "INDEX", "CONCURRENTLY", *_):
            return Effect("DROP INDEX CONCURRENTLY", nature=Nature.DROP)
        case ("DROP", "DATABASE" | "SUBSCRIPTION" | "TABLESPACE" as kind, "IF", "EXISTS", *_):
            return Effect(f"DROP {kind}", nature=Nature.REPEATABLE)
        case ("DROP", "DATABASE" | "SUBSCRIPTION" | "TABLESPACE" as kind, *_):
            return Effect(f"DROP {kind}")
        case ("ALTER", "TABLE", *_, "CONCURRENTLY") if ("DETACH", "PARTITION") in pairwise(words) and words[-2] != ".":
            return Effect("DETACH PARTITION CONCURRENTLY", nature=Nature.DETACH)
        case ("ALTER", "SYSTEM", *_):
            return Effect("ALTER SYSTEM", nature=Nature.REPEATABLE)
        case ("ALTER", "DATABASE", _, "SET" | "WITH", "TABLESPACE", *_) | ("ALTER", "DATABASE", _, "TABLESPACE", *_):
            return Effect("ALTER DATABASE SET TABLESPACE", nature=Nature.REPEATABLE)
        case ("ALTER", "SUBSCRIPTION", _, *change) if _alters_slot(change, options):
            return Effect("ALTER SUBSCRIPTION")
        case ("VACUUM", *_):
            return Effect("VACUUM", nature=Nature.REPEATABLE)
        case ("REINDEX" | "REPACK" | "CLUSTER", *_):
            return _rewriting([word for word in words if word not in {"(", ")"}], options)
        case ("DISCARD", "ALL", *_):
            return Effect("DISCARD ALL")
        case ("START" | "SET" as first, "TRANSACTION", *_) | ("PREPARE" as first, "TRANSACTION", "'", *_):
            return Effect(controls=f"{first} TRANSACTION")
        case ("BEGIN", *_):
            return Effect(controls="BEGIN")
        case ("COMMIT" | "END" | "ROLLBACK" | "ABORT" as first, *rest):
            match [word for word in rest if word not in {"WORK", "TRANSACTION"}]:
                case ["PREPARED", *_]:
                    return Effect(f"{first} PREPARED")
                case ["TO", *_]:
                    return HARMLESS
                case ["AND", "CHAIN", *_]:
                    return Effect(controls=f"{first} AND CHAIN")
                case _:
                    return Effect(controls=first)
        case ("COPY", *_):
            # PostgreSQL takes COPY ... FROM STDOUT as FROM STDIN.
            sources = {("FROM", "STDIN"), ("FROM", "STDOUT")}
            return Effect(reads_stdin=not sources.isdisjoint(pairwise(words)))
        case _:
            return HARMLESS


def _alters_slot(change: Sequence[str], options: Mapping[str, bool]) -> bool:
    match change:
        case ["REFRESH", *_]:
            return True
        case ["SET" | "ADD" | "DROP", "PUBLICATION", *_]:
            return options.get("REFRESH", True)
        case _:
            return "FAILOVER" in options or not options.get("TWO_PHASE", True)


def _rewriting(words: Sequence[str], options: Mapping[str, bool]) -> Effect:  # noqa: PLR0911 - the same
    """Return the effect of a statement that writes tables or indexes anew; `words` are without parentheses."""
    concurrently = options.get("CONCURRENTLY")
    match words:
        case ["REINDEX", _, "CONCURRENTLY", *_]:
            return Effect("REINDEX CONCURRENTLY", nature=Nature.REINDEX)
        case ["REINDEX", *_] if concurrently:
            return Effect("REINDEX CONCURRENTLY", nature=Nature.REINDEX)
        case ["REINDEX", "SCHEMA" | "DATABASE" | "SYSTEM" as kind, *_]:
            return Effect(f"REINDEX {kind}", nature=Nature.REINDEX)
        case ["REINDEX", *_]:
            return Effect(nature=Nature.REINDEX)
        case ["REPACK", *_] if concurrently:
            return Effect("REPACK CONCURRENTLY", nature=Nature.REPEATABLE)
        case ["REPACK"] | ["REPACK", "USING", *_]:
            return Effect("REPACK", nature=Nature.REPEATABLE)
        case ["REPACK", *_] if options.get("ANALYZE") or options.get("ANALYSE"):
            return Effect("REPACK", nature=Nature.REPEATABLE)
        case ["CLUSTER"] | ["CLUSTER", "VERBOSE"]:
            return Effect("CLUSTER", nature=Nature.REPEATABLE)
        case _:
            return Effect(nature=Nature.REPEATABLE)
