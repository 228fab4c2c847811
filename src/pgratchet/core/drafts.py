"""The text of a new migration, before anybody has written its work."""

import re

from pgratchet.core.model import Kind

COMMENT = {Kind.SQL: "--", Kind.PYTHON: "#"}

_PYTHON = '''

async def up(connection):
    """Runs inside a transaction; `connection` is asyncpg's."""


async def down(connection):
    """Undoes what `up` did."""
'''

_HEAD = {
    kind: re.compile(rf"\s*{mark} Migration:[^\n]*\n{mark} Version:[^\n]*\n{mark} Date:[^\n]*\s*")
    for kind, mark in COMMENT.items()
}


def draft(kind: Kind, title: str, version: str, date: str) -> str:
    """Return the text of a new file: its head, and for Python its functions without work."""
    mark = COMMENT[kind]
    head = f"{mark} Migration: {title}\n{mark} Version: {version}\n{mark} Date: {date}\n"
    return head + (_PYTHON if kind is Kind.PYTHON else "\n")


def is_draft(kind: Kind, text: str) -> bool:
    """Say whether a text is that of a new file which nobody has written yet."""
    head = _HEAD[kind].match(text)
    rest = "" if kind is Kind.SQL else _PYTHON
    return head is not None and text[head.end() :].split() == rest.split()
