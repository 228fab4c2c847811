"""The lifespan hook: an application does not start before its schema is ready."""

import inspect
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncContextDecorator, AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Literal, get_args

from pgratchet.core import arguments
from pgratchet.core.errors import MigrationFailedError, PgratchetError, UsageError
from pgratchet.migrator import Migrator
from pgratchet.runs.failures import told
from pgratchet.runs.telling import refuse_coroutine
from pgratchet.web.background import OnFailure, in_background

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]
"""The lifespan of an application; it yields nothing or a mapping, as the framework wants it."""

Mode = Literal["apply", "wait", "check"]
OnSlow = Literal["wait", "serve-not-ready"]


class migrated(AbstractAsyncContextManager[Any]):  # noqa: N801 - used as a function: lifespan=migrated(...)
    """A lifespan that migrates the schema first, and then enters the lifespan of the application, `inner`.

    In mode `apply` this process migrates, unless another one does. In mode `wait` it waits until another process has
    migrated. In mode `check` it raises an error if migrations are pending. If the migration fails, start-up fails with
    its error; if the server cancels start-up, the migration is cancelled. In both cases the `readiness` of the migrator
    is failed from then on. It is unknown if `inner` fails, and after the end of the application.

    Servers limit the time of start-up. With `on_slow="serve-not-ready"` the application starts after at most
    `slow_after` seconds, behind a gate, and the migration continues beside it. The lifespan of the application is then
    entered before the schema is ready. If the migration fails later, `on_failure` is called with the error.

    SIGINT and SIGTERM end a start while it waits, and raise StartInterruptedError; they end no step under way. They
    also reach the handlers that were there before.

    Call the object with the application, as FastAPI and Starlette do, or enter it directly. It writes to the log, and
    to stderr the long waits and the applied migrations that no handler would take; it does not change the configuration
    of logging. Raises UsageError for an argument that cannot be right.
    """

    def __init__(  # noqa: PLR0913 - all but two are options, by keyword, with defaults
        self,
        migrator: Migrator,
        inner: Lifespan | None = None,
        *,
        mode: Mode = "apply",
        on_slow: OnSlow = "wait",
        slow_after: float = 20.0,
        on_failure: OnFailure | None = None,
    ) -> None:
        if not hasattr(migrator, "serving"):
            raise UsageError("migrator must be a Migrator")
        verbs: dict[str, Callable[[], Awaitable[object]]] = {
            "apply": migrator.up,
            "wait": migrator.wait,
            "check": migrator.check,
        }
        arguments.choice("mode", mode, verbs)
        arguments.choice("on_slow", on_slow, get_args(OnSlow))
        arguments.seconds("slow_after", slow_after)
        if inner is not None:
            _refuse_no_lifespan(inner)
        if on_failure is not None:
            arguments.function("on_failure", on_failure, "a function that takes an error")
        refuse_coroutine("on_failure", on_failure)
        self._migrator = migrator
        self._verb = verbs[mode]
        self._inner = inner
        self._patience = None if on_slow == "wait" else slow_after
        self._on_failure = on_failure
        self._entered: list[AsyncExitStack] = []

    @asynccontextmanager
    async def __call__(self, app: object = None) -> AsyncIterator[Any]:
        """Run the lifespan of one application; yields the value that `inner` yields."""
        async with AsyncExitStack() as stack:
            stack.enter_context(self._migrator.serving())
            try:
                await stack.enter_async_context(in_background(self._verb, self._patience, self._on_failure))
            except PgratchetError as error:
                if isinstance(error, MigrationFailedError):
                    error.add_note("\n".join(told(error.failure, error.finished, "start again")))
                # Servers print the traceback. Frames of ours, and of asyncpg, would only bury the message.
                raise error.with_traceback(None) from _with_code_of_others(error.__cause__)
            yield None if self._inner is None else await stack.enter_async_context(self._inner(app))

    async def __aenter__(self) -> Any:
        stack = AsyncExitStack()
        state: object = await stack.enter_async_context(self())
        self._entered.append(stack)
        return state

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._entered.pop().__aexit__(kind, error, trace)


def _with_code_of_others(cause: BaseException | None) -> BaseException | None:
    """Return the cause if code of others has raised it or passed it on, such as a Python migration; None if not."""
    frames = () if cause is None else (frame for frame, _ in traceback.walk_tb(cause.__traceback__))
    names = {frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames}
    return cause if names - sys.stdlib_module_names - {"pgratchet", "asyncpg", "anyio"} else None


def _refuse_no_lifespan(inner: Lifespan) -> None:
    """Raise UsageError for an `inner` that makes no context manager: its call comes after the migration, too late."""
    wanted = "a function that takes the application and returns an async context manager (a mode goes by mode=...)"
    arguments.function("inner", inner, wanted)
    bare = (inspect.isasyncgenfunction, inspect.isgeneratorfunction, inspect.iscoroutinefunction)
    if any(is_bare(inner) for is_bare in bare):
        raise UsageError("inner must be an async generator that is decorated with contextlib.asynccontextmanager")
    # The result of a decorated generator is callable, too, but as a decorator.
    if isinstance(inner, AsyncContextDecorator):
        raise UsageError("inner is a context manager that was made already; give the function that makes it")
