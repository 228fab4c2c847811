"""A gate before an ASGI application: it serves no request while the schema is not ready."""

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
"""An ASGI application (asgiref, specs/main.rst). Each framework has its own types for the arguments."""

OK, UNAVAILABLE = 200, 503
TRY_AGAIN_LATER = 1013
"""The close code for a refused websocket (IANA's WebSocket Close Code Number Registry)."""


class Gate:
    """ASGI middleware: until the migrator's schema is ready, requests get 503 and websockets are refused.

    `live` are the paths of liveness probes: their requests always reach the application. `ready` is the path of the
    readiness probe, or None for no such path. The gate answers it: 200 if requests are served, 503 if not, with the
    readiness as JSON. `retry_after` is in seconds.

    If an application has several gates, one for each of its databases, only the innermost one answers `ready`.

    Lifespan messages pass. If the lifespan of the application raises an error, the gate tells the server that start-up
    failed: without that message, servers assume that the application has no lifespan, and serve it (asgiref,
    specs/lifespan.rst). An application without a lifespan serves if the schema is ready.

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
            # Servers print the message as it is.
            lines = f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())
            message = printable_lines("\n".join(lines))
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
            # Closed before it is accepted: servers answer that with 403.
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
"""The same class under the name of a function, for any ASGI application: `app = gate(app, migrator)`."""


def _probe(what: str, value: object) -> str:
    path = arguments.text(what, value)
    if not path.startswith("/"):
        raise UsageError(f"{what} must be the path of a request, which begins with /")
    return path


def _path(scope: MutableMapping[str, Any]) -> str:
    """Return the path below the mount point of the application; servers give it with or without the mount point."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if path.startswith(f"{root}/") else path
