"""Names, values, operators and limits in SQL text: the one place where they are quoted and spelled."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from pgratchet.core import arguments
from pgratchet.core.errors import UsageError
from pgratchet.core.model import Options
from pgratchet.core.printing import encodable

EQ = "OPERATOR(pg_catalog.=)"
NE = "OPERATOR(pg_catalog.<>)"
LT = "OPERATOR(pg_catalog.<)"
GT = "OPERATOR(pg_catalog.>)"
MINUS = "OPERATOR(pg_catalog.-)"
CONCAT = "OPERATOR(pg_catalog.||)"
MATCHES = "OPERATOR(pg_catalog.~)"
"""Operators as our own SQL writes them, see `own`. All have the same precedence: use parentheses."""

LONGEST_NAME = 63
"""Longest identifier in bytes; PostgreSQL cuts longer ones silently (NAMEDATALEN - 1)."""


def identifier(name: str) -> str:
    """Return a quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str | int | None) -> str:
    """Return a literal that means the same with each value of standard_conforming_strings."""
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    text = encodable(value).replace("\0", "").replace("'", "''")
    return "E'" + text.replace("\\", "\\\\") + "'" if "\\" in text else f"'{text}'"


def array(values: Iterable[str]) -> str:
    """Return an array of texts."""
    return f"ARRAY[{', '.join(map(literal, values))}]::pg_catalog.text[]"


def become(role: str, *, local: bool = False) -> str:
    """Return the statement that lets a session, or its transaction, work as a role."""
    return f"SET {'LOCAL' if local else 'SESSION'} ROLE {identifier(role)};"


def role(what: str, value: object) -> str:
    """Return a role's name, exact, as in the catalog; raises UsageError for one that PostgreSQL would cut."""
    name = arguments.name(what, value)
    if not 0 < (length := len(name.encode())) <= LONGEST_NAME:
        raise UsageError(f"{what} is {length} bytes long; a role's name has at least one and at most {LONGEST_NAME}")
    return name


def roles(what: str, values: object) -> tuple[str, ...]:
    """Return the names of several roles; raises UsageError for a value that is no list of names, such as one name."""
    return arguments.several(what, values, role)


def owner(what: str, value: object) -> str:
    """Return the name of a role that a session may work as; raises UsageError for `none`, which means no role."""
    if value == "none":
        raise UsageError(f"{what} is 'none', which PostgreSQL takes for no role; leave it out, or name a role")
    return role(what, value)


def milliseconds(seconds: float) -> str:
    """Return a duration as PostgreSQL's parameters take it; 0 means no limit, so no other value is rounded to it."""
    return literal(f"{max(1, round(seconds * 1000)) if seconds > 0 else 0}ms")


class Limits(NamedTuple):
    """How long statements may wait for a lock, and may take, in seconds; 0 means for ever."""

    lock_timeout: float
    statement_timeout: float

    def of(self, options: Options) -> "Limits":
        """Return the limits of one script: its own directives come first."""
        return Limits(
            self.lock_timeout if options.lock_timeout is None else options.lock_timeout,
            self.statement_timeout if options.statement_timeout is None else options.statement_timeout,
        )


class Table(NamedTuple):
    """A table's full name; both parts are exact, as in the catalog."""

    schema: str
    name: str

    @classmethod
    def parse(cls, value: object, what: str = "table") -> "Table":
        """Return the table with the name `schema.name` or `name` (in public); raises UsageError for any other text."""
        text = arguments.text(what, value)
        schema, dot, name = text.rpartition(".")
        parts = (schema if dot else "public", name)
        for part in parts:
            arguments.name(f"a part of {what}", part)
            if not part or '"' in part or "." in part or len(part.encode()) > LONGEST_NAME:
                raise UsageError(
                    f"{what} is '{text}', which is no table's name: write schema.name, without quotes, "
                    f"each part at most {LONGEST_NAME} bytes"
                )
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def quoted(self) -> str:
        """The name as SQL takes it."""
        return f"{identifier(self.schema)}.{identifier(self.name)}"

    @property
    def lock_key(self) -> int:
        """The advisory lock that stands for this table, in its database: a signed 64-bit number.

        Frozen: releases that compute it differently would not exclude each other (golang-migrate's command
        line and library do not). Schema and name are both in it, so that tenants do not queue behind each
        other (rails/rails#31627).
        """
        digest = hashlib.sha256(f"pgratchet\0{self.schema}\0{self.name}".encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)
