"""What is released, as git has it, beside what is in the folder now."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from pgratchet import directory
from pgratchet.core.errors import UsageError
from pgratchet.core.model import File, Migration, Problem
from pgratchet.layouts import own

# Set where tests run in a git hook, they would lead git to another place than the folder.
_ELSEWHERE = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}


class NotComparableError(UsageError):
    """The checkout does not have what the folder is to be compared with."""


def edits(folder: Path, ref: str) -> tuple[Problem, ...]:
    """Return what has become of released migrations that databases which have them applied would be refused for.

    Released is what `ref` and HEAD have in common; a `ref` with a * in it stands for the newest tag before HEAD
    that matches. Raises NotComparableError where git cannot tell, FilesError where either side has problems.
    """
    here = own.parse(directory.read(folder)).migrations
    try:
        name = (
            _git(folder, "describe", "--tags", "--abbrev=0", f"--match={ref}").strip() if "*" in ref else ref.encode()
        )
        commit = _git(folder, "merge-base", "HEAD", os.fsdecode(name)).decode().strip()
    except NotComparableError as error:
        raise NotComparableError(
            f"this checkout has no {ref} to compare with ({error}); fetch it with its history (git fetch --tags "
            "--unshallow; in GitHub Actions, fetch-depth: 0), or say in pgratchet_released, an option of pytest, "
            "which ref is released"
        ) from None
    return tuple(_edits(own.parse(_files(folder, commit)).migrations, here, os.fsdecode(name)))


def _files(folder: Path, commit: str) -> Iterator[File]:
    """Yield the migration files that a commit has in the folder."""
    prefix = os.fsdecode(_git(folder, "rev-parse", "--show-prefix").rstrip(b"\n"))
    listing = _git(folder, "ls-tree", "-z", "--full-tree", commit, *([prefix] if prefix else []))
    blobs = {}
    for line in listing.split(b"\0")[:-1]:
        about, _, path = line.partition(b"\t")
        _, kind, blob = about.decode().split()
        name = os.fsdecode(path).rpartition("/")[2]
        if kind == "blob" and directory.counts(name):
            blobs[name] = blob
    contents = _contents(folder, list(blobs.values()))
    for name, content in zip(blobs, contents, strict=True):
        yield File(name, f"{name} of {commit[:12]}", content)


def _contents(folder: Path, blobs: Sequence[str]) -> Iterator[bytes]:
    answer = _git(folder, "cat-file", "--batch", said="".join(f"{blob}\n" for blob in blobs))
    position = 0
    for _ in blobs:
        head = answer.index(b"\n", position)
        size = int(answer[position:head].split()[2])
        yield answer[head + 1 : head + 1 + size]
        position = head + size + 2


def _git(folder: Path, *arguments: str, said: str = "") -> bytes:
    command = ["git", "-C", str(folder), *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE} | {"LC_ALL": "C"}
    try:
        done = subprocess.run(command, input=said.encode(), capture_output=True, check=False, env=environment)  # noqa: S603 - the project's own git, in its own folder
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
            yield Problem(was.up.path, message, "restore it, and undo what it does in a new migration")
