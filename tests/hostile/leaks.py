"""The places where a secret would be found: the output of tools about an error, and all values in its frames."""

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType, FunctionType, MethodType, ModuleType

import loguru
import structlog
from rich.traceback import Traceback

DEPTH = 5

loguru.logger.remove()  # what writes to stderr


def chain(error: BaseException) -> list[BaseException]:
    """Return an error and all of its causes."""
    found: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and not any(each is other for other in found):
            found.append(each)
            left += [each.__cause__, each.__context__]
            left += each.exceptions if isinstance(each, BaseExceptionGroup) else ()
    return found


def frames(error: BaseException, *, but: str) -> Iterator[FrameType]:
    """Yield the frames of the whole chain, except those of one file: a test's own."""
    for each in chain(error):
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if frame.f_code.co_filename != but:
                yield frame


def found_in(error: BaseException, secrets: tuple[str, ...], *, but: str) -> list[str]:
    """Return the places of a secret: a text, a variable, or a value inside a variable, at any depth."""
    places = [
        f"{type(each).__name__}.{name}"
        for each in chain(error)
        for name, text in {"str": str(each), "args": repr(each.args), "attributes": repr(vars(each))}.items()
        if shows(text, secrets)
    ]
    for frame in frames(error, but=but):
        for name, value in frame.f_locals.items():
            where = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}:{name}"
            places += within(value, secrets, where, set(), DEPTH)
    return places


def shows(text: str, secrets: tuple[str, ...]) -> bool:
    return any(secret in text for secret in secrets)


def within(value: object, secrets: tuple[str, ...], where: str, seen: set[int], depth: int) -> Iterator[str]:
    if id(value) in seen or isinstance(value, ModuleType | FrameType):
        return
    seen.add(id(value))
    if any(shows(text, secrets) for text in (_or_empty(repr, value), _or_empty(str, value), _or_empty(format, value))):
        yield where
    elif depth:
        for name, part in parts(value):
            yield from within(part, secrets, f"{where}.{name}", seen, depth - 1)


def _or_empty(shown: Callable[[object], str], value: object) -> str:
    try:
        return shown(value)
    except Exception:  # noqa: BLE001 - a half-made object, or one that takes no format
        return ""


def parts(value: object) -> Iterator[tuple[str, object]]:
    """Yield the values inside a value: attributes, slots, elements, arguments of a partial, a closure's cells."""
    if isinstance(value, Mapping):
        yield from ((str(name), part) for name, part in list(value.items()))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((str(number), part) for number, part in enumerate(list(value)))
    elif isinstance(value, partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, MethodType):
        yield from (("self", value.__self__), ("func", value.__func__))
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            yield "cell", cell
            with suppress(ValueError):  # one that is empty yet
                yield "contents", cell.cell_contents
    elif not isinstance(value, type):
        yield from list(getattr(value, "__dict__", {}).items())
        for kind in type(value).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                yield slot, getattr(value, slot, None)


def plain(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def with_locals(error: BaseException) -> str:
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


def by_logging(error: BaseException) -> str:
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "%s", (error,), (type(error), error, error.__traceback__))
    return logging.Formatter().format(record)


def by_rich(error: BaseException) -> str:
    # What it prints, but for the colours, which take most of a second.
    return repr(Traceback.extract(type(error), error, error.__traceback__, show_locals=True))


def by_structlog(error: BaseException) -> str:
    event = structlog.processors.dict_tracebacks(None, "error", {"exc_info": error})
    return str(structlog.processors.JSONRenderer()(None, "error", event))


def by_loguru(error: BaseException) -> str:
    output: list[str] = []
    number = loguru.logger.add(output.append, diagnose=True, backtrace=False, colorize=False)
    try:
        loguru.logger.opt(exception=error).error("failed")
    finally:
        loguru.logger.remove(number)
    return "".join(output)


TOOLS = (plain, with_locals, by_logging, by_rich, by_structlog, by_loguru)


def without_frames_of(error: BaseException, file: str) -> None:
    """Remove the frames of one file from the top of the traceback: the test's own frames hold the secret."""
    while (trace := error.__traceback__) is not None and trace.tb_frame.f_code.co_filename == file:
        error.__traceback__ = trace.tb_next
