"""What one trial does, decided from its seed and nothing else."""

from enum import Enum
from random import Random
from typing import NamedTuple

from tests.chaos.faults import Fault, schedule
from tests.chaos.history import History, generate


class Route(Enum):
    """How a replica gets to the server."""

    DIRECT = "direct"
    PROXY = "through the proxy"
    POOLER = "through a pooler"


class Replica(NamedTuple):
    """One replica: its route, its budget, and how many seconds after the first one it starts."""

    route: Route
    budget: float
    late: float


class Plan(NamedTuple):
    """One trial."""

    seed: int
    history: History
    pooling: str
    """The mode of the pooler, empty where there is none."""
    replicas: tuple[Replica, ...]
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        replicas = [f"replica {number}: {replica}" for number, replica in enumerate(self.replicas)]
        return (
            "\n".join([f"seed {self.seed}", f"pooler: {self.pooling or 'none'}", *replicas, *map(str, self.faults)])
            + "\n"
        )


def plan(seed: int) -> Plan:
    """Return the trial of a seed; it is always the same."""
    random = Random(seed)  # noqa: S311 - chance that can be had again
    bare = random.random() < 0.7
    history = generate(random, bare=bare)
    modes = ["", "", "session"] if bare else ["", "session", "transaction", "transaction"]
    pooling = random.choice(modes)
    replicas = tuple(_replica(random, number, pooled=bool(pooling)) for number in range(random.randint(3, 5)))
    faults = schedule(random, history, len(replicas), pooled=bool(pooling))
    return Plan(seed, history, pooling, replicas, faults)


def _replica(random: Random, number: int, *, pooled: bool) -> Replica:
    routes = [Route.PROXY]
    if number:
        routes += [Route.PROXY, Route.DIRECT] + ([Route.POOLER] * 4 if pooled else [])
    return Replica(random.choice(routes), random.choice([3.0, 30.0, 30.0]), round(random.uniform(0.0, 0.3), 3))
