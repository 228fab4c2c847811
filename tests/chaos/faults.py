"""Kinds of harm, the moments at which it is done, and schedules of it made of chance."""

from collections.abc import Sequence
from enum import Enum
from random import Random
from typing import NamedTuple

from tests.chaos.history import History
from tests.faults.traps import Way


class Kind(Enum):
    """What is done."""

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
    """So many seconds after the first session of a replica was seen."""

    seconds: float


class Seen(NamedTuple):
    """So many seconds after a replica's session was seen at work on something."""

    text: str
    seconds: float


class Passing(NamedTuple):
    """When something passes the proxy, a byte string or so many bytes; not looked for before so many seconds."""

    way: Way
    at: bytes | int
    forward: bool
    seconds: float


Moment = After | Seen | Passing


class Fault(NamedTuple):
    """Harm to be done. `victim` is a replica, None for whichever has the lock; what lasts, lasts `seconds`."""

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
    """Return what can be seen of a history in the names and queries of the sessions that apply it."""
    return [f": up {file.version} " for file in history.files] + _words(history) * 3


def _words(history: History) -> list[str]:
    """Return how the bare statements of a history begin, which is also how the server says that they are done."""
    words = ("CREATE INDEX", "VACUUM", "DROP INDEX", "CALL")
    return [word for word in words if any(word in file.text for file in history.files)]
