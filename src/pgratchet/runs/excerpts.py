"""The lines of a file around an error, as a terminal shows them."""

from collections.abc import Iterator, Sequence

from pgratchet.core.printing import printable

WIDEST = 160
"""The longest part of a line, in characters, that is shown."""


class Drawn(str):
    """A line to show: printable except for its tabs, which keep the caret in its place."""

    __slots__ = ()


def drawn(excerpt: Sequence[tuple[int, str]], line: int, column: int | None) -> Iterator[Drawn]:
    """Yield the lines with their numbers, and a caret below the column; columns count from 1."""
    digits = max((len(str(number)) for number, _ in excerpt), default=0)
    for number, text in excerpt:
        here = number == line
        shown, before = _cut(text, column - 1 if here and column else 0)
        yield Drawn(f"{'>' if here else ' '} {number:>{digits}} | {_printable(shown)}".rstrip())
        if here and column:
            yield Drawn(f"  {'':>{digits}} | {_blank(_printable(shown[:before]))}^")


def _cut(text: str, offset: int) -> tuple[str, int]:
    """Return the part of a long line that is shown, and the offset within that part."""
    start = max(0, min(offset - WIDEST // 2, len(text) - WIDEST))
    head = "..." if start else ""
    tail = "..." if start + WIDEST < len(text) else ""
    return head + text[start : start + WIDEST] + tail, offset - start + len(head)


def _printable(text: str) -> str:
    """Return the text with each unprintable character replaced by one printable character."""
    return "\t".join(printable(part, "\N{REPLACEMENT CHARACTER}") for part in text.split("\t"))


def _blank(text: str) -> str:
    """Return blanks of the same width; a tab stays a tab, so that it ends at the same place in both lines."""
    from rich.cells import cell_len  # noqa: PLC0415 - needed only for an error

    return "\t".join(" " * cell_len(part) for part in text.split("\t"))
