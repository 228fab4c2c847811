"""The contract of a layout, which reads the names and texts of a directory's files and orders their versions."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol, runtime_checkable

from pgratchet.core.model import Catalogue, File, Kind, Migration, Rank


@runtime_checkable
class Layout(Protocol):
    """Reads files into migrations, and alone knows what a version is.

    A version is a text that PostgreSQL can store. The history keeps it for ever: the same file has the same version
    in every release.
    """

    @property
    def name(self) -> str:
        """The name by which people call it."""

    @property
    def form(self) -> str:
        """How versions are written, as the end of a sentence about a text that is none."""

    def recognises(self, files: Iterable[File]) -> bool:
        """Say whether any of the files is named as this layout has it."""

    def parse(self, files: Iterable[File], *, strict: bool = False) -> Catalogue:
        """Return the migrations that the files make up, in the order of their ranks, which are all different.

        Raises FilesError with every problem of the directory, with what is only odd among them where `strict`.
        """

    def canonical(self, text: str) -> str | None:
        """Return the version that a person means by a text, as its migration has it; None for what is no version."""

    def meant(self, text: str) -> str | None:
        """Return the version that may be meant by a text in the history that is not canonical, None for no guess."""

    def rank(self, version: str) -> Rank | None:
        """Return the rank of a version, by its text alone; None where that does not say it."""

    def draft(self, migrations: Sequence[Migration], description: str, kind: Kind, now: datetime) -> Mapping[str, str]:
        """Return the files of a new migration behind those that are there, by name.

        Raises UsageError for a description that no file can be named after.
        """
