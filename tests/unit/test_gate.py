import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgratchet import Condition, Gate, Migrator, Readiness, UsageError, gate

pytestmark = pytest.mark.anyio

Messages = list[MutableMapping[str, Any]]
READY = Readiness(Condition.APPLIED, 2)
NOT_READY = Readiness(Condition.RUNNING, 1, running=("2",))


def migrator(readiness: Readiness) -> Migrator:
    return cast("Migrator", SimpleNamespace(readiness=readiness))


async def application(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    assert await receive() is not None
    await send({"type": f"{scope['type']} served"})


async def ask(app: Gate, **scope: Any) -> Messages:
    sent: Messages = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "whatever comes"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app({"type": "http", "path": "/", **scope}, receive, send)
    return sent


def answer(messages: Messages) -> tuple[int, dict[bytes, bytes], Any]:
    start, body = messages
    return start["status"], dict(start["headers"]), json.loads(body["body"])


async def test_requests_are_served_when_the_schema_is_ready() -> None:
    assert await ask(Gate(application, migrator(READY))) == [{"type": "http served"}]


@pytest.mark.parametrize("state", [state for state in Condition if state is not Condition.APPLIED])
async def test_requests_are_told_to_come_again_in_every_other_state(state: Condition) -> None:
    status, headers, body = answer(await ask(Gate(application, migrator(Readiness(state)), retry_after=7)))

    assert (status, headers[b"retry-after"], headers[b"cache-control"]) == (503, b"7", b"no-store")
    assert body == {"error": "the schema is not ready", "state": state}


async def test_the_gate_opens_when_the_schema_gets_ready_and_closes_when_it_is_not_any_more() -> None:
    ours = SimpleNamespace(readiness=NOT_READY)
    app = Gate(application, cast("Migrator", ours))

    for readiness, served in ((NOT_READY, False), (READY, True), (NOT_READY, False)):
        ours.readiness = readiness
        assert (await ask(app) == [{"type": "http served"}]) is served


@pytest.mark.parametrize("path", ["/livez", "/healthz"])
async def test_liveness_is_the_applications_business_all_along(path: str) -> None:
    assert await ask(Gate(application, migrator(NOT_READY)), path=path) == [{"type": "http served"}]


async def test_other_paths_can_be_live() -> None:
    app = Gate(application, migrator(NOT_READY), live=["/alive"])

    assert await ask(app, path="/alive") == [{"type": "http served"}]
    assert answer(await ask(app, path="/livez"))[0] == 503


async def test_a_live_path_is_below_where_the_application_is_mounted() -> None:
    app = Gate(application, migrator(NOT_READY))

    assert await ask(app, path="/api/livez", root_path="/api") == [{"type": "http served"}]
    assert await ask(app, path="/livez", root_path="/api") == [{"type": "http served"}]
    assert answer(await ask(app, path="/apilivez", root_path="/api"))[0] == 503


@pytest.mark.parametrize(("readiness", "status"), [(READY, 200), (NOT_READY, 503)])
async def test_readiness_is_answered_with_all_that_is_known(readiness: Readiness, status: int) -> None:
    found, headers, body = answer(await ask(Gate(application, migrator(readiness)), path="/readyz"))

    assert found == status
    assert (b"retry-after" in headers) is (status == 503)
    assert body == json.loads(json.dumps(readiness._asdict()))
    assert set(body) == {"state", "applied", "pending", "running", "failed", "unknown", "interrupted", "in_doubt"}


async def test_readiness_has_a_path_that_can_be_chosen() -> None:
    app = Gate(application, migrator(READY), ready="/up")

    assert answer(await ask(app, path="/up"))[0] == 200
    assert await ask(app, path="/readyz") == [{"type": "http served"}]


async def test_readiness_need_not_be_answered() -> None:
    assert await ask(Gate(application, migrator(READY), ready=None), path="/readyz") == [{"type": "http served"}]


@pytest.mark.parametrize(
    ("outer", "inner", "status"), [(READY, READY, 200), (READY, NOT_READY, 503), (NOT_READY, READY, 503)]
)
async def test_the_innermost_of_several_gates_answers_for_all(outer: Readiness, inner: Readiness, status: int) -> None:
    gates = Gate(Gate(application, migrator(inner)), migrator(outer), ready=None)

    assert answer(await ask(gates, path="/readyz"))[0] == status
    assert (await ask(gates) == [{"type": "http served"}]) is (status == 200)


def test_paths_that_are_none_are_refused_at_once() -> None:
    with pytest.raises(UsageError, match="live must be a list of strings"):
        Gate(application, migrator(READY), live="/healthz")
    for paths in ({"live": ["healthz"]}, {"ready": "readyz"}):
        with pytest.raises(UsageError, match="begins with /"):
            Gate(application, migrator(READY), **cast("Any", paths))


async def test_websockets_are_refused_before_they_are_accepted() -> None:
    app = Gate(application, migrator(NOT_READY))

    assert await ask(app, type="websocket") == [{"type": "websocket.close", "code": 1013, "reason": ""}]
    assert await ask(Gate(application, migrator(READY)), type="websocket") == [{"type": "websocket served"}]


async def test_a_liveness_path_opens_no_websocket() -> None:
    (message,) = await ask(Gate(application, migrator(NOT_READY)), type="websocket", path="/livez")

    assert message["type"] == "websocket.close"


async def test_a_websocket_is_refused_with_an_answer_where_the_server_can_send_one() -> None:
    messages = await ask(
        Gate(application, migrator(NOT_READY)), type="websocket", extensions={"websocket.http.response": {}}
    )

    assert [message["type"] for message in messages] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert answer(messages)[0] == 503


async def test_lifespan_messages_pass() -> None:
    assert await ask(Gate(application, migrator(NOT_READY)), type="lifespan") == [{"type": "lifespan served"}]


async def raising(*_: object) -> None:
    raise LookupError("no schema")


async def test_a_lifespan_that_raises_fails_the_start() -> None:
    assert await ask(Gate(raising, migrator(NOT_READY)), type="lifespan") == [
        {"type": "lifespan.startup.failed", "message": "LookupError: no schema"}
    ]


async def test_a_lifespan_that_exits_fails_the_start_and_exits() -> None:
    sent: Messages = []

    async def exiting(*_: object) -> None:
        sys.exit(3)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    with pytest.raises(SystemExit):
        await Gate(exiting, migrator(NOT_READY))({"type": "lifespan"}, cast("Any", None), send)

    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]


async def test_an_application_without_a_lifespan_may_serve_a_schema_that_is_ready() -> None:
    with pytest.raises(LookupError):
        await ask(Gate(raising, migrator(READY)), type="lifespan")


@pytest.mark.parametrize("readiness", [READY, NOT_READY])
async def test_a_lifespan_of_its_own_that_raises_fails_the_start_whatever_the_schema(readiness: Readiness) -> None:
    async def asking(_: object, receive: Callable[[], Awaitable[MutableMapping[str, Any]]], __: object) -> None:
        await receive()
        raise OSError("no pool")

    assert await ask(Gate(asking, migrator(readiness)), type="lifespan") == [
        {"type": "lifespan.startup.failed", "message": "OSError: no pool"}
    ]


async def test_a_lifespan_that_has_answered_is_not_answered_for() -> None:
    async def answering(_: object, __: object, send: Callable[[MutableMapping[str, Any]], Awaitable[None]]) -> None:
        await send({"type": "lifespan.startup.failed", "message": "its own"})
        raise LookupError("no schema")

    with pytest.raises(LookupError):
        await ask(Gate(answering, migrator(NOT_READY)), type="lifespan")


def test_the_gate_goes_by_both_names() -> None:
    assert gate is Gate
