"""Wait for the moment of a fault, and do its harm to processes, sessions, network or server."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Literal, NamedTuple

import anyio
import anyio.to_thread
import asyncpg

from pgratchet import embedded
from tests.chaos.faults import NETWORK, After, Fault, Kind, Passing, Seen
from tests.faults.proxy import Proxy
from tests.faults.traps import Harm
from tests.poolers import Pooler
from tests.support import connected

GLANCE = 0.01
"""Seconds between two looks at the server."""

SERVER_GONE = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)

STRANGER = "stranger"

ROLE = "replica_"
"""The beginning of the name of a replica's role; the replica's number follows, which identifies its sessions."""

_SESSIONS = (
    "SELECT a.pid, a.usename, a.application_name || ' ' || a.query AS text, a.state, EXISTS (SELECT FROM pg_locks l "
    "WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.granted) AS holds FROM pg_stat_activity a "
    "WHERE a.datname = $1 AND a.application_name LIKE 'pgratchet%'"
)

_HARMS = {Kind.RESET: Harm.RESET, Kind.CLOSE: Harm.CLOSE, Kind.FREEZE: Harm.FREEZE}
_MODES: dict[Kind, Literal["fast", "immediate"]] = {Kind.RESTART_FAST: "fast", Kind.RESTART_IMMEDIATE: "immediate"}
_SIGNALS = {Kind.KILL: signal.SIGKILL, Kind.TERM: signal.SIGTERM, Kind.EVICT: signal.SIGTERM, Kind.STOP: signal.SIGSTOP}


class Session(NamedTuple):
    """One session of a replica as it was last seen; a session of the pooler has a number below 0."""

    pid: int
    replica: int
    text: str
    active: bool
    holds: bool


@dataclass
class Scene:
    """Everything that can be hurt, and the harm that was done."""

    server: embedded.Server
    dsn: str
    database: str
    proxy: Proxy
    pooler: Pooler | None
    processes: dict[int, BaseProcess] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)
    began: anyio.Event = field(default_factory=anyio.Event)
    injected: Counter[Kind] = field(default_factory=Counter)
    restarting: anyio.Lock = field(default_factory=anyio.Lock)

    async def observe(self) -> None:
        """Keep `sessions` up to date, from another database, so as not to disturb."""
        while True:
            try:
                async with connected(self.server.dsn, application_name=STRANGER) as connection:
                    while True:
                        rows = await connection.fetch(_SESSIONS, self.database)
                        self.sessions = [_session(row) for row in rows]
                        if self.sessions:
                            self.began.set()
                        await anyio.sleep(GLANCE)
            except SERVER_GONE:
                await anyio.sleep(GLANCE)

    async def inject(self, fault: Fault) -> None:
        """Do one fault's harm at its moment, and count it if there was a victim."""
        try:
            await self._hurt(fault, await self._moment(fault))
        except SERVER_GONE:
            return
        finally:
            if fault.kind is Kind.FREEZE:
                self.proxy.resume()

    async def _moment(self, fault: Fault) -> Session | None:
        """Return when the moment has come, with its session if there is one."""
        moment = fault.moment
        if isinstance(moment, Seen):
            text = moment.text
            session = await self._session(lambda session: session.active and text in session.text)
            await anyio.sleep(moment.seconds)
            return session
        await anyio.sleep(moment.seconds)
        if isinstance(moment, Passing):
            harm = _HARMS.get(fault.kind, Harm.NONE)
            trap = self.proxy.trap(moment.way, moment.at, harm, forward=moment.forward)
            try:
                await trap.sprung.wait()
            finally:
                self.proxy.disarm(trap)
        return None

    async def _hurt(self, fault: Fault, seen: Session | None) -> None:
        kind = fault.kind
        if kind in NETWORK:
            await self._hurt_network(fault)
        elif kind in _MODES:
            async with self.restarting:
                self.injected[kind] += 1
                await anyio.to_thread.run_sync(self.server.restart, _MODES[kind])
        elif kind is Kind.RESTART_POOLER and self.pooler:
            self.injected[kind] += 1
            self.pooler.restart()
        elif kind in (Kind.OLD_TRANSACTION, Kind.TABLE_LOCK):
            await self._stand_in_the_way(fault)
        elif kind in (Kind.TERMINATE, Kind.CANCEL, Kind.EVICT):
            await self._end_session(fault, seen or await self._victim(fault))
        else:
            await self._signal(fault, (seen or await self._victim(fault)).replica)

    async def _end_session(self, fault: Fault, session: Session) -> None:
        function = "pg_cancel_backend" if fault.kind is Kind.CANCEL else "pg_terminate_backend"
        async with connected(self.server.dsn, application_name=STRANGER) as connection:
            if fault.kind is Kind.EVICT:
                await self._signal(fault, session.replica)
            ended = await connection.fetchval(f"SELECT {function}($1)", session.pid)
            self.injected[fault.kind] += bool(ended) and fault.kind is not Kind.EVICT

    async def _hurt_network(self, fault: Fault) -> None:
        self.injected[fault.kind] += 1
        if isinstance(fault.moment, After):
            self.proxy.freeze() if fault.kind is Kind.FREEZE else self.proxy.cut(_HARMS[fault.kind])
        if fault.kind is Kind.FREEZE:
            await anyio.sleep(fault.seconds)

    async def _stand_in_the_way(self, fault: Fault) -> None:
        async with connected(self.dsn, application_name=STRANGER, lock_timeout="1s") as connection:
            mode = "ACCESS EXCLUSIVE" if fault.kind is Kind.TABLE_LOCK else "ROW EXCLUSIVE"
            await connection.execute(f"BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK TABLE {fault.table} IN {mode} MODE")
            if fault.kind is Kind.OLD_TRANSACTION:
                await connection.execute("SELECT txid_current(), count(*) FROM few")
            self.injected[fault.kind] += 1
            await anyio.sleep(fault.seconds)

    async def _signal(self, fault: Fault, replica: int) -> None:
        living = [number for number, process in self.processes.items() if process.is_alive()]
        process = self.processes.get(replica if replica >= 0 or not living else living[len(living) // 2])
        if process is None or not _send(process, _SIGNALS[fault.kind]):
            return
        self.injected[fault.kind] += 1
        if fault.kind is Kind.STOP:
            try:
                await anyio.sleep(fault.seconds)
            finally:
                _send(process, signal.SIGCONT)

    async def _victim(self, fault: Fault) -> Session:
        """Return a session of the fault's victim, or the session that has the lock, as soon as it is there."""
        if fault.victim is None:
            return await self._session(lambda session: session.holds)
        return await self._session(lambda session: session.replica == fault.victim)

    async def _session(self, condition: Callable[[Session], bool]) -> Session:
        while True:
            if found := [session for session in self.sessions if condition(session)]:
                return found[0]
            await anyio.sleep(GLANCE / 2)


def _session(row: asyncpg.Record) -> Session:
    role = row["usename"] or ""
    replica = int(role.removeprefix(ROLE)) if role.startswith(ROLE) else -1
    return Session(row["pid"], replica, row["text"], row["state"] == "active", row["holds"])


def _send(process: BaseProcess, number: signal.Signals) -> bool:
    if process.pid is None or not process.is_alive():
        return False
    os.kill(process.pid, number)
    return True
