"""The contract of a layout: it reads the names and texts of a directory's files and orders their versions."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol, runtime_checkable

from pgratchet.core.model import Catalogue, File, Kind, Migration, Rank


@runtime_checkable
class Layout(Protocol):
    """Turns files into migrations; no other part of the package knows the form of a version.

    A version is a text that PostgreSQL can store. The history keeps it for ever: the same file has the same version
    in every release.
    """

    @property
    def name(self) -> str:
        """Its name for people."""

    @property
    def form(self) -> str:
        """The form of its versions, as the end of a sentence about a text that is no version."""

    def recognises(self, files: Iterable[File]) -> bool:
        """Say whether any of the files has a name of this layout."""

    def parse(self, files: Iterable[File], *, strict: bool = False) -> Catalogue:
        """Return the migrations of the files, in the order of their ranks, which are all different.

        Raises FilesError with every problem of the directory; with `strict`, its warnings are among the problems.
        """

    def canonical(self, text: str) -> str | None:
        """Return the version that a person means by a text, as its migration has it; None if the text is no version."""

    def meant(self, text: str) -> str | None:
        """Return a guess at the version meant by a text in the history that is not canonical; None for no guess."""

    def rank(self, version: str) -> Rank | None:
        """Return the rank of a version, by its text alone; None for a text without a rank."""

    def draft(self, migrations: Sequence[Migration], description: str, kind: Kind, now: datetime) -> Mapping[str, str]:
        """Return the texts of the files of a new migration, by name; its version is above all of `migrations`.

        Raises UsageError for a description that cannot become a file name.
        """
