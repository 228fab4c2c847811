"""The released migrations, as git has them, compared with the files in the folder."""

import os
import subprocess
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from pgratchet.core.errors import UsageError
from pgratchet.core.masking import FramesForgotten, Hidden
from pgratchet.core.model import File, Migration, Problem
from pgratchet.files import directory
from pgratchet.files.layout import Layout

# A git hook sets these variables; in a test that runs there, they would lead git away from the folder.
_ELSEWHERE = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}

_LINK = "120000"
"""The mode of a symbolic link."""


class NotComparableError(UsageError):
    """The checkout lacks the release to compare with."""


def edits(folder: Path, ref: str, layout: Layout) -> tuple[Problem, ...]:
    """Return every change to a released migration that makes pgratchet refuse a database where it is applied.

    The release is the newest common commit of `ref` and HEAD; a `ref` with a * is a pattern, and stands for the newest
    matching tag before HEAD. Raises NotComparableError if git lacks it, FilesError if either side has problems.
    """
    files = tuple(directory.read(folder))
    here = layout.parse(files).migrations
    try:
        name = (
            _git(folder, "describe", "--tags", "--abbrev=0", f"--match={ref}").strip() if "*" in ref else ref.encode()
        )
        commit = _git(folder, "merge-base", "HEAD", os.fsdecode(name)).decode().strip()
    except NotComparableError as error:
        raise NotComparableError(
            f"this checkout has no {ref} to compare with ({error}); fetch it with its history (git fetch --tags "
            "--unshallow; in GitHub Actions, fetch-depth: 0), or name the released ref in pytest's option "
            "pgratchet_released"
        ) from None
    there = layout.parse(_files(folder, commit, {file.name for file in files})).migrations
    return tuple(_edits(there, here, os.fsdecode(name)))


def _files(folder: Path, commit: str, names: Collection[str]) -> Iterator[File]:
    """Yield the migration files of a commit: those of the folder, or of the folder from which these were moved."""
    place = os.fsdecode(_git(folder, "rev-parse", "--show-prefix").rstrip(b"\n"))
    folders = _folders(folder, commit)
    objects = folders.get(place) or _moved(folder, folders, names)
    if odd := [name for name, what in objects.items() if "\n" in what]:
        raise NotComparableError(f"{odd[0]} of {commit[:12]} has a line break in its name; give the link another one")
    for name, (kind, content) in zip(objects, _contents(folder, list(objects.values())), strict=True):
        path = f"{name} of {commit[:12]}"
        if kind == "blob":
            yield File(name, path, content)
        elif kind == "missing":
            raise NotComparableError(f"{path} is missing in this checkout; fetch it (git fetch --refetch)")
        elif kind != "tree":
            raise NotComparableError(
                f"{path} is a link out of the repository, or to nothing, so that git lacks the released content: "
                f"{os.fsdecode(content)}; put the file itself in its place"
            )


def _folders(folder: Path, commit: str) -> Mapping[str, Mapping[str, str]]:
    """Return the name of the git object of each possible migration in a commit, by folder and file name."""
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for line in _git(folder, "ls-tree", "-rz", "--full-tree", commit).split(b"\0")[:-1]:
        about, _, path = os.fsdecode(line).partition("\t")
        mode, kind, blob = about.split()
        place, slash, name = path.rpartition("/")
        if kind == "blob" and directory.MIGRATION.fullmatch(name):
            folders[place + slash][name] = f"{commit}:{path}" if mode == _LINK else blob
    return folders


def _moved(folder: Path, folders: Mapping[str, Mapping[str, str]], names: Collection[str]) -> Mapping[str, str]:
    """Return the objects of the folder that has lost most of the files `names`; empty if no folder has lost any.

    A file that is still there has not moved: each of several services may have a 001_init.sql.
    """
    top = Path(os.fsdecode(_git(folder, "rev-parse", "--show-toplevel").rstrip(b"\n")))

    def gone(place: str) -> int:
        paths = [(Path(top, place, name), folder / name) for name in names & folders[place].keys()]
        return sum(not old.exists() or old.samefile(new) for old, new in paths)

    counted = {place: count for place in folders if (count := gone(place))}
    return folders[max(counted, key=counted.__getitem__)] if counted else {}


def _contents(folder: Path, objects: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the kind and the content of each object; for a link within the repository, those of its target.

    An object that git does not have is of the kind "missing".
    """
    said = "".join(f"{each}\n" for each in objects)
    answer = _git(folder, "cat-file", "--batch", "--follow-symlinks", said=said)
    position = 0
    for _ in objects:
        head = answer.index(b"\n", position)
        *_, kind, size = answer[position:head].split(b" ")
        position = head + 1
        if size == b"missing":
            yield "missing", b""
            continue
        position += int(size) + 1
        yield kind.decode(), answer[head + 1 : position - 1]


def _git(folder: Path, *arguments: str, said: str = "") -> bytes:
    command = ["git", "-C", str(folder), *arguments]
    # Hidden, because a DSN may be in it.
    environment = Hidden({name: value for name, value in os.environ.items() if name not in _ELSEWHERE})
    try:
        with FramesForgotten():
            done = subprocess.run(  # noqa: S603 - the project's own git, in its own folder
                command,
                input=os.fsencode(said),
                capture_output=True,
                check=False,
                env=environment.reveal() | {"LC_ALL": "C"},
            )
    except FileNotFoundError:
        raise NotComparableError("there is no git on PATH") from None
    if done.returncode != 0:
        raise NotComparableError(os.fsdecode(done.stderr).strip() or "its history and HEAD's have nothing in common")
    return done.stdout


def _edits(released: Sequence[Migration], here: Sequence[Migration], ref: str) -> Iterator[Problem]:
    now = {migration.version: migration for migration in here}
    known = {migration.version for migration in released}
    new = [migration for migration in here if migration.version not in known]
    for was in released:
        there = now.get(was.version)
        if there is not None and there.checksum == was.checksum:
            continue
        moved = next((each for each in new if each.checksum == was.checksum or each.name == was.name), None)
        if moved is not None and (there is None or there.name != was.name):
            message = f"it was released as version {was.version} (in {ref}), and is {moved.version} now"
            yield Problem(moved.up.path, message, "give it its number back")
        elif there is not None:
            cure = "restore the file and put the change into a new migration"
            yield Problem(there.up.path, f"version {was.version} was edited after its release (in {ref})", cure)
        else:
            message = f"version {was.version} is released (in {ref}), and has no file here"
            yield Problem(was.up.path, message, "restore it, and undo its effect in a new migration")
