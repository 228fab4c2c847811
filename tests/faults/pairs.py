"""A primary and its streaming standby."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgratchet import embedded
from pgratchet.embedded import Server


@contextmanager
def pair(folder: Path | None, *, synchronous: bool = True) -> Iterator[tuple[Server, Server]]:
    """Yield a primary and a standby; with `synchronous` the standby has every commit that the primary has reported."""
    settings = {"synchronous_standby_names": "*"} if synchronous else {}
    with (
        embedded.server(tcp=True, folder=folder, settings=settings) as primary,
        embedded.server(tcp=True, folder=folder) as standby,
    ):
        primary.stop()
        standby.stop()
        _copy(primary, standby)
        primary.start()
        standby.start()
        yield primary, standby


def _copy(primary: Server, standby: Server) -> None:
    owner = standby.data.stat()
    shutil.rmtree(standby.data)
    shutil.copytree(primary.data, standby.data)
    (standby.data / "standby.signal").touch()
    standby.password = primary.password  # whose roles it has now
    conninfo = f"primary_conninfo = '{primary.dsn}'\n"
    (standby.data / "postgresql.auto.conf").write_text(conninfo)
    for path in (standby.data, *standby.data.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    standby.data.chmod(0o700)
