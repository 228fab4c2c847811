"""A real pg_auto_failover: a monitor and two servers, each on a machine of its own."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from tests.engines.herd import LOST
from tests.engines.machines import Machine, binaries, rack
from tests.support import column, free_port, until

PATIENCE = 90.0
_PRIMARY = "SELECT nodename FROM pgautofailover.node WHERE reportedstate = 'primary' AND goalstate = 'primary'"
_STANDBY = "SELECT nodename FROM pgautofailover.node WHERE reportedstate = 'secondary' AND health = 1"


class Formation:
    """Two servers, of which the monitor has made one the primary."""

    def __init__(self, folder: Path) -> None:
        self._ports = {name: free_port() for name in ("monitor", "one", "two")}
        self._monitor = f"postgresql://autoctl_node@127.0.0.1:{self._ports['monitor']}/pg_auto_failover?sslmode=disable"
        self.machines = {name: self._machine(folder / name) for name in self._ports}

    def _machine(self, folder: Path) -> Machine:
        # Other ways need passwords that pg_autoctl does not make; the servers listen on this machine alone.
        options: dict[str, Any] = {
            "pgctl": binaries("pg_rewind", "../lib/pgautofailover.so") / "pg_ctl",
            "pgdata": folder / "data",
            "pgport": self._ports[folder.name],
            "hostname": "127.0.0.1",
            "auth": "trust",
        }
        if folder.name == "monitor":
            kind = "monitor"
        else:
            kind = "postgres"
            options |= {"pghost": folder, "name": folder.name, "monitor": self._monitor}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = ["pg_autoctl", "create", kind, *words, "--no-ssl", "--run"]
        return Machine(folder, command, XDG_RUNTIME_DIR=str(folder), PG_REGRESS_SOCK_DIR=str(folder))

    def dsn(self, database: str) -> str:
        """Return the DSN of a database on the primary, which the client finds among both servers."""
        hosts = f"127.0.0.1:{self._ports['one']},127.0.0.1:{self._ports['two']}"
        return f"postgresql://postgres@{hosts}/{database}?target_session_attrs=read-write&sslmode=disable"

    direct = dsn

    async def monitored(self) -> bool:
        """Return whether the monitor takes servers."""
        with suppress(*LOST):
            await column(self._monitor, _STANDBY)
            return True
        return False

    async def leader(self) -> Machine:
        """Return the primary once the other server may take over."""

        async def found() -> list[str]:
            return await column(self._monitor, _PRIMARY) if await column(self._monitor, _STANDBY) else []

        (name,) = await until(found, PATIENCE)
        return self.machines[name]

    async def switch_over(self) -> None:
        """Have the other server take over, as before the maintenance of a machine."""
        command = ("pg_autoctl", "perform", "failover", "--monitor", self._monitor)
        await anyio.to_thread.run_sync(self.machines["monitor"].run, *command)


@contextmanager
def auto_failover() -> Iterator[Formation]:
    """Yield a formation that starts."""
    with rack("pg_autoctl") as folder:
        formation = Formation(folder)
        try:
            formation.machines["monitor"].start()
            # Without a monitor a server gives up.
            anyio.run(until, formation.monitored, PATIENCE)
            formation.machines["one"].start()
            formation.machines["two"].start()
            yield formation
        finally:
            for machine in formation.machines.values():
                machine.lose()
