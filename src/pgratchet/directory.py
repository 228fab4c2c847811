"""Migration files on disk, or packed inside an installed package."""

import errno
import os
from collections.abc import Iterator, Mapping
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


def read(location: Location) -> Iterator[File]:
    """Yield the migration files of a folder, by name, one at a time.

    Folders below it, hidden files, names that begin with an underscore and files that are neither `.sql` nor
    `.py` are passed over. Raises UsageError where the folder or one of the files cannot be read.
    """
    try:
        if isinstance(location, str | os.PathLike):
            yield from _on_disk(os.fspath(location))
        else:
            yield from _packed(location)
    except OSError as error:
        raise UsageError(_unreadable(location, error)) from None


def write(folder: str | os.PathLike[str], contents: Mapping[str, str]) -> tuple[Path, ...]:
    """Write new files, by name, into a folder that is made where it is missing, and return their paths.

    Raises UsageError, having written nothing, where one of them is there already.
    """
    paths = {Path(folder, name): text for name, text in contents.items()}
    for path in paths:
        if path.exists():
            raise UsageError(f"{path} is there already")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path, text in paths.items():
            path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UsageError(f"cannot write in '{folder}': {error.strerror}") from None
    return tuple(paths)


def counts(name: str) -> bool:
    """Say whether a file of that name is taken for a migration."""
    # In any case: the layout refuses what it cannot read, instead of passing it over.
    return name.lower().endswith(SUFFIXES) and not name.startswith((".", "_"))


def _on_disk(folder: str) -> Iterator[File]:
    with os.scandir(folder) as items:
        names = sorted(item.name for item in items if counts(item.name) and not item.is_dir())
    for name in names:
        path = os.path.join(folder, name)  # noqa: PTH118 - pathlib takes twice as long for 10,000 files
        with open(path, "rb") as file:  # noqa: PTH123 - the same
            yield File(name, path, file.read())


def _packed(folder: Traversable) -> Iterator[File]:
    there = {item.name: item for item in folder.iterdir()} if folder.is_dir() else {}
    if not there:
        # A zip has no folders of their own: one that holds nothing is one that is not there.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    items = {name: item for name, item in there.items() if counts(name) and not item.is_dir()}
    for name in sorted(items):
        yield File(name, str(items[name]), items[name].read_bytes())


def _unreadable(location: Location, error: OSError) -> str:
    what = error.filename or location
    if isinstance(location, str | os.PathLike) and not os.path.isabs(location):  # noqa: PTH117 - a str is fine
        return f"cannot read '{what}', relative to {_here()}: {error.strerror}"
    return f"cannot read '{what}': {error.strerror}"


def _here() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - a str is fine
    except OSError:
        return "a working directory that is gone"
