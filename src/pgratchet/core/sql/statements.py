"""SQL text to statements: where each begins and ends, its line, and its effect on transactions.

Nothing is rewritten: the lexical rules are PostgreSQL's, and the cuts are psql's. There is one exception: parentheses
that are never closed do not swallow the statements behind them.

The words of a statement decide its effect. In doubt it counts as one that refuses a transaction block: only the server
knows whether a subscription has a slot.
"""

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, StrEnum, auto
from itertools import islice, pairwise
from typing import NamedTuple

from pgratchet.core.errors import ScriptError

BLANKS = " \t\n\r\f\v"

UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)
"""For str.translate(): ASCII letters in upper case, because PostgreSQL folds no others."""

# Negated, because to PostgreSQL every character beyond ASCII is a letter; such a set also compiles fast.
_LETTER = r"[^\x00-@\[-\^`{-\x7f]"
_LETTER_OR_DIGIT = r"[^\x00-/:-@\[-\^`{-\x7f]"
_IN_NAME = r"[^\x00-#%-/:-@\[-\^`{-\x7f]"

_NEWLINE = re.compile(r"[\r\n]")
_BLANKS = re.compile(rf"[{BLANKS}]*")
_COMMENT_MARKS = re.compile(r"/\*|\*/")
_QUOTES = {
    "'": re.compile(r"''|'"),
    '"': re.compile(r'""|"'),
    "\\": re.compile(r"\\.|''|'", re.DOTALL),
}
_DOLLAR_TAG = re.compile(rf"\$(?:{_LETTER}{_LETTER_OR_DIGIT}*)?\$")
_NAME_CHARACTER = re.compile(_IN_NAME)
_NAME_REST = re.compile(rf"{_IN_NAME}*")
_WORD = re.compile(rf"(?P<prefix>[eE](?=')|[uU]&(?=['\"]))|{_LETTER}{_IN_NAME}*|[0-9]+(?:[eE](?='))?")

_ENDS = frozenset(";\\")
_MARKS = frozenset("'\"$-/")

# Text, whole strings and whole names, which need no further look. The count is bounded, because a greedy repeat
# remembers each of its turns, and the possessive one, which does not, is broken before Python 3.11.5.
_PLAIN = re.compile(
    r"""[^'"$;\\/-]*(?:(?:(?<![eE])'[^']*+(?:''[^']*+){0,99}'(?!')|"[^"]*+"(?!")|-(?!-)|/(?!\*))"""
    r"""[^'"$;\\/-]*){0,1000}"""
)
_COPY_LINE_REST = re.compile(r"(?:[ \t\r\f\v;]|--[^\n\r]*(?![^\n\r]))*(?:\n|\Z)")
_COPY_END = re.compile(r"^\\\.\r?$", re.MULTILINE)

