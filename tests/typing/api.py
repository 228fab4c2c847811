"""Type-checked, never run: what users write has to pass mypy in strict mode, without casts."""

import importlib.resources
import zipfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypedDict, assert_type

import asyncpg
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

import pgratchet
from pgratchet import (
    BehindError,
    BudgetExceededError,
    Condition,
    Direction,
    Done,
    Entry,
    Event,
    Failed,
    Failure,
    FilesError,
    Finished,
    Gate,
    HistoryError,
    Lock,
    Locked,
    Looked,
    MigrationFailedError,
    Migrator,
    PgratchetError,
    Plan,
    Problem,
    Readiness,
    Retried,
    Started,
    State,
    StatementFinished,
    Step,
    Verdict,
    Waiting,
    gate,
    migrated,
)


class Resources(TypedDict):
    pool: str


async def connect() -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect("postgresql://localhost/app", statement_cache_size=0)


async def connect_to_anything() -> Any:
    return await asyncpg.connect()


@asynccontextmanager
async def without_state(app: FastAPI) -> AsyncIterator[None]:
    app.state.ready = True
    yield


@asynccontextmanager
async def with_state(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"pool": 1}


@asynccontextmanager
async def with_typed_state(_: Starlette) -> AsyncIterator[Resources]:
    yield {"pool": "one"}


@asynccontextmanager
async def of_anything(_: object) -> AsyncIterator[None]:
    yield


by_dsn = Migrator("postgresql://localhost/app")
by_keyword = Migrator(dsn="postgresql://localhost/app", migrations="migrations/versions", table="app.history")
by_path = Migrator("postgresql://localhost/app", Path("migrations"))
packed = Migrator("postgresql://localhost/app", importlib.resources.files("package") / "versions")
zipped = Migrator("postgresql://localhost/app", zipfile.Path("wheel.zip", "package/versions"))
by_factory = Migrator(connect=connect)
by_any_factory = Migrator(connect=connect_to_anything, migrations=Path("migrations"))
by_lambda = Migrator(connect=lambda: connect())  # noqa: PLW0108 - that a lambda will do is what is checked
with_everything = Migrator(
    "postgresql://localhost/app",
    "migrations",
    table="public.schema_migrations",
    budget=60,
    lock_timeout=2.5,
    statement_timeout=0,
    allow_late=True,
    strict=True,
    allow_empty=True,
    readers=["web", "worker"],
    trusted_owners=["dba"],
    journal=Path(".migration_history"),
    owner="orders_owner",
    lock=Lock.SESSION,
    listener=print,
)

FastAPI(lifespan=migrated(by_dsn))
FastAPI(lifespan=migrated(by_dsn, inner=without_state))
FastAPI(lifespan=migrated(by_dsn, with_state, mode="wait"))
FastAPI(lifespan=migrated(by_dsn, of_anything, mode="check"))
Starlette(lifespan=migrated(by_dsn))
Starlette(lifespan=migrated(by_dsn, inner=with_typed_state))
FastAPI(lifespan=migrated(by_dsn, inner=migrated(packed)))

FastAPI(lifespan=migrated(by_dsn, on_slow="serve-not-ready", slow_after=10, on_failure=print))

behind_a_gate = FastAPI(lifespan=migrated(by_dsn))
behind_a_gate.add_middleware(Gate, migrator=by_dsn)
behind_a_gate.add_middleware(Gate, migrator=by_dsn, live=["/alive"], ready=None, retry_after=1)
Starlette(middleware=[Middleware(Gate, migrator=by_dsn)])
gated: Gate = gate(behind_a_gate, by_dsn)
gate(gated, by_dsn, ready="/up")
TestClient(gated)

migrated(by_dsn, on_slow="cancel")  # type: ignore[arg-type] # nothing cancels the one that works
migrated(by_dsn, "wait")  # type: ignore[arg-type] # a mode goes by keyword
migrated(by_dsn, mode="skip")  # type: ignore[arg-type] # a mode that does not exist is found here
Migrator("postgresql://localhost/app", "m", "public.t")  # type: ignore[call-arg, arg-type] # options go by keyword
Migrator(connect=with_state)  # type: ignore[arg-type] # no factory of connections


async def run(migrator: Migrator) -> None:
    assert_type(await migrator.up(), tuple[Finished, ...])
    assert_type(await migrator.up(to=7), tuple[Finished, ...])
    assert_type(await migrator.up(to="007"), tuple[Finished, ...])
    assert_type(await migrator.down(), tuple[Finished, ...])
    assert_type(await migrator.down(to=0), tuple[Finished, ...])
    assert_type(await migrator.down(steps=2), tuple[Finished, ...])
    assert_type(await migrator.redo(), tuple[Finished, ...])
    assert_type(await migrator.rehearse(), tuple[Finished, ...])
    assert_type(await migrator.plan(to=None), Plan)
    assert_type(await migrator.status(), tuple[Entry, ...])
    await migrator.wait()
    await migrator.check()


async def serve(migrator: Migrator) -> None:
    async with migrated(migrator):
        pass
    manager: AbstractAsyncContextManager[object] = migrated(migrator)(FastAPI())
    of_resources: AbstractAsyncContextManager[Resources] = migrated(migrator, inner=with_typed_state)(Starlette())
    of_nothing: AbstractAsyncContextManager[None] = migrated(migrator)
    async with manager, of_resources, of_nothing, migrated(migrator)():
        pass


async def report(migrator: Migrator) -> None:
    for finished in await migrator.up():
        assert_type(finished.version, str)
        assert_type(finished.direction, Direction)
        assert_type(finished.seconds, float | None)
    for entry in await migrator.status():
        assert_type(entry.state, State)
        assert_type(entry.name, str)
    assert_type(await migrator.repair(7, Verdict.SKIP, "it is there"), Entry)
    for step in (await migrator.plan()).steps:
        assert_type(step, Step)
        assert_type(step.migration.version, str)


def listen(event: Event) -> None:
    match event:
        case Started(version=version, statements=statements):
            assert_type(version, str)
            assert_type(statements, int)
        case Retried(blockers=blockers):
            assert_type(blockers, str)
        case Finished():
            assert_type(event.seconds, float | None)
        case Failed(failure=failure):
            assert_type(failure, Failure | None)
        case _:
            assert_type(event, Looked | Waiting | Locked | StatementFinished | Done)


def look(migrator: Migrator) -> None:
    assert_type(migrator.readiness, Readiness)
    assert_type(migrator.readiness.state, Condition)
    assert_type(migrator.readiness.ready, bool)
    Migrator("postgresql://localhost/app", listener=listen)


async def handle(migrator: Migrator) -> None:
    try:
        await migrator.up()
    except MigrationFailedError as error:
        assert_type(error.failure, Failure)
        assert_type(error.failure.line, int | None)
        assert_type(error.finished, tuple[Finished, ...])
    except FilesError as error:
        assert_type(error.problems, tuple[Problem, ...])
    except (HistoryError, BehindError) as error:
        assert_type(error.versions, tuple[str, ...])
    except (BudgetExceededError, PgratchetError) as error:
        assert_type(str(error), str)


assert_type(pgratchet.__version__, str)
