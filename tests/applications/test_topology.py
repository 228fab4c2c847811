"""The composition of docker-compose.yml, run: who gets a request when, and what a client sees of a deployment."""

import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import pytest

from tests.support import ask, history, until
from tests.topology import PATIENCE, Composition, composition, image

pytestmark = [pytest.mark.anyio, pytest.mark.third_party]

HISTORY = "pgratchet.schema_migrations"
NEXT = {"migrations/versions/009_add_plan.sql": "ALTER TABLE tenants ADD COLUMN plan text NOT NULL DEFAULT 'free';"}
BROKEN = {"migrations/versions/009_add_plan.sql": "ALTER TABLE tenant ADD COLUMN plan text NOT NULL DEFAULT 'free';"}
SELECTED = "slug, knowledge_base_enabled"


def newer(folder: Path, files: dict[str, str]) -> Path:
    """Return an image whose every answer needs the column that its newest migration makes."""
    return image(folder, files, **{SELECTED: f"{SELECTED}, plan"})


class Load:
    """Clients that ask without a pause, and what they were told."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.answers: list[httpx2.Response] = []
        self._client = client

    async def ask(self) -> None:
        while True:
            self.answers.append(await self._client.get("/tenants"))

    async def goes_on(self, count: int = 50) -> None:
        """Return when so many more answers have come."""
        wanted = len(self.answers) + count

        async def there() -> bool:
            return len(self.answers) >= wanted

        await until(there, PATIENCE)


@asynccontextmanager
async def load(composed: Composition) -> AsyncIterator[Load]:
    """Yield it; the block fails with the first request that is not answered."""
    asked = Load(composed.client)
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(asked.ask)
        yield asked
        tasks.cancel_scope.cancel()


async def everybody_serves(composed: Composition, folder: Path) -> None:
    """Have the schema of an image, and replicas of it that all get requests."""
    for replica in composed.replicas:
        replica.start(folder)
    assert await composed.job(folder) == 0
    await composed_serves(composed)
    async with load(composed):
        for replica in composed.replicas:
            await replica.served()


async def composed_serves(composed: Composition) -> None:
    async def served() -> bool:
        return (await composed.client.get("/tenants")).status_code == 200

    await until(served, PATIENCE)


async def test_replicas_that_are_there_before_their_schema_get_no_request(tmp_path: Path, memory: Path | None) -> None:
    first = image(tmp_path / "first")
    async with composition(tmp_path, memory) as composed:
        for replica in composed.replicas:
            replica.start(first)
        for replica in composed.replicas:
            await replica.refused_the_proxy()
            async with httpx2.AsyncClient(base_url=replica.url, trust_env=False) as directly:
                ready, live, other = [await directly.get(path) for path in ("/readyz", "/livez", "/docs")]
            assert (ready.status_code, ready.json()["state"]) == (503, "pending")
            assert (live.status_code, other.status_code, other.headers["retry-after"]) == (200, 503, "5")
        assert (await composed.client.get("/tenants")).status_code == 503
        assert not any("/tenants" in replica.log for replica in composed.replicas)

        assert await composed.job(first) == 0
        await composed_serves(composed)
        async with load(composed) as asked:
            for replica in composed.replicas:
                await replica.served()
        assert {answer.status_code for answer in asked.answers} == {200}
        tenant = {"name": "Café", "slug": "cafe"}
        assert (await composed.client.post("/tenants", json=tenant)).status_code == 201
        await roles_are_separate(composed.dsn)


async def roles_are_separate(dsn: str) -> None:
    assert {row["applied_by"].partition("@")[0] for row in (await history(dsn, HISTORY)).values()} == {"migrator"}
    rights = (
        "SELECT has_schema_privilege('app', 'public', 'CREATE') OR has_schema_privilege('app', 'pgratchet', 'CREATE')"
    )
    assert await ask(dsn, rights) is False
    assert await ask(dsn, "SELECT has_table_privilege('app', $1, 'SELECT')", HISTORY) is True
    assert await ask(dsn, "SELECT has_table_privilege('app', $1, 'INSERT, UPDATE, DELETE')", HISTORY) is False


async def test_a_rolling_deployment_under_load_fails_no_request_and_serves_no_old_schema(
    tmp_path: Path, memory: Path | None
) -> None:
    old, new = image(tmp_path / "old"), newer(tmp_path / "new", NEXT)
    broken = newer(tmp_path / "broken", BROKEN)
    async with composition(tmp_path, memory) as composed:
        await everybody_serves(composed, old)
        assert (await composed.client.post("/tenants", json={"name": "Café", "slug": "cafe"})).status_code == 201
        first, *others = composed.replicas
        async with load(composed) as asked:
            # In the worst order: a replica before its schema, and a job that fails at first.
            assert await first.end() == -signal.SIGTERM
            first.start(new)
            await first.refused_the_proxy()
            assert await composed.job(broken) == 1
            await asked.goes_on()
            assert "/tenants" not in first.log

            assert await composed.job(new) == 0
            await first.served()
            for replica in others:
                assert await replica.end() == -signal.SIGTERM
                replica.start(new)
                await replica.served()
            await asked.goes_on()

        assert Counter(answer.status_code for answer in asked.answers) == {200: len(asked.answers)}
        plans = ["plan" in json.loads(answer.content)[0] for answer in asked.answers]
        assert {False, True} == set(plans)
        assert all(plans[-20:])
        assert not any("Traceback" in replica.log for replica in composed.replicas)


async def test_a_replica_that_is_killed_under_load_is_not_noticed(tmp_path: Path, memory: Path | None) -> None:
    first = image(tmp_path / "first")
    async with composition(tmp_path, memory) as composed:
        await everybody_serves(composed, first)
        async with load(composed) as asked:
            for replica in composed.replicas[:2]:
                assert await replica.end(signal.SIGKILL) == -signal.SIGKILL
                await asked.goes_on()
                replica.start(first)
                await replica.served()
        assert {answer.status_code for answer in asked.answers} == {200}
