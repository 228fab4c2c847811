"""The schema of a database as pg_dump writes it, object by object, and the differences between two schemas."""

import difflib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from pgratchet import embedded
from pgratchet.core.errors import ServerError
from pgratchet.core.masking import FramesForgotten, Hidden, hide
from pgratchet.core.sql.statements import tokens
from pgratchet.postgres.link.dsn import Address, Dsn, address_of
from pgratchet.postgres.link.sql import Table

_HEAD = re.compile(r"^--\n-- Name: (.+; Type: .+)\n--\n", re.MULTILINE)
_END = "--\n-- PostgreSQL database dump complete\n--\n"
_TAIL = re.compile(r"(?:\n+SET default_(?:tablespace = .*|table_access_method = (?P<method>.+));)*\n*\Z")
"""Settings after an object, for the objects that follow; their heads repeat the tablespace."""

_GRANT = re.compile(r"SET SESSION AUTHORIZATION .+\n.+\nRESET SESSION AUTHORIZATION;|.+")
_EDGES = {("(", 0), (",", 1), (")", 0)}
"""The separators of the columns and constraints of a table, each with its depth of parentheses."""

_LIBPQ = {
    *("host", "port", "user", "dbname", "passfile", "options", "application_name", "target_session_attrs"),
    *("sslmode", "sslnegotiation", "sslcert", "sslkey", "sslrootcert", "sslcrl"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib"),
}
"""Parameters of a DSN that libpq and asyncpg understand alike; to asyncpg, every other name is a server setting."""

Dump = Mapping[str, str]
"""The text of each object, by its name in the dump."""


def find_pg_dump(major: int) -> Path:
    """Return a pg_dump that can read a server of that major version; raises ServerError if there is none."""
    found = {}
    for path in _candidates():
        found[path] = _major(path)
        if found[path] >= major:
            return path
    there = ", ".join(f"{path} is {its_major}" for path, its_major in found.items() if its_major) or "there is none"
    raise ServerError(
        f"the server is PostgreSQL {major}, and needs a pg_dump that is as new: {there}; install PostgreSQL's client "
        f"programs {major}, or pgratchet[embedded], or name the folder that has pg_dump in {embedded.VARIABLE}"
    )


def _candidates() -> Iterator[Path]:
    if named := os.environ.get(embedded.VARIABLE):
        yield Path(named, "pg_dump")
    if on_path := shutil.which("pg_dump"):
        yield Path(on_path)
    yield from (folder / "pg_dump" for folder in embedded.candidates())


def _major(pg_dump: Path) -> int:
    """Return the major version of a pg_dump, 0 if it does not run."""
    with suppress(OSError):
        shown = subprocess.run([str(pg_dump), "--version"], capture_output=True, text=True, check=False)  # noqa: S603 - found above
        if number := re.search(r"\) (\d+)", shown.stdout):
            return int(number[1])
    return 0


def dump(pg_dump: Path, dsn: Dsn, history: Table) -> Dump:
    """Return the schema without the history table; raises ServerError with the message of pg_dump if that fails."""
    given = hide(dsn)
    del dsn
    address = address_of(given)
    where = f"--dbname={_without_password(address)}"
    command = [str(pg_dump), "--schema-only", f"--exclude-table={history.quoted}", where]
    try:
        with FramesForgotten():
            done = subprocess.run(  # noqa: S603 - found above
                command, capture_output=True, check=False, encoding="utf-8", env=_environment(address).reveal()
            )
    except OSError as error:
        raise ServerError(f"{pg_dump} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        raise ServerError(f"{pg_dump} failed: {done.stderr.strip()}")
    return _objects(done.stdout)


def _without_password(address: Address) -> str:
    """Return the DSN in libpq's form, without the password: everybody on this machine can read a command line."""
    return address.only(_LIBPQ).url.reveal()


def _environment(address: Address) -> Hidden[Mapping[str, str]]:
    """Return the variables of this process, and PGPASSWORD if the DSN has a password."""
    password = {"PGPASSWORD": address.get("password")} if address.get("password") else {}
    return Hidden({**os.environ, "LC_ALL": "C"} | password)


def _objects(text: str) -> Dump:
    objects: dict[str, str] = {}
    method = "heap"
    parts = ["", *_HEAD.split(text.rsplit(_END, 1)[0])]
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        before = objects.get(name, "") + ("" if method == "heap" else f"SET default_table_access_method = {method};\n")
        if tail := _TAIL.search(body):
            objects[name] = before + body[: tail.start()].lstrip("\n")
            method = tail["method"] or method
    del objects[""]  # settings of pg_dump, and a key that differs in each dump
    return objects


def differences(before: Dump, after: Dump) -> Iterator[str]:
    """Yield the lines of a diff, each object under its name; no lines if both schemas are the same."""
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) == after.get(name):
            continue
        old, new = (_in_any_order(name, each[name]) if name in each else [] for each in (before, after))
        if old != new:
            yield f"  {name}"
            # Without the two lines of file names, and the line of numbers of each hunk.
            for line in list(difflib.unified_diff(old, new, n=1, lineterm=""))[2:]:
                if not line.startswith("@@"):
                    yield f"    {line}"


def _in_any_order(name: str, text: str) -> list[str]:
    """Return the lines of an object; grants and the columns of a table are sorted, because their order has no meaning.

    A dropped column can come back only as the last one.
    """
    kind = name.rpartition("; Type: ")[2].partition(";")[0]
    parts = [text]
    if kind in {"ACL", "DEFAULT ACL"}:
        parts = sorted(_GRANT.findall(text))
    elif kind in {"TABLE", "FOREIGN TABLE"}:
        parts = _table(text)
    return [line for part in parts for line in part.split("\n")]


def _table(text: str) -> list[str]:
    depth, edges = 0, []
    for lexeme, begin, end in tokens(text, 0, len(text)):
        depth -= lexeme == ")"
        if (lexeme, depth) in _EDGES:
            edges.append((begin, end))
        if depth == 0 and lexeme in {")", ";"}:
            break
        depth += lexeme == "("
    # A table of a type may have no list of columns, and the order of a partition key has a meaning.
    if not edges or not text.startswith("\n", edges[0][1]):
        return [text]
    entries = [text[left:right].strip("\n") for (_, left), (right, _) in pairwise(edges)]
    statements = re.split(r"(?<=;)\n+(?=ALTER )", text[edges[-1][0] :])
    return [text[: edges[0][1]], *sorted(entries), *sorted(statements)]
