"""The role that a session works as: the owner, or for a moment the role that has logged in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pgratchet.postgres.link import own
from pgratchet.postgres.link.session import Connection
from pgratchet.postgres.link.sql import become


@asynccontextmanager
async def as_login(connection: Connection, owner: str | None) -> AsyncIterator[None]:
    """Run the block as the role that has logged in, in a session that may work as `owner`.

    The server shows the owner nothing of this session: it belongs to the role that has logged in.
    """
    if owner is None:
        yield
        return
    async with connection.transaction():
        await own.execute(connection, "SET LOCAL ROLE NONE")
        yield
        await own.execute(connection, become(owner, local=True))
