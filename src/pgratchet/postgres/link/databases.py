"""Whole databases for tests: made empty or as copies, dropped with their sessions, and swept up a day later."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg

from pgratchet.core.errors import ServerError
from pgratchet.postgres.link import own
from pgratchet.postgres.link.dsn import Address
from pgratchet.postgres.link.session import Connect, Connection, connector, describe, open_session
from pgratchet.postgres.link.sql import EQ, LT, MATCHES, identifier

PREFIX = "pgratchet_test_"
"""The beginning of all their names; the day on which their run began comes next."""

KEPT = timedelta(days=1)
"""The least age of a killed run's databases when they are dropped: no run lasts that long."""

FIRST_WITH_STRATEGY = 15

_log = logging.getLogger("pgratchet")


def unique_prefix() -> str:
    """Return a beginning for the names of one run that no other run has."""
    return f"{PREFIX}{datetime.now(UTC):%Y%m%d}_{uuid4().hex[:12]}_"


async def create(address: Address, name: str, template: str = "template0") -> None:
    """Make a database as a copy of another one.

    Raises ServerError if the role may not, or if a session stays connected to the template for 5 seconds.
    """
    async with open_session(connector(address)) as connection:
        strategy = await _strategy(connection)
        try:
            create = f"CREATE DATABASE {identifier(name)} TEMPLATE {identifier(template)} {strategy}"
            await own.execute(connection, create)
        except asyncpg.InsufficientPrivilegeError as error:
            raise ServerError(f"{error}; tests need a role that may: ALTER ROLE ... CREATEDB") from None


async def drop(address: Address, name: str) -> None:
    """Drop a database if it exists, with its sessions; one whose sessions the role may not end is left for a sweep."""
    async with open_session(connector(address)) as connection:
        try:
            await own.execute(connection, f"DROP DATABASE IF EXISTS {identifier(name)} WITH (FORCE)")
        except (asyncpg.InsufficientPrivilegeError, asyncpg.ObjectInUseError) as error:
            _log.warning("%s is left to a later run: %s", name, describe(error))


async def sweep(address: Address) -> None:
    """Drop the databases that runs of other days have left behind, if no session is connected to them."""
    async with open_session(connector(address)) as connection:
        rows = await own.fetch(
            connection,
            f"SELECT datname FROM pg_catalog.pg_database AS d WHERE datname {MATCHES} $1 "
            f"AND datname::pg_catalog.text {LT} $2 "
            # Without this the server would wait 5 seconds for the sessions of each.
            f"AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity AS a WHERE a.datname {EQ} d.datname)",
            f"^{PREFIX}[0-9]{{8}}_[0-9a-f]{{12}}_[0-9]+$",
            f"{PREFIX}{datetime.now(UTC) - KEPT:%Y%m%d}",
        )
        for row in rows:
            # It may be another role's, in use again, or dropped by another sweeper: none of that harms this run.
            with suppress(asyncpg.PostgresError):
                await own.execute(connection, f"DROP DATABASE IF EXISTS {identifier(row['datname'])}")


async def names(factories: Iterable[Connect]) -> set[str]:
    """Return the names of the databases that sessions of these factories are in."""
    found = set()
    for connect in factories:
        async with open_session(connect) as connection:
            found.add(str((await own.ask(connection, "SELECT pg_catalog.current_database() AS name"))["name"]))
    return found


async def major(address: Address) -> int:
    """Return the server's major version."""
    async with open_session(connector(address)) as connection:
        return int(connection.get_server_version().major)


async def _strategy(connection: Connection) -> str:
    """Return how to copy: without fsync, to copy the files takes half the time of logging their pages.

    With fsync, the two checkpoints of a copy of files cost more than they save.
    """
    if connection.get_server_version().major < FIRST_WITH_STRATEGY:
        return ""
    answer = await own.ask(connection, "SELECT pg_catalog.current_setting('fsync') AS fsync")
    return "STRATEGY file_copy" if answer["fsync"] == "off" else ""
