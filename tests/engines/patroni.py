"""A real Patroni: an etcd, two servers, and HAProxy before them, each on a machine of its own."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import anyio.to_thread

from tests.engines.machines import Machine, binaries, rack
from tests.support import free_port, until

TIMES = {"ttl": 20, "loop_wait": 2, "retry_timeout": 3}
"""Seconds. Patroni takes no shorter life for the leader's key than 20."""

PATIENCE = 60.0
PROXY = """
defaults
    mode tcp
    timeout connect 1s
    timeout client 10m
    timeout server 10m
listen primary
    bind 127.0.0.1:{port}
    option httpchk GET /primary
    default-server inter 500ms fall 2 rise 1 on-marked-down shutdown-sessions
"""


class Cluster:
    """Two servers, `one` and `two`, of which Patroni has made one the primary; HAProxy leads to that."""

    def __init__(self, folder: Path, *, proxy: bool) -> None:
        self._password = secrets.token_hex(16)
        self._ports = {name: (free_port(), free_port()) for name in ("one", "two")}
        self._proxy = free_port()
        etcd, peers = free_port(), free_port()
        here, there = f"http://127.0.0.1:{etcd}", f"http://127.0.0.1:{peers}"
        options = {
            "data-dir": folder / "etcd" / "data",
            "listen-client-urls": here,
            "advertise-client-urls": here,
            "listen-peer-urls": there,
            "initial-advertise-peer-urls": there,
            "initial-cluster": f"default={there}",
            "unsafe-no-fsync": "true",
        }
        self.machines = {"etcd": Machine(folder / "etcd", ["etcd", *(f"--{k}={v}" for k, v in options.items())])}
        servers = ""
        for name, (port, rest) in self._ports.items():
            member = Machine(folder / name, ["patroni", folder / name / "patroni.json"])
            member.write("patroni.json", json.dumps(self._settings(member.folder, name, etcd)))
            self.machines[name] = member
            servers += f"    server {name} 127.0.0.1:{port} check port {rest}\n"
        if proxy:
            machine = Machine(folder / "proxy", ["haproxy", "-db", "-f", folder / "proxy" / "haproxy.cfg"])
            machine.write("haproxy.cfg", PROXY.format(port=self._proxy) + servers)
            self.machines["proxy"] = machine

    def _settings(self, folder: Path, name: str, etcd: int) -> dict[str, Any]:
        port, rest = self._ports[name]
        login = {"username": "postgres", "password": self._password}
        return {
            "scope": "house",
            "name": name,
            "etcd3": {"host": f"127.0.0.1:{etcd}"},
            "restapi": {"listen": f"127.0.0.1:{rest}", "connect_address": f"127.0.0.1:{rest}"},
            "bootstrap": {
                "dcs": {**TIMES, "synchronous_mode": True, "postgresql": {"use_pg_rewind": True}},
                "initdb": [{"encoding": "UTF8"}, "data-checksums"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{port}",
                "connect_address": f"127.0.0.1:{port}",
                "data_dir": str(folder / "data"),
                "bin_dir": str(binaries("pg_rewind", "pg_basebackup")),
                "pgpass": str(folder / "pgpass"),
                "pg_hba": ["host all,replication all 127.0.0.1/32 scram-sha-256"],
                "parameters": {"unix_socket_directories": str(folder)},
                "authentication": {"superuser": login, "replication": login},
            },
        }

    def dsn(self, database: str) -> str:
        """Return the DSN of a database on the primary, through the proxy where there is one."""
        return self._dsn(database, f"127.0.0.1:{self._proxy}") if "proxy" in self.machines else self.direct(database)

    def direct(self, database: str) -> str:
        """Return the DSN of a database on the primary, which the client finds among both servers."""
        return self._dsn(database, ",".join(f"127.0.0.1:{port}" for port, _ in self._ports.values()))

    def _dsn(self, database: str, hosts: str) -> str:
        return f"postgresql://postgres:{self._password}@{hosts}/{database}?target_session_attrs=primary"

    async def leader(self) -> Machine:
        """Return the primary once the other server streams from it, and may take over."""

        def states() -> dict[str, str]:
            found = {}
            for _, rest in self._ports.values():
                with suppress(OSError), urlopen(f"http://127.0.0.1:{rest}/cluster", timeout=1) as answer:
                    found = {each["name"]: f"{each['role']} {each['state']}" for each in json.load(answer)["members"]}
            return found

        async def both() -> str:
            known = await anyio.to_thread.run_sync(states)
            roles = {state: name for name, state in known.items()}
            standby = {"sync_standby running", "sync_standby streaming"} & roles.keys()
            return roles.get("leader running", "") if standby else ""

        return self.machines[await until(both, PATIENCE)]

    async def switch_over(self) -> None:
        """Have the other server take over, as before the maintenance of a machine."""
        member = await self.leader()
        command = ("patronictl", "-c", str(member.folder / "patroni.json"), "switchover", "--force")
        await anyio.to_thread.run_sync(member.run, *command)


@contextmanager
def patroni(*, proxy: bool = False) -> Iterator[Cluster]:
    """Yield a cluster that starts."""
    with rack("patroni", "etcd", "haproxy") as folder:
        cluster = Cluster(folder, proxy=proxy)
        try:
            for machine in cluster.machines.values():
                machine.start()
            yield cluster
        finally:
            for machine in cluster.machines.values():
                machine.lose()
