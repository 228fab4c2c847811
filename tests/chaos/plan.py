"""The plan of one trial; its seed alone decides it."""

from enum import Enum
from random import Random
from typing import NamedTuple

from tests.chaos.faults import Fault, schedule
from tests.chaos.history import History, generate
from tests.poolers import Mode

_POOLING: list[Mode | None] = [None, "session", "transaction"]


class Route(Enum):
    """The route of a replica to the server."""

    DIRECT = "direct"
    PROXY = "through the proxy"
    POOLER = "through a pooler"
    BOTH = "through a pooler, and to the server for what needs a session"


class Manner(Enum):
    """A replica's reaction to SIGTERM."""

    COMMAND_LINE = "cancels its scope, as the command line does"
    SERVER = "cancels its task once, as a server does a lifespan"


class Replica(NamedTuple):
    """One replica: its route, its lock, its budget, and how many seconds after the first one it starts.

    Its image has so many `files`, the oldest ones.
    """

    route: Route
    lock: str | None
    budget: float
    late: float
    manner: Manner
    files: int


class Plan(NamedTuple):
    """One trial."""

    seed: int
    history: History
    pooling: Mode | None
    """The mode of the pooler, if there is one."""
    replicas: tuple[Replica, ...]
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        replicas = [f"replica {number}: {replica}" for number, replica in enumerate(self.replicas)]
        return "\n".join([f"seed {self.seed}", f"pooler: {self.pooling}", *replicas, *map(str, self.faults)]) + "\n"


def plan(seed: int) -> Plan:
    """Return the trial of a seed; it is always the same."""
    random = Random(seed)  # noqa: S311 - chance that can be had again
    bare = random.random() < 0.7
    history = generate(random, bare=bare)
    pooling = random.choice(_POOLING)
    lock = "none" if not bare and random.random() < 0.2 else None
    count = random.randint(3, 5)
    images = _images(random, len(history.files), count)
    routes = _routes(pooling, bare=bare)
    replicas = tuple(_replica(random, number, routes, lock, images[number]) for number in range(count))
    faults = schedule(random, history, count, pooled=bool(pooling))
    return Plan(seed, history, pooling, replicas, faults)


def _routes(pooling: Mode | None, *, bare: bool) -> list[tuple[Route, str | None]]:
    """Return the routes to the server that can do the work, each with the locks that it allows."""
    routes: list[tuple[Route, str | None]] = [(Route.PROXY, None), (Route.PROXY, None), (Route.DIRECT, None)]
    if pooling:
        routes += [(Route.BOTH, None)] * 2
    if pooling and not bare:
        routes += [(Route.POOLER, None)] * 2
    if pooling == "session":
        routes += [(Route.POOLER, "session")] * 2
    return routes


def _images(random: Random, files: int, count: int) -> list[int]:
    """Return the number of files in each replica's image: all in the first image, and in most trials in each."""
    older = random.randrange(1, files) if random.random() < 0.4 else files
    return [files, *(random.choice([files, older]) for _ in range(1, count))]


def _replica(
    random: Random, number: int, routes: list[tuple[Route, str | None]], lock: str | None, files: int
) -> Replica:
    # One of them is always within the network's reach.
    route, needed = random.choice(routes) if number else routes[0]
    budget, late = random.choice([3.0, 30.0, 30.0]), round(random.uniform(0.0, 0.3), 3)
    return Replica(route, lock or needed, budget, late, random.choice(list(Manner)), files)
