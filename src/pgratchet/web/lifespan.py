"""The lifespan hook: an application does not start before its schema is there."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Literal

from pgratchet.core.errors import UsageError
from pgratchet.migrator import Migrator

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]
"""An application's own; what it yields is the framework's business: nothing, or a mapping."""

Mode = Literal["apply", "wait", "check"]


class migrated(AbstractAsyncContextManager[Any]):  # noqa: N801 - used as a function: lifespan=migrated(...)
    """A lifespan that brings the schema in line first, and then enters the application's own, `inner`.

    In mode `apply` this process migrates, unless another one does; in mode `wait` another one has to; in mode
    `check` a schema that is behind is an error at once. Where it fails, start-up fails with its error.

    The object is called with the application, as FastAPI and Starlette do it, or entered as it is. It only
    logs; signal handlers and the configuration of logging are left alone.
    """

    def __init__(self, migrator: Migrator, inner: Lifespan | None = None, mode: Mode = "apply") -> None:
        verbs: dict[str, Callable[[], Awaitable[object]]] = {
            "apply": migrator.up,
            "wait": migrator.wait,
            "check": migrator.check,
        }
        if mode not in verbs:
            raise UsageError(f"mode is '{mode}'; it must be one of {', '.join(verbs)}")
        self._verb = verbs[mode]
        self._inner = inner
        self._entered: list[AsyncExitStack] = []

    @asynccontextmanager
    async def __call__(self, app: object = None) -> AsyncIterator[Any]:
        """Run the lifespan of one application; what `inner` yields is passed on."""
        await self._verb()
        if self._inner is None:
            yield None
            return
        async with self._inner(app) as state:
            yield state

    async def __aenter__(self) -> Any:
        stack = AsyncExitStack()
        state: object = await stack.enter_async_context(self())
        self._entered.append(stack)
        return state

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._entered.pop().__aexit__(kind, error, trace)
