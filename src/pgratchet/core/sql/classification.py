"""What a statement does to transactions, as far as its own words tell.

In doubt it is said to refuse a transaction block: whether a subscription has a slot only the server knows.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice, pairwise
from typing import NamedTuple

from pgratchet.core.sql.lexing import head, tokens, upper


class Verdict(NamedTuple):
    """What a transaction block refuses, what ends or begins one, and what waits for data from the client."""

    refuses: str | None = None
    controls: str | None = None
    reads_stdin: bool = False


HARMLESS = Verdict()

_CONCURRENTLY = "CONCURRENTLY"
_NESTING = frozenset({"FUNCTION", "PROCEDURE", "RULE", "SCHEMA"})
_SECOND_WORDS: Mapping[str, frozenset[str]] = {
    "CREATE": frozenset({"DATABASE", "INDEX", "OR", "SUBSCRIPTION", "TABLESPACE", "UNIQUE"}) | _NESTING,
    "DROP": frozenset({"DATABASE", "INDEX", "SUBSCRIPTION", "TABLESPACE"}),
    "ALTER": frozenset({"DATABASE", "SUBSCRIPTION", "SYSTEM", "TABLE"}),
    "SET": frozenset({"TRANSACTION"}),
}


class _Reading(NamedTuple):
    """The first words of a statement, and the options in its parentheses: false where one is off."""

    words: tuple[str, ...]
    options: Mapping[str, bool]


def matters(first: str, second: str | None) -> bool:
    """Whether a statement that opens with these words has to be read; None: the second is not known."""
    seconds = _SECOND_WORDS.get(first)
    if seconds is None:
        return first in _RULES
    return second is None or second in seconds


def nesting_kind(text: str, start: int) -> str | None:
    """Return what is created at `start` if that may hold semicolons of its own: a rule, or routines."""
    # Not with head(), which would read on behind a parenthesis: one that is never closed has no end.
    match [word for word, _, _ in islice(tokens(text, start, len(text)), 4)]:
        case ["CREATE", "OR", "REPLACE", kind] | ["CREATE", kind, *_] if kind in _NESTING:
            return kind
        case _:
            return None


def judge(text: str, start: int, end: int) -> Verdict:
    """Return what the statement between `start` and `end` does to transactions."""
    limit = 24 if upper(text[max(start, end - 12) : end]) == _CONCURRENTLY else 12
    words = head(text, start, end, limit)
    rule = _RULES.get(words[0]) if words else None
    if rule is None:
        return HARMLESS
    has_options = words[0] in {"REINDEX", "REPACK"} or words[1:2] == ("SUBSCRIPTION",)
    options = dict(_options(text, start, end)) if has_options else {}
    return rule(_Reading(words, options))


def _options(text: str, start: int, end: int) -> Iterator[tuple[str, bool]]:
    """Yield what stands in the first parentheses, by name in upper case, and whether it is switched on."""
    option: list[str] = []
    inside = False
    for lexeme, begin, finish in tokens(text, start, end):
        if inside and lexeme in {",", ")"}:
            if option:
                yield option[0].strip('"'), option[-1] not in {"FALSE", "OFF", "0"}
            option = []
            if lexeme == ")":
                return
        elif inside:
            option.append(upper(text[begin:finish].strip("'\"")))
        elif lexeme == "(":
            inside = True


def _create(reading: _Reading) -> Verdict:
    match reading.words[1:]:
        case ("INDEX", "CONCURRENTLY", *_) | ("UNIQUE", "INDEX", "CONCURRENTLY", *_):
            return Verdict("CREATE INDEX CONCURRENTLY")
        case ("DATABASE" | "TABLESPACE" as kind, *_):
            return Verdict(f"CREATE {kind}")
        case ("SUBSCRIPTION", *_) if reading.options.get("CREATE_SLOT", reading.options.get("CONNECT", True)):
            return Verdict("CREATE SUBSCRIPTION")
        case _:
            return HARMLESS


def _drop(reading: _Reading) -> Verdict:
    match reading.words[1:]:
        case ("INDEX", "CONCURRENTLY", *_):
            return Verdict("DROP INDEX CONCURRENTLY")
        case ("DATABASE" | "SUBSCRIPTION" | "TABLESPACE" as kind, *_):
            return Verdict(f"DROP {kind}")
        case _:
            return HARMLESS


def _alter(reading: _Reading) -> Verdict:
    match reading.words[1:]:
        case ("SYSTEM", *_):
            return Verdict("ALTER SYSTEM")
        case ("DATABASE", _, "SET" | "WITH", "TABLESPACE", *_) | ("DATABASE", _, "TABLESPACE", *_):
            return Verdict("ALTER DATABASE SET TABLESPACE")
        case ("SUBSCRIPTION", _, *change) if _alters_slot(tuple(change), reading.options):
            return Verdict("ALTER SUBSCRIPTION")
        case ("TABLE", *_, before, "CONCURRENTLY") if before != ".":
            if ("DETACH", "PARTITION") in pairwise(reading.words):
                return Verdict("DETACH PARTITION CONCURRENTLY")
            return HARMLESS
        case _:
            return HARMLESS


def _alters_slot(change: tuple[str, ...], options: Mapping[str, bool]) -> bool:
    match change:
        case ("REFRESH", *_):
            return True
        case ("SET" | "ADD" | "DROP", "PUBLICATION", *_):
            return options.get("REFRESH", True)
        case _:
            return "FAILOVER" in options or not options.get("TWO_PHASE", True)


def _reindex(reading: _Reading) -> Verdict:
    words = _without_parentheses(reading.words)
    if reading.options.get(_CONCURRENTLY) or words[2:3] == (_CONCURRENTLY,):
        return Verdict("REINDEX CONCURRENTLY")
    if words[1:2] and words[1] in {"SCHEMA", "DATABASE", "SYSTEM"}:
        return Verdict(f"REINDEX {words[1]}")
    return HARMLESS


def _repack(reading: _Reading) -> Verdict:
    if reading.options.get(_CONCURRENTLY):
        return Verdict("REPACK CONCURRENTLY")
    whole_database = _without_parentheses(reading.words)[1:2] in {(), ("USING",)}
    analyzes = reading.options.get("ANALYZE") or reading.options.get("ANALYSE")
    return Verdict("REPACK") if whole_database or analyzes else HARMLESS


def _cluster(reading: _Reading) -> Verdict:
    """Return that CLUSTER is refused where it names no table."""
    named = set(_without_parentheses(reading.words)) - {"CLUSTER", "VERBOSE"}
    return HARMLESS if named else Verdict("CLUSTER")


def _without_parentheses(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for word in words if word not in {"(", ")"})


def _end_of_transaction(reading: _Reading) -> Verdict:
    first, *rest = reading.words
    match [word for word in rest if word not in {"WORK", "TRANSACTION"}]:
        case ["PREPARED", *_]:
            return Verdict(f"{first} PREPARED")
        case ["TO", *_]:
            return HARMLESS
        case ["AND", "CHAIN", *_]:
            return Verdict(controls=f"{first} AND CHAIN")
        case _:
            return Verdict(controls=first)


def _two_words(reading: _Reading) -> Verdict:
    match reading.words:
        case ("DISCARD", "ALL", *_):
            return Verdict("DISCARD ALL")
        case ("START", "TRANSACTION", *_) | ("SET", "TRANSACTION", *_) | ("PREPARE", "TRANSACTION", "'", *_):
            return Verdict(controls=" ".join(reading.words[:2]))
        case _:
            return HARMLESS


def _copy(reading: _Reading) -> Verdict:
    # COPY ... FROM STDOUT is taken by PostgreSQL as FROM STDIN.
    sources = {("FROM", "STDIN"), ("FROM", "STDOUT")}
    return Verdict(reads_stdin=not sources.isdisjoint(pairwise(reading.words)))


_RULES: Mapping[str, Callable[[_Reading], Verdict]] = {
    "CREATE": _create,
    "DROP": _drop,
    "ALTER": _alter,
    "REINDEX": _reindex,
    "REPACK": _repack,
    "CLUSTER": _cluster,
    "VACUUM": lambda _: Verdict("VACUUM"),
    "BEGIN": lambda _: Verdict(controls="BEGIN"),
    "COMMIT": _end_of_transaction,
    "END": _end_of_transaction,
    "ROLLBACK": _end_of_transaction,
    "ABORT": _end_of_transaction,
    "START": _two_words,
    "SET": _two_words,
    "PREPARE": _two_words,
    "DISCARD": _two_words,
    "COPY": _copy,
}
