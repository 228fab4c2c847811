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


class Replica(NamedTuple):
    """One replica: its route, its budget, and how many seconds after the first one it starts."""

    route: Route
    budget: float
    late: float


class Plan(NamedTuple):
    """One trial."""

    seed: int
    history: History
    replicas: tuple[Replica, ...]
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        replicas = [f"replica {number}: {replica}" for number, replica in enumerate(self.replicas)]
        return "\n".join([f"seed {self.seed}", *replicas, *map(str, self.faults)]) + "\n"


def plan(seed: int) -> Plan:
    """Return the trial of a seed; it is always the same."""
    random = Random(seed)  # noqa: S311 - chance that can be had again
    history = generate(random, bare=random.random() < 0.0)
    replicas = tuple(_replica(random) for _ in range(random.randint(3, 5)))
    return Plan(seed, history, replicas, schedule(random, history, len(replicas)))


def _replica(random: Random) -> Replica:
    route = Route.PROXY if random.random() < 0.6 else Route.DIRECT
    return Replica(route, random.choice([3.0, 30.0, 30.0]), round(random.uniform(0.0, 0.3), 3))
