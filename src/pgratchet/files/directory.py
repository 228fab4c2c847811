"""Migration files on disk, or packed inside an installed package."""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from pgratchet.core.errors import UsageError
from pgratchet.core.model import File


class Traversable(Protocol):
    """What is needed of importlib.resources.abc.Traversable; to import that one takes longer than to read a folder."""

    @property
    def name(self) -> str:
        """The last part of the path."""

    def iterdir(self) -> Iterator["Traversable"]:
        """Yield what is in the folder."""

    def is_dir(self) -> bool:
        """Say whether it is a folder."""

    def read_bytes(self) -> bytes:
        """Return the content."""


Location = str | os.PathLike[str] | Traversable
"""A folder: a path, relative to the working directory, or a Traversable of importlib.resources."""

SUFFIXES = (".sql", ".py")

LARGEST = 2 << 30
"""The most bytes that a file may have; PostgreSQL takes no statement of half as many."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_ONLY_FILES = "only regular files, and links to them, are read: move it away, or rename it"
_CURES = {
    errno.ENOENT: "it is a link to nothing: remove it, or put back the file that it leads to",
    errno.ELOOP: "it is a link that leads back to itself: put the file in its place",
    errno.EACCES: "let the user who runs pgratchet read it",
    errno.ENXIO: f"it is a socket or a device; {_ONLY_FILES}",
    errno.EOPNOTSUPP: f"it is a socket; {_ONLY_FILES}",
}


def read(location: Location) -> Iterator[File]:
    """Yield the migration files of a folder, by name, one at a time.

    Hidden files, names that begin with an underscore and what ends in neither `.sql` nor `.py` are passed over.
    Raises UsageError where the folder cannot be read, or where what is left is not a file that can be.
    """
    try:
        if isinstance(location, str | os.PathLike):
            yield from _on_disk(os.fspath(location))
        else:
            yield from _packed(location)
    except OSError as error:
        raise UsageError(_unreadable(location, error)) from None
    except ValueError as error:
        raise _impossible(location, error) from None


def content(path: str) -> bytes:
    """Return what a regular file holds, or one that a link leads to.

    Raises OSError, without waiting, where there is none, where it is something else, larger than `LARGEST`, or
    written to at the same time; `strerror` says what to do.
    """
    try:
        # A named pipe would wait for a writer. What is looked at is what is open: nobody can exchange it in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            return _content(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        said = filter(None, (error.strerror, _CURES.get(error.errno or 0)))
        raise OSError(error.errno, "; ".join(said), path) from None


def _content(descriptor: int) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, f"it is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}; {_ONLY_FILES}")
    if status.st_size > LARGEST:
        raise OSError(0, f"it has {status.st_size} bytes, and {LARGEST} are the most: load its data in another way")
    body = b""
    # One byte more than there are: a file that grows, or a pseudo file that says it is empty, would have no end.
    while more := os.read(descriptor, status.st_size + 1 - len(body)):
        body = body + more if body else more
    if len(body) != status.st_size:
        raise OSError(0, "it was written to while it was read: run again when its author is done")
    return body


def write(folder: str | os.PathLike[str], draft: Callable[[Iterator[File]], Mapping[str, str]]) -> tuple[Path, ...]:
    """Write new files, which `draft` makes of those that are there, by name, and return their paths.

    The folder is made where it is missing. Others who do the same wait meanwhile, so that two never take the same
    number. Raises UsageError, as `draft` and `read` may, where one of the files is there already or cannot be
    written; nothing is left then.
    """
    try:
        with _alone(Path(folder)):
            return _written(Path(folder), draft(read(folder)))
    except FileExistsError as error:
        raise UsageError(f"{error.filename} is there already") from None
    except OSError as error:
        raise UsageError(f"cannot write in '{folder}': {error.strerror}") from None


def counts(name: str) -> bool:
    """Say whether a file of that name is taken for a migration."""
    # In any case: the layout refuses what it cannot read, instead of passing it over.
    return name.lower().endswith(SUFFIXES) and not name.startswith((".", "_"))


def _on_disk(folder: str) -> Iterator[File]:
    for name in sorted(filter(counts, os.listdir(folder))):  # noqa: PTH208 - pathlib takes longer
        path = os.path.join(folder, name)  # noqa: PTH118 - twice as long, for 10,000 files
        yield File(name, path, content(path))


def _packed(folder: Traversable) -> Iterator[File]:
    there = {item.name: item for item in folder.iterdir()} if folder.is_dir() else {}
    if not there:
        # A zip has no folders of their own: one that holds nothing is one that is not there.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    for name in sorted(filter(counts, there)):
        item = there[name]
        if isinstance(item, os.PathLike):
            yield File(name, str(item), content(os.fspath(item)))
        elif item.is_dir():
            raise OSError(0, f"it is {_KINDS[stat.S_IFDIR]}; {_ONLY_FILES}", str(item))
        else:
            yield File(name, str(item), item.read_bytes())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep others out who come this way; what was made for the block goes again where that raises."""
    import fcntl  # noqa: PLC0415 - most starts write no file

    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        if missing:
            _make(folder)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Not every network file system has locks: there a number that is taken twice is for the next run to refuse.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
    except BaseException:
        for each in missing:
            with suppress(OSError, ValueError):
                each.rmdir()
        raise


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        raise _impossible(folder, error) from None


def _written(folder: Path, contents: Mapping[str, str]) -> tuple[Path, ...]:
    paths: list[Path] = []
    try:
        for name, text in contents.items():
            with Path(folder, name).open("x", encoding="utf-8", newline="\n") as file:
                paths.append(Path(folder, name))
                file.write(text)
    except BaseException:
        for path in paths:
            with suppress(OSError):
                path.unlink()
        raise
    return tuple(paths)


def _impossible(location: Location, error: ValueError) -> UsageError:
    return UsageError(f"{str(location)!a} cannot be the path of a folder: {error}")


def _unreadable(location: Location, error: OSError) -> str:
    what = error.filename or location
    if not isinstance(location, str | os.PathLike) or os.path.isabs(location):  # noqa: PTH117 - a str is fine
        return f"cannot read '{what}': {error.strerror}"
    try:
        here = os.getcwd()  # noqa: PTH109 - the same
    except OSError:
        here = "a working directory that is gone"
    return f"cannot read '{what}', relative to {here}: {error.strerror}"