_BLANK = rf"[{BLANKS}]"
_HIDDEN = rf"(?!{_BLANK}*[a-z])"
_OPENING = re.compile(
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


class StatementKind(StrEnum):
    """The kind of a piece of a script: SQL, the data behind a COPY, or a command to psql."""

    SQL = "sql"
    COPY = "copy"
    META = "meta"


class Statement(NamedTuple):
    """One piece of a script, without comments around it and without its semicolon.

    Offsets are in characters, lines count from 1.
    """

    kind: StatementKind
    start: int
    end: int
    line: int
    effect: Effect = HARMLESS


def scan(text: str) -> Iterator[Statement]:
    """Yield the pieces in order, each as soon as it is read.

    Raises ScriptError at a string, a quoted name or a comment that is never closed.
    """
    position = 1 if text.startswith("\ufeff") else 0
    line, counted = 1, 0
    while (start := gap_end(text, position)) < len(text):
        line += text.count("\n", counted, start)
        counted = start
        if text[start] == ";":
            position = start + 1
            continue
        if text[start] == "\\":
            position = line_end(text, start)
            yield Statement(StatementKind.META, start, position, line)
            continue
        effect, opening = HARMLESS, _OPENING.match(text, start)
        if opening is not None and opening["nesting"] and (kind := _nesting_kind(text, start)):
            end, stop = _nested_bounds(text, start, kind)
        else:
            end, stop = _bounds(text, start)
            if opening is not None:
                effect = effect_of(text, start, end)
        yield Statement(StatementKind.SQL, start, end, line, effect)
        position = stop + 1 if text.startswith(";", stop) else stop
        if effect.reads_stdin and (data := _copy_data(text, stop)):
            begin, finish, position = data
            yield Statement(StatementKind.COPY, begin, finish, line + text.count("\n", start, begin))


def effect_of(text: str, start: int, end: int) -> Effect:
    """Return the effect of the statement between two places."""
    words = head(text, start, end, 24 if text[max(start, end - 12) : end].translate(UPPER) == "CONCURRENTLY" else 12)
    has_options = words[:1] in {("REINDEX",), ("REPACK",)} or words[1:2] == ("SUBSCRIPTION",)
    return _classify(words, dict(_options(text, start, end)) if has_options else {})


def _options(text: str, start: int, end: int) -> Iterator[tuple[str, bool]]:
    """Yield each option in the first parentheses: its name in upper case, and whether it is switched on."""
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
            option.append(text[begin:finish].strip("'\"").translate(UPPER))
        elif lexeme == "(":
            inside = True


def _classify(  # noqa: C901, PLR0911, PLR0912 - one table: its rows are patterns
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


def _bounds(text: str, start: int) -> tuple[int, int]:
    """Return the end of a statement, and the place of the semicolon or backslash behind it, or the end of the text."""
    end = position = start
    while True:
        plain, blanks = _PLAIN.match(text, position), _BLANKS.match(text, position)
        stop = plain.end() if plain else position
        if blanks is None or blanks.end() < stop:
            end = stop
        if stop == len(text) or text[stop] in _ENDS:
            while text[end - 1] in BLANKS:
                end -= 1
            return end, stop
        if text[stop] in _MARKS:
            position = skip(text, position, stop)
            if not text.startswith(("--", "/*"), stop):
                end = position
        else:
            position = stop


def _nesting_kind(text: str, start: int) -> str | None:
    """Return the kind of object that is created at `start` if its body may hold semicolons; None for all others."""
    # Not with head(): after a parenthesis that is never closed it would read the whole text.
    match [word for word, _, _ in islice(tokens(text, start, len(text)), 4)]:
        case ["CREATE", "OR", "REPLACE", "FUNCTION" | "PROCEDURE" | "RULE" | "SCHEMA" as kind]:
            return kind
        case ["CREATE", "FUNCTION" | "PROCEDURE" | "RULE" | "SCHEMA" as kind, *_]:
            return kind
        case _:
            return None


def _nested_bounds(text: str, start: int, kind: str) -> tuple[int, int]:
    """Return the bounds of a statement that may hold others: in parentheses, or between BEGIN ATOMIC and END.

    An END is the closing one if and only if it follows a semicolon or ATOMIC: by the grammar, no count of
    CASE and END is needed, and a column may be called end.
    """
    end = start
    depth, atomic, previous = 0, False, ""
    for lexeme, begin, finish in tokens(text, start, len(text)):
        if lexeme in _ENDS and not (lexeme == ";" and (atomic or (depth and kind == "RULE"))):
            return end, begin
        if lexeme == "(":
            depth += 1
        elif lexeme == ")":
            depth = max(depth - 1, 0)
        elif depth == 0 and atomic:
            atomic = not (lexeme == "END" and previous in {";", "ATOMIC"})
        elif depth == 0:
            atomic = lexeme == "ATOMIC" and previous == "BEGIN"
        end, previous = finish, lexeme
    return end, len(text)


def _copy_data(text: str, stop: int) -> tuple[int, int, int] | None:
    """Return the bounds of the data behind a COPY that stops at `stop`, and the place where SQL goes on.

    Only a COPY at the end of its line has data.
    """
    rest = _COPY_LINE_REST.match(text, stop + 1)
    if rest is None or not text.startswith(";", stop):
        return None
    terminator = _COPY_END.search(text, rest.end())
    if terminator is None:
        return rest.end(), len(text), len(text)
    return rest.end(), terminator.start(), terminator.end()


def head(text: str, start: int, end: int, limit: int) -> tuple[str, ...]:
    """Return the first tokens outside parentheses, at most `limit`; a semicolon or a backslash ends them."""
    found: list[str] = []
    depth = 0
    for lexeme, _, _ in tokens(text, start, end):
        if lexeme == ")":
            depth -= 1
        if depth <= 0:
            if lexeme in _ENDS:
                break
            found.append(lexeme)
            if len(found) == limit:
                break
        if lexeme == "(":
            depth = max(depth, 0) + 1
    return tuple(found)


def tokens(text: str, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Yield each token between two places, with its bounds; a comment is no token.

    A word is in upper case, a quoted name as it is written, any string constant a single quote. Everything else comes
    character by character.
    """
    position = start
    while (begin := gap_end(text, position)) < end:
        word = _WORD.match(text, begin)
        if word is not None and word.lastgroup is None:
            position = word.end()
            yield word[0].upper() if word[0].isascii() else word[0].translate(UPPER), begin, position
            continue
        # Behind a prefix such as E or U&.
        mark = begin if word is None else word.end()
        position = skip(text, begin, mark) if text[mark] in _MARKS else mark + 1
        if text[mark] == '"':
            yield text[begin:position], begin, position
        else:
            yield "'" if text[mark] in "'$" and position > mark + 1 else text[mark], begin, position


def gap_end(text: str, position: int, comments: tuple[str, ...] = ("--", "/*")) -> int:
    """Return the first place from `position` on that is in no blank and no comment."""
    while True:
        if blanks := _BLANKS.match(text, position):
            position = blanks.end()
        if not text.startswith(comments, position):
            return position
        position = line_end(text, position) if text[position] == "-" else _comment_end(text, position)


def mentions(text: str, *words: str) -> bool:
    """Return whether one of the words, given in upper case, is in a text in any case.

    Ten times as fast as a pattern that ignores case, and without a copy of a large text.
    """
    size, longest = 1 << 20, max(map(len, words))
    pieces = (text[at : at + size + longest].upper() for at in range(0, len(text), size))
    return any(word in piece for piece in pieces for word in words)


def line_end(text: str, position: int) -> int:
    """Return the end of the line of `position`: before a line feed or a carriage return."""
    newline = _NEWLINE.search(text, position)
    return len(text) if newline is None else newline.start()


def skip(text: str, floor: int, begin: int) -> int:
    """Return the end of the string, quoted name or comment that begins at `begin`.

    Where none begins, it is `begin + 1`, or for a dollar inside a name the end of that name. A token has to begin at
    `floor`, at or before `begin`.
    """
    mark = text[begin]
    if mark == "'":
        return _string_end(text, floor, begin)
    if mark == '"':
        return _closed(text, begin, begin, mark)
    if mark == "$":
        return _dollar_end(text, floor, begin)
    if text.startswith("--", begin):
        return line_end(text, begin)
    return _comment_end(text, begin) if text.startswith("/*", begin) else begin + 1


def _string_end(text: str, floor: int, begin: int) -> int:
    prefix = begin - 1
    if prefix < floor or text[prefix] not in "eE" or (prefix > floor and _NAME_CHARACTER.match(text, prefix - 1)):
        return _closed(text, begin, begin, "'")
    quote: int | None = begin
    while quote is not None:
        end = _closed(text, begin, quote, "\\")
        # A string may be resumed on a later line, behind blanks or `--`.
        quote = gap_end(text, end, ("--",))
        if not (text.startswith("'", quote) and _NEWLINE.search(text, end, quote)):
            quote = None
    return end


def _closed(text: str, begin: int, quote: int, marks: str) -> int:
    """Return the place behind the closing quote of the one at `quote`; an error points at `begin`."""
    for found in _QUOTES[marks].finditer(text, quote + 1):
        if found.end() - found.start() == 1:
            return found.end()
    kind = "identifier" if marks == '"' else "string"
    raise ScriptError(f"unterminated quoted {kind}", begin)


def _dollar_end(text: str, floor: int, begin: int) -> int:
    name = begin
    while name > floor and "0" <= text[name - 1] <= "9":
        name -= 1
    if name > floor and _NAME_CHARACTER.match(text, name - 1):
        rest = _NAME_REST.match(text, begin)
        return rest.end() if rest else begin
    tag = _DOLLAR_TAG.match(text, begin)
    if tag is None:
        return begin + 1
    close = text.find(tag[0], tag.end())
    if close < 0:
        raise ScriptError(f"unterminated dollar-quoted string {tag[0]}", begin)
    return close + len(tag[0])


def _comment_end(text: str, begin: int) -> int:
    depth = 0
    for mark in _COMMENT_MARKS.finditer(text, begin):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    raise ScriptError("unterminated /* comment", begin)
