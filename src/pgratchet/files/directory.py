"""Migration files on disk, or packed inside an installed package."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Protocol

from pgratchet.core.arguments import spelled
from pgratchet.core.errors import UsageError
from pgratchet.core.model import File, Problem


class Traversable(Protocol):
    """The needed part of importlib.resources.abc.Traversable, whose import takes longer than reading a folder."""

    @property
    def name(self) -> str:
        """The last part of the path."""

    def iterdir(self) -> Iterator["Traversable"]:
        """Yield the entries of the folder."""

    def is_dir(self) -> bool:
        """Say whether the object is a folder."""

    def read_bytes(self) -> bytes:
        """Return the content."""


Location = str | os.PathLike[str] | Traversable
"""A folder: a path, relative to the working directory, or a Traversable of importlib.resources."""

MIGRATION = re.compile(r"(?ais)(?![._]).*\.(?:sql|py)")
"""The names of files that are read. Their suffix may be in any case: the layout refuses such a name, not ignores it."""

LARGEST = 2 << 30
"""The largest size of a file, in bytes; PostgreSQL takes no statement of half that size."""

DEEPEST = 3
"""The number of levels below an empty folder in which its migrations are looked for."""

MOST_FOLDERS = 500
"""The most folders in which they are looked for."""

MOST_SHOWN = 3
"""The most folders that a message names."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_ONLY_FILES = "only regular files, and links to them, are read: move it away, or rename it"
_CURES = {
    errno.ENOENT: "it is a link to nothing: remove it, or restore the file that it leads to",
    errno.ELOOP: "it is a link that leads back to itself: put the file in its place",
    errno.EACCES: "allow the user that runs pgratchet to read it",
    errno.ENXIO: f"it is a socket or a device; {_ONLY_FILES}",
    errno.EOPNOTSUPP: f"it is a socket; {_ONLY_FILES}",
}


def read(location: Location) -> Iterator[File]:
    """Yield the migration files of a folder, by name, one at a time.

    Hidden files, names that begin with an underscore, and names that end in neither `.sql` nor `.py` are ignored.
    Raises UsageError where the folder or one of the files cannot be read.
    """
    try:
        if not isinstance(location, str | os.PathLike):
            yield from _packed(location)
            return
        folder = os.fspath(location)
        for name in sorted(filter(MIGRATION.fullmatch, os.listdir(folder))):  # noqa: PTH208 - pathlib takes longer
            path = os.path.join(folder, name)  # noqa: PTH118 - twice as long, for 10,000 files
            yield File(name, path, content(path))
    except OSError as error:
        raise UsageError(_unreadable(location, error)) from None
    except ValueError as error:
        raise _impossible(location, error) from None


def emptiness(location: Location, recognises: Callable[[Iterable[File]], bool]) -> Problem:
    """Return the problem of a folder without migrations; it names folders below whose files `recognises` accepts."""
    below = [str(folder) for folder in islice(_below(location), MOST_FOLDERS) if _holds(folder, recognises)]
    allow = f"or allow a folder without migrations ({spelled('allow_empty', value=True)})"
    if not below:
        cure = f"name the folder that has them, put the files into the package or the image, {allow}"
        return Problem(str(location), f"there is no migration in this folder{_relative(location)}", cure)
    shown = ", ".join(below[:MOST_SHOWN])
    more = f" and {len(below) - MOST_SHOWN} more" if len(below) > MOST_SHOWN else ""
    message = f"there is no migration in this folder{_relative(location)}; there are some in {shown}{more}"
    return Problem(str(location), message, f"only the files of one folder are read: name that one, {allow}")


def _below(location: Location) -> Iterator[Traversable]:
    """Yield the folders below a folder, the nearest first, by name; without hidden ones."""
    level: list[Traversable] = [Path(location) if isinstance(location, str | os.PathLike) else location]
    for _ in range(DEEPEST):
        level = [folder for parent in level for folder in _folders(parent)]
        yield from level


def _folders(parent: Traversable) -> list[Traversable]:
    try:
        return sorted(
            (each for each in parent.iterdir() if each.name[:1] != "." and each.is_dir()), key=lambda x: x.name
        )
    except OSError:
        return []  # a folder that cannot be read may have no migrations, too


def _holds(folder: Traversable, recognises: Callable[[Iterable[File]], bool]) -> bool:
    try:
        return recognises(read(folder))
    except UsageError:
        return False


def content(path: str) -> bytes:
    """Return the content of a regular file, or of one that a link leads to.

    Raises OSError, without waiting, for anything else, and for a file that is larger than `LARGEST` or is written to
    at the same time; `strerror` says what to do.
    """
    try:
        # A named pipe would wait for a writer. All checks are of the open file: nobody can exchange it in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, f"it is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}; {_ONLY_FILES}")
            if status.st_size > LARGEST:
                cure = "load its data in another way"
                raise OSError(0, f"it has {status.st_size} bytes, and {LARGEST} are the most: {cure}")
            body = b""
            # One byte more than the size: a file that grows, or a pseudo file that says it is empty, would have no end.
            while more := os.read(descriptor, status.st_size + 1 - len(body)):
                body = body + more if body else more
            if len(body) != status.st_size:
                raise OSError(0, "it was written to while it was read: run again when its author is done")
            return body
        finally:
            os.close(descriptor)
    except OSError as error:
        said = filter(None, (error.strerror, _CURES.get(error.errno or 0)))
        raise OSError(error.errno, "; ".join(said), path) from None


def write(folder: str | os.PathLike[str], draft: Callable[[Iterator[File]], Mapping[str, str]]) -> tuple[Path, ...]:
    """Write new files and return their paths; `draft` makes their texts, by name, from the files that are there.

    A missing folder is made. Other processes that call this for the same folder wait, so that two never take the same
    number. Raises UsageError, as `draft` and `read` may, where a new file exists already or cannot be written; all
    files that this call has written are removed then.
    """
    try:
        with _alone(Path(folder)):
            return _written(Path(folder), draft(read(folder)))
    except FileExistsError as error:
        raise UsageError(f"{error.filename} is there already") from None
    except OSError as error:
        raise UsageError(f"cannot write in '{folder}': {error.strerror}") from None


def _packed(folder: Traversable) -> Iterator[File]:
    there = {item.name: item for item in folder.iterdir()} if folder.is_dir() else {}
    if not there:
        # A zip file has no entries for folders: an empty folder and a missing one look the same.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    for name in sorted(filter(MIGRATION.fullmatch, there)):
        item = there[name]
        if isinstance(item, os.PathLike):
            yield File(name, str(item), content(os.fspath(item)))
        elif item.is_dir():
            raise OSError(0, f"it is {_KINDS[stat.S_IFDIR]}; {_ONLY_FILES}", str(item))
        else:
            yield File(name, str(item), item.read_bytes())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other callers out; where the block raises, remove the folders that were made for it."""
    import fcntl  # noqa: PLC0415 - most starts write no file

    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        if missing:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except ValueError as error:
                raise _impossible(folder, error) from None
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Not every network file system has locks: there the next run refuses a number that was taken twice.
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
    return f"cannot read '{error.filename or location}'{_relative(location)}: {error.strerror}"


def _relative(location: Location) -> str:
    """Return the part of a sentence that says where a relative path begins; empty for every other location."""
    if not isinstance(location, str | os.PathLike) or os.path.isabs(location):  # noqa: PTH117 - a str is fine
        return ""
    try:
        return f", relative to {os.getcwd()}"  # noqa: PTH109 - the same
    except OSError:
        return ", relative to a working directory that is gone"
