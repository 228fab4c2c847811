"""Databases with unique names on one server, for code that is not asynchronous."""

import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

from anyio.from_thread import start_blocking_portal

from pgratchet import Migrator, UsageError, embedded
from pgratchet.core.masking import Hidden, discreet, hide
from pgratchet.postgres.link import databases
from pgratchet.postgres.link.dsn import Dsn, address_of

MakeMigrator = Callable[[str], Migrator]
"""A function that takes a DSN and returns the migrator of that database."""

ROOM = 2 << 30
"""Free bytes in memory that a server in memory needs: it takes 100 MB, and each database 8 MB or more."""

T = TypeVar("T")


class ShownDsn(str):
    """A DSN whose repr has no password: pytest prints the repr in the report of a failed test."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(discreet(str(self)))


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `work`, run in an event loop and a thread of its own; an interrupt cancels it.

    Not by asyncio.run: a loop may run in the caller's thread already, and its current loop must stay.
    """
    with start_blocking_portal("asyncio") as portal:
        return portal.call(work)


@contextmanager
def server(dsn: str | None = None) -> Iterator[Hidden[str]]:
    """Yield the DSN of a server: `dsn`, DATABASE_URL, or a private server that ends with the block.

    The private server is in memory if there is room. Only processes of this user reach it: it has a socket and no port.
    """
    given = hide(dsn or os.environ.get("DATABASE_URL", ""))
    del dsn
    if given:
        yield given
        return
    with embedded.server(folder=memory()) as private:
        yield Hidden(private.dsn)


def memory() -> Path | None:
    """Return a folder in memory with room for a server, or None."""
    folder = Path("/dev/shm")  # noqa: S108 - private directories are made in it
    return folder if folder.is_dir() and shutil.disk_usage(folder).free > ROOM else None


def made(make_migrator: MakeMigrator, dsn: Dsn) -> Migrator:
    """Return the migrator of one of our databases; raises UsageError if a session of it would use another database.

    A factory of connections or a direct DSN may lead to another database, and a test must not change that one. The
    name of the database decides, because it is unique.
    """
    given = hide(dsn)
    del dsn
    migrator, wanted = make_migrator(given.reveal()), address_of(given).get("dbname")
    settings = migrator._settings  # noqa: SLF001 - of this package
    if elsewhere := run(partial(databases.names, (settings.connect, settings.direct))) - {wanted}:
        raise UsageError(
            f"pgratchet_migrator was given the database {wanted}, and made a migrator of {', '.join(elsewhere)}: "
            "let it use the DSN that it is given, without connect= or direct_dsn= that lead elsewhere"
        )
    return migrator


class Databases:
    """Makes and drops databases on one server; each database is known by its DSN.

    Any thread may call the methods, also inside a running event loop, which waits meanwhile.
    """

    def __init__(self, server: Dsn) -> None:
        given = hide(server)
        del server
        self._server = address_of(given)
        self._prefix = databases.unique_prefix()
        self._numbers = count(1)

    def sweep(self) -> None:
        """Drop databases that killed runs have left on the server, if these are at least a day old."""
        run(partial(databases.sweep, self._server))

    def server_major(self) -> int:
        """Return the server's major version."""
        return run(partial(databases.major, self._server))

    @contextmanager
    def empty(self) -> Iterator[str]:
        """Yield the DSN of an empty database; afterwards disconnect its clients and drop it."""
        with self._copy("template0") as dsn:
            yield ShownDsn(dsn.reveal())

    @contextmanager
    def migrated(self, make_migrator: MakeMigrator) -> Iterator[str]:
        """Yield the DSN of a database with every migration applied; drop it as `empty` does."""
        with self._copy("template0") as dsn:
            run(made(make_migrator, dsn).up)
            yield ShownDsn(dsn.reveal())

    @contextmanager
    def clone(self, template: Dsn) -> Iterator[str]:
        """Yield the DSN of a copy of the database `template`, which must have no clients; drop it as `empty` does."""
        original = hide(template)
        del template
        with self._copy(address_of(original).get("dbname")) as dsn:
            yield ShownDsn(dsn.reveal())

    @contextmanager
    def _copy(self, template: str) -> Iterator[Hidden[str]]:
        name = f"{self._prefix}{next(self._numbers)}"
        run(partial(databases.create, self._server, name, template))
        try:
            yield self._server.of_database(name).url
        finally:
            run(partial(databases.drop, self._server, name))

    def dsn_of(self, name: str) -> str:
        """Return the DSN of a database on the server, whether or not it exists."""
        return ShownDsn(self._server.of_database(name).url.reveal())
