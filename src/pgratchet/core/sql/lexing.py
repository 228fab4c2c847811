"""PostgreSQL's lexical rules: where words, strings, quoted names and comments end."""

import re
from collections.abc import Iterator

from pgratchet.core.errors import ScriptError

BLANKS = " \t\n\r\f\v"

# Negated, because to PostgreSQL every character beyond ASCII is a letter; such a set also compiles fast.
_LETTER = r"[^\x00-@\[-\^`{-\x7f]"
_LETTER_OR_DIGIT = r"[^\x00-/:-@\[-\^`{-\x7f]"
_IN_NAME = r"[^\x00-#%-/:-@\[-\^`{-\x7f]"

_NEWLINE = re.compile(r"[\r\n]")
_BLANKS = re.compile(rf"[{BLANKS}]*")
_COMMENT_MARKS = re.compile(r"/\*|\*/")
_MARKS = {
    "'": re.compile(r"''|'"),
    '"': re.compile(r'""|"'),
    "\\": re.compile(r"\\.|''|'", re.DOTALL),
}
_DOLLAR_TAG = re.compile(rf"\$(?:{_LETTER}{_LETTER_OR_DIGIT}*)?\$")
_NAME_CHARACTER = re.compile(_IN_NAME)
_NAME_REST = re.compile(rf"{_IN_NAME}*")
_WORD = re.compile(rf"(?P<prefix>[eE](?=')|[uU]&(?=['\"]))|{_LETTER}{_IN_NAME}*|[0-9]+(?:[eE](?='))?")


def line_end(text: str, position: int) -> int:
    """Return where the line of `position` ends: before a line feed or a carriage return."""
    newline = _NEWLINE.search(text, position)
    return len(text) if newline is None else newline.start()


def gap_end(text: str, position: int, comments: tuple[str, ...] = ("--", "/*")) -> int:
    """Return the first place from `position` on that is in no blank and no comment."""
    while text.startswith(comments, position := match_end(_BLANKS, text, position)):
        position = skip(text, position, position)
    return position


def match_end(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Return where the match at `position` ends; `position` where there is none."""
    match = pattern.match(text, position)
    return position if match is None else match.end()


def skip(text: str, floor: int, begin: int) -> int:
    """Return where the string, quoted name or comment ends that begins at `begin`.

    Where none begins: `begin + 1`, or for a dollar inside a name the end of that name. `floor` is a place
    at or before `begin` where a token begins.
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


def tokens(text: str, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Yield each token between two places, with its bounds; comments are none.

    A word is in upper case, a quoted name as it is written, any string constant a single quote; whatever
    else there is comes character by character.
    """
    position = start
    while (begin := gap_end(text, position)) < end:
        word = _WORD.match(text, begin)
        if word is None or word.lastgroup is not None:
            mark = begin if word is None else word.end()
            position = skip(text, begin, mark)
            yield _symbol(text, begin, mark, position), begin, position
        else:
            position = word.end()
            yield upper(word[0]), begin, position


def head(text: str, start: int, end: int, limit: int) -> tuple[str, ...]:
    """Return the first tokens outside parentheses, at most `limit`; a semicolon or a backslash ends them."""
    found: list[str] = []
    depth = 0
    for lexeme, _, _ in tokens(text, start, end):
        if lexeme == ")":
            depth -= 1
        if depth <= 0:
            if lexeme in {";", "\\"}:
                break
            found.append(lexeme)
            if len(found) == limit:
                break
        if lexeme == "(":
            depth = max(depth, 0) + 1
    return tuple(found)


def upper(word: str) -> str:
    """Return the word with its ASCII letters in upper case: PostgreSQL folds no others."""
    return word.upper() if word.isascii() else re.sub("[a-z]+", lambda run: run[0].upper(), word)


def _symbol(text: str, begin: int, mark: int, end: int) -> str:
    """Return what stands for a token that is no word; `mark` is its first character behind any prefix."""
    if text[mark] == '"':
        return text[begin:end]
    return "'" if text[mark] in "'$" and end > mark + 1 else text[mark]


def _string_end(text: str, floor: int, begin: int) -> int:
    prefix = begin - 1
    if prefix < floor or text[prefix] not in "eE" or (prefix > floor and _NAME_CHARACTER.match(text, prefix - 1)):
        return _closed(text, begin, begin, "'")
    end = _closed(text, begin, begin, "\\")
    while (quote := _continuation(text, end)) is not None:
        end = _closed(text, begin, quote, "\\")
    return end


def _continuation(text: str, end: int) -> int | None:
    """Return where a string that was closed at `end` is resumed: on a later line, behind blanks or `--`."""
    quote = gap_end(text, end, ("--",))
    return quote if text.startswith("'", quote) and _NEWLINE.search(text, end, quote) else None


def _closed(text: str, begin: int, quote: int, marks: str) -> int:
    """Return where the quote at `quote` is closed; an error points at `begin`."""
    for found in _MARKS[marks].finditer(text, quote + 1):
        if found.end() - found.start() == 1:
            return found.end()
    kind = "identifier" if marks == '"' else "string"
    raise ScriptError(f"unterminated quoted {kind}", begin)


def _dollar_end(text: str, floor: int, begin: int) -> int:
    name = begin
    while name > floor and "0" <= text[name - 1] <= "9":
        name -= 1
    if name > floor and _NAME_CHARACTER.match(text, name - 1):
        return match_end(_NAME_REST, text, begin)
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
