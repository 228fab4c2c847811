"""stdout and stderr, whatever they lead to: a full disk, a reader that has gone, nothing at all."""

import atexit
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

STDIN, STDOUT, STDERR = range(3)


class Stream(io.TextIOWrapper):
    """Takes whatever is written to it, and drops what cannot be passed on; `trouble` is the first reason for that."""

    trouble: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        try:
            return super().write(text)
        except (OSError, ValueError) as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Pass on what was written, or drop it."""
        try:
            super().flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def _drop(self, error: OSError | ValueError) -> None:
        self.trouble = self.trouble or error
        # A rest in the buffers would fail again at the interpreter's end, and replace the exit code.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


@contextmanager
def lasting() -> Iterator[None]:
    """Replace stdout and stderr, inside the block, by such as no write to them fails."""
    _occupy()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = ours = _lasting(sys.stdout, STDOUT), _lasting(sys.stderr, STDERR)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in ours:
            if isinstance(stream, Stream):
                # Otherwise its end would close what it was made from.
                stream.detach()


def lost(stream: TextIO) -> OSError | ValueError | None:
    """Return why not everything has reached a stream's reader; None also where that one has gone, and wants no more."""
    stream.flush()
    trouble = stream.trouble if isinstance(stream, Stream) else None
    return None if isinstance(trouble, ConnectionError) else trouble


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Lead to stderr what is printed inside the block, by whomever: Python, a subprocess, a C library."""
    sys.stdout.flush()
    kept = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush_others()
        os.dup2(kept, STDOUT)
        os.close(kept)
        # Before all that was registered inside the block: what prints at the interpreter's end comes behind a document.
        atexit.register(os.dup2, STDERR, STDOUT)


def _occupy() -> None:
    """Have none of the three descriptors closed: the next thing opened, the server's socket, would be taken for it."""
    for number in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 - as os wants it


def _lasting(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:  # a closed descriptor
        return Stream(open(number, "wb", closefd=False))
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    # A character that the encoding does not have must not turn success into a failure.
    return Stream(
        stream.buffer,
        stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _flush_others() -> None:
    """Pass on what was printed past sys.stdout, and is still in a buffer."""
    if sys.__stdout__ is not None:
        with suppress(OSError, ValueError):
            sys.__stdout__.flush()
    with suppress(ImportError, OSError, AttributeError):  # a Python without ctypes, a system without such a library
        import ctypes  # noqa: PLC0415 - only who wants a document pays for the import

        ctypes.CDLL(None).fflush(None)
