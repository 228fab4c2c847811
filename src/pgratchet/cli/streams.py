"""stdout and stderr that do not fail: on a full disk, without a reader, with a closed descriptor."""

import atexit
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

STDIN, STDOUT, STDERR = range(3)


class Stream(io.TextIOWrapper):
    """Takes every write, and drops text that cannot be written; `trouble` is the first error."""

    trouble: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        try:
            return super().write(text)
        except (OSError, ValueError) as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Write the buffered text, or drop it."""
        try:
            super().flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def _drop(self, error: OSError | ValueError) -> None:
        self.trouble = self.trouble or error
        # Text that stays in the buffer would fail again at the end of the interpreter, and replace the exit code.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


@contextmanager
def lasting() -> Iterator[None]:
    """Replace stdout and stderr inside the block by streams whose writes do not fail."""
    _occupy()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = ours = _lasting(sys.stdout, STDOUT), _lasting(sys.stderr, STDERR)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in ours:
            if isinstance(stream, Stream):
                # Otherwise the end of this stream would close the original one.
                stream.detach()


def lost(stream: TextIO) -> OSError | ValueError | None:
    """Return the reason for text that a stream has lost; None if its reader has gone away, which is no failure."""
    stream.flush()
    trouble = stream.trouble if isinstance(stream, Stream) else None
    return None if isinstance(trouble, ConnectionError) else trouble


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect all output of the block to stderr, also that of subprocesses and C libraries."""
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
        # Exit handlers run in reverse order: this one runs before those of the block, whose output must not follow the
        # document on stdout.
        atexit.register(os.dup2, STDERR, STDOUT)


def _occupy() -> None:
    """Open each closed descriptor of the three: otherwise the socket to the server would become stdout, for example."""
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
    # A character that the encoding lacks must not turn success into a failure.
    return Stream(
        stream.buffer,
        stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _flush_others() -> None:
    """Write out the buffers of sys.__stdout__ and of the C library."""
    if sys.__stdout__ is not None:
        with suppress(OSError, ValueError):
            sys.__stdout__.flush()
    with suppress(ImportError, OSError, AttributeError):  # a Python without ctypes, a system without such a library
        import ctypes  # noqa: PLC0415 - needed only for --json

        ctypes.CDLL(None).fflush(None)
