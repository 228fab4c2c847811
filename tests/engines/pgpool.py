"""A real pgpool-II before a primary and its standbys, on a free port, gone with the process that started it."""

import re
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from pgratchet import embedded
from pgratchet.embedded import Server
from tests.support import free_port, missing

_SENT = re.compile(
    r"pgratchet pid \d+: LOG:  DB node id: (\d+) backend pid: \d+ statement: (?:(?:Parse|Bind|Execute): )?(.*)"
)
_OF_ALL = ("BEGIN", "COMMIT", "ABORT", "SET ", "DISCARD", "SAVEPOINT", "RELEASE", "D message")
"""The beginnings of what pgpool-II sends to all servers, and of its own word for a part of the extended protocol."""


class Between(NamedTuple):
    """A running pgpool-II: the DSN of the database through it, and its log."""

    dsn: str
    log: Path

    def read_from(self, node: int) -> list[str]:
        """Return the statements of pgratchet that it has sent to a server, without those that all servers get."""
        sent = _SENT.findall(self.log.read_text(errors="replace"))
        return [text for number, text in sent if int(number) == node and not text.startswith(_OF_ALL)]


@contextmanager
def pgpool(servers: Sequence[Server], dsn: str, **settings: object) -> Iterator[Between]:
    """Yield a pgpool-II that sends reads to the last of the servers, and the rest to the first, the primary.

    `dsn` leads to a database of the primary; settings are as in pgpool.conf.
    """
    program = shutil.which("pgpool", path="/usr/sbin:/usr/bin")
    if not program:
        missing("pgpool-II is not installed (Debian and Ubuntu: apt-get install pgpool2)")
    account, port, parts = embedded._account(), free_port(), urlsplit(dsn)
    environment = embedded._environment(sys.executable, program)
    with embedded._kept(account, embedded._folder(account, None), environment) as keeper:
        root = keeper.root
        values = {
            "backend_clustering_mode": "streaming_replication",
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": root,
            "pcp_listen_addresses": "",
            "pcp_port": free_port(),
            "pcp_socket_dir": root,
            "pid_file_name": root / "pgpool.pid",
            "logdir": root,
            "work_dir": root,
            "num_init_children": 40,
            "enable_pool_hba": "on",
            "pool_passwd": root / "pool_passwd",
            "sr_check_period": 1,
            "sr_check_user": parts.username,
            "log_per_node_statement": "on",
        } | settings
        for number, server in enumerate(servers):
            values |= {
                f"backend_hostname{number}": "127.0.0.1",
                f"backend_port{number}": server.port,
                f"backend_weight{number}": int(server is servers[-1]),
                f"backend_flag{number}": "DISALLOW_TO_FAILOVER",
            }
        (root / "pgpool.conf").write_text("".join(f"{name} = '{value}'\n" for name, value in values.items()))
        (root / "pool_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        (root / "pool_passwd").write_text(f"{parts.username}:TEXT{unquote(parts.password or '')}\n")
        embedded._give(root, account)
        keeper.order([program, "-n", "-f", str(root / "pgpool.conf"), "-a", str(root / "pool_hba.conf")])

        def accepts() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        if keeper.wait("pgpool-II's start", accepts) is not None:
            raise keeper.error("pgpool-II did not start")
        netloc = f"{parts.username}:{parts.password}@127.0.0.1:{port}"
        yield Between(parts._replace(netloc=netloc).geturl(), root / "log")
