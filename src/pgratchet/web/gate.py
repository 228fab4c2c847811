"""A gate before an ASGI application: nothing is served on a schema that is not ready."""

from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

from pgratchet.core import arguments
from pgratchet.core.errors import UsageError
from pgratchet.core.printing import printable_lines, to_json
from pgratchet.migrator import Migrator

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application (asgiref, specs/main.rst). Each framework has types of its own for what it takes."""

OK, UNAVAILABLE = 200, 503
TRY_AGAIN_LATER = 1013
"""The code that a refused websocket is closed with (IANA's WebSocket Close Code Number Registry)."""


class Gate:
    """ASGI middleware: until the migrator's schema is ready, requests get 503 and websockets are refused.

    `live` are the paths of liveness probes: they always reach the application. `ready` is answered here: 200 when
    requests are served, 503 when not, and how it stands as JSON; None for no such path. `retry_after` is in seconds.

    Of several gates around one application, one for each of its databases, only the innermost answers `ready`.

    Lifespan messages pass. Where the application raises out of its lifespan, the gate tells the server that start-up
    failed: without that answer servers take it for an application that has no lifespan, and serve (asgiref,
    specs/lifespan.rst). One that really has none serves if the schema is ready.

    Raises UsageError for an argument that cannot be right.
    """

    def __init__(
        self,
        app: App,
        migrator: Migrator,
        *,
        live: Collection[str] = ("/livez", "/healthz"),
        ready: str | None = "/readyz",
        retry_after: int = 5,
    ) -> None:
        arguments.function("app", app, "an ASGI application")
        if not hasattr(migrator, "readiness"):
            raise UsageError("migrator must be a Migrator")
        self._app = app
        self._migrator = migrator
        self._live = frozenset(arguments.several("live", live, _probe))
        self._ready = None if ready is None else _probe("ready", ready)
        self._retry_after = arguments.count("retry_after", retry_after, least=0)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection, or refuse it."""
        kind, readiness = scope["type"], self._migrator.readiness
        path = _path(scope) if kind == "http" else None
        if kind == "lifespan":
            await self._start(scope, receive, send)
        elif path is not None and path == self._ready:
            await self._answer(OK if readiness.ready else UNAVAILABLE, readiness._asdict(), send)
        elif readiness.ready or path in self._live:
            await self._app(scope, receive, send)
        else:
            refusal = {"error": "the schema is not ready", "state": readiness.state}
            if kind == "websocket":
                await self._refuse_websocket(refusal, scope, receive, send)
            else:
                await self._answer(UNAVAILABLE, refusal, send)

    async def _start(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        asked = answered = False

        async def asking() -> Message:
            nonlocal asked
            asked = True
            return await receive()

        async def answering(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, asking, answering)
        except (Exception, SystemExit) as error:
            if answered or (self._migrator.readiness.ready and not asked):
                raise
            # Servers print it as it is.
            message = printable_lines(f"{type(error).__name__}: {error}")
            await send({"type": "lifespan.startup.failed", "message": message})
            if isinstance(error, SystemExit):
                raise

    async def _refuse_websocket(
        self, refusal: Mapping[str, object], scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        await receive()
        if "websocket.http.response" in (scope.get("extensions") or {}):
            await self._answer(UNAVAILABLE, refusal, send, prefix="websocket.")
        else:
            # Before it is accepted, which servers answer with 403.
            await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": ""})

    async def _answer(self, status: int, document: Mapping[str, object], send: Send, prefix: str = "") -> None:
        body = to_json(document).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
        ]
        if status != OK:
            headers.append((b"retry-after", b"%d" % self._retry_after))
        await send({"type": f"{prefix}http.response.start", "status": status, "headers": headers})
        await send({"type": f"{prefix}http.response.body", "body": body})


gate = Gate
"""The same as a function around any ASGI application: `app = gate(app, migrator)`."""


def _probe(what: str, value: object) -> str:
    path = arguments.text(what, value)
    if not path.startswith("/"):
        raise UsageError(f"{what} must be the path of a request, which begins with /")
    return path


def _path(scope: MutableMapping[str, Any]) -> str:
    """Return the path below where the application is mounted; servers say it with that or without."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if path.startswith(f"{root}/") else path
