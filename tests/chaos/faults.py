"""Kinds of harm, the moments at which it happens, and random schedules."""

from collections.abc import Sequence
from enum import Enum
from random import Random
from typing import NamedTuple

from tests.chaos.history import History
from tests.faults.traps import Way


class Kind(Enum):
    """A kind of harm."""

    KILL = "SIGKILL of a replica"
    TERM = "SIGTERM to a replica"
    EVICT = "SIGTERM to a replica, and its session ended in the same moment"
    STOP = "SIGSTOP of a replica, and SIGCONT"
    TERMINATE = "pg_terminate_backend"
    CANCEL = "pg_cancel_backend"
    RESET = "network cut, RST"
    CLOSE = "network cut, FIN"
    FREEZE = "network frozen for a while"
    RESTART_FAST = "server restarted, fast"
    RESTART_IMMEDIATE = "server restarted, immediate"
    RESTART_POOLER = "pooler restarted"
    OLD_TRANSACTION = "an old transaction in the way"
    TABLE_LOCK = "a table locked by a stranger"


NETWORK = (Kind.RESET, Kind.CLOSE, Kind.FREEZE)
RESTARTS = (Kind.RESTART_FAST, Kind.RESTART_IMMEDIATE)

_WEIGHTS = {
    Kind.KILL: 5,
    Kind.TERM: 2,
    Kind.EVICT: 2,
    Kind.STOP: 2,
    Kind.TERMINATE: 4,
    Kind.CANCEL: 2,
    Kind.RESET: 3,
    Kind.CLOSE: 2,
    Kind.FREEZE: 2,
    Kind.RESTART_FAST: 1,
    Kind.RESTART_IMMEDIATE: 2,
    Kind.OLD_TRANSACTION: 3,
    Kind.TABLE_LOCK: 3,
}

_PASSING: tuple[tuple[Way, bytes], ...] = (
    (Way.TO_SERVER, b"COMMIT"),
    (Way.TO_SERVER, b"pg_try_advisory_lock"),
    (Way.TO_SERVER, b"statements_done"),
    (Way.TO_CLIENT, b"COMMIT\0"),
    (Way.TO_CLIENT, b"COMMIT\0"),
    (Way.TO_CLIENT, b"INSERT 0 1\0"),
)


class After(NamedTuple):
    """A number of seconds after the first session of a replica was seen."""

    seconds: float


class Seen(NamedTuple):
    """A number of seconds after a replica's session was seen at work on a statement."""

    text: str
    seconds: float


class Passing(NamedTuple):
    """The moment at which a byte string or a number of bytes passes the proxy, after a number of seconds."""

    way: Way
    at: bytes | int
    forward: bool
    seconds: float


Moment = After | Seen | Passing


class Fault(NamedTuple):
    """One planned harm. `victim` is a replica, None the replica that has the lock; lasting harm lasts `seconds`."""

    kind: Kind
    moment: Moment
    victim: int | None
    seconds: float
    table: str


def schedule(random: Random, history: History, replicas: int, *, pooled: bool) -> tuple[Fault, ...]:
    """Return 4 to 9 faults."""
    weights = _WEIGHTS | ({Kind.RESTART_POOLER: 3} if pooled else {})
    kinds = random.choices(list(weights), list(weights.values()), k=random.randint(4, 9))
    return tuple(_fault(random, history, replicas, kind) for kind in kinds)


def _fault(random: Random, history: History, replicas: int, kind: Kind) -> Fault:
    victim = random.randrange(replicas) if random.random() < 0.3 else None
    seconds = round(random.uniform(0.1, 1.2), 3)
    table = random.choice(["items", "few", "ledger", "schema_migrations"])
    return Fault(kind, _moment(random, history, kind), victim, seconds, table)


def _moment(random: Random, history: History, kind: Kind) -> Moment:
    after = After(round(random.uniform(0.0, 1.5), 3))
    if kind in (Kind.OLD_TRANSACTION, Kind.TABLE_LOCK):
        return after
    python = [f": up {file.version} " for file in history.files if file.name.endswith(".py")]
    if kind is Kind.EVICT and python:
        # There the driver has something to say at the end of a transaction, with a cancellation under way.
        return Seen(random.choice(python), round(random.uniform(0.0, 0.3), 3))
    passing = Passing(*_place(random, history), random.random() < 0.5, round(random.uniform(0.0, 1.0), 3))
    if kind in NETWORK:
        return _one_of(random, [(after, 1), (passing, 3)])
    seen = Seen(
        random.choice(_sights(history)),
        round(random.choice([0.0, random.uniform(0.0, 0.1), random.uniform(0.0, 0.4)]), 3),
    )
    return _one_of(random, [(after, 2), (seen, 4), (passing, 2)])


def _place(random: Random, history: History) -> tuple[Way, bytes | int]:
    if random.random() < 0.15:
        return random.choice(list(Way)), random.randrange(6000)
    tagged = [(Way.TO_CLIENT, f"{word}\0".encode()) for word in _words(history)]
    return random.choice([*_PASSING, *tagged * 2])


def _one_of(random: Random, choices: Sequence[tuple[Moment, int]]) -> Moment:
    return random.choices([choice for choice, _ in choices], [weight for _, weight in choices])[0]


def _sights(history: History) -> list[str]:
    """Return the texts by which the names and queries of sessions show that they apply a history."""
    return [f": up {file.version} " for file in history.files] + _words(history) * 3


def _words(history: History) -> list[str]:
    """Return the beginnings of a history's bare statements; the server's command tags begin in the same way."""
    words = ("CREATE INDEX", "VACUUM", "DROP INDEX", "CALL")
    return [word for word in words if any(word in file.text for file in history.files)]
