"""Ready-made checks of a folder of migrations: tests that a project imports into a test module."""

import os
import symtable
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from pgratchet import Migrator
from pgratchet.core.errors import FilesError, MigrationFailedError, PgratchetError
from pgratchet.core.model import Kind, Migration
from pgratchet.core.printing import printable
from pgratchet.files.directory import Location
from pgratchet.files.layout import Layout
from pgratchet.testing import dumps, released
from pgratchet.testing.databases import Databases, MakeMigrator, made, run


def test_every_migration_applies(pgratchet_empty_dsn: str, pgratchet_migrator: MakeMigrator) -> None:
    """Apply every migration on an empty database."""
    with _failing():
        migrator = made(pgratchet_migrator, pgratchet_empty_dsn)
        run(migrator.up)
        run(migrator.check)


def test_every_down_undoes_its_up(pgratchet_databases: Databases, pgratchet_migrator: MakeMigrator) -> None:
    """Apply and revert each version, and find the same schema as before; rows are not compared."""
    with _failing(), pgratchet_databases.empty() as dsn:
        walk = _Walk(pgratchet_databases, pgratchet_migrator, dsn)
        problems = [problem for migration in walk.migrations() for problem in walk.step(migration)]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_no_released_migration_was_edited(
    pgratchet_migrations: Location, pgratchet_layout: Layout, pytestconfig: pytest.Config
) -> None:
    """Compare the files with the release: no released file is edited, renumbered or missing."""
    if not isinstance(pgratchet_migrations, str | os.PathLike):
        pytest.fail("only a folder can be compared with a git ref, not a package's resources", pytrace=False)
    with _failing():
        problems = released.edits(
            Path(pgratchet_migrations), pytestconfig.getini("pgratchet_released"), pgratchet_layout
        )
    if problems:
        pytest.fail("\n".join(map(str, problems)), pytrace=False)


class _Walk:
    """Applies one version after the other; before each, applies and reverts it on a copy."""

    def __init__(self, databases: Databases, make_migrator: MakeMigrator, dsn: str) -> None:
        self._databases = databases
        self._make_migrator = make_migrator
        self._dsn = dsn
        self._migrator = made(make_migrator, dsn)
        self._table = self._migrator._settings.history.table  # noqa: SLF001 - of this package
        self._pg_dump = dumps.find_pg_dump(databases.server_major())

    def migrations(self) -> Iterator[Migration]:
        """Yield each migration, oldest first."""
        # This makes the history with its schema and grants, which no migration has to undo.
        run(partial(self._migrator.down, 0))
        for entry in run(self._migrator.status):
            if entry.migration is not None:
                yield entry.migration

    def step(self, migration: Migration) -> Iterator[str]:
        """Apply a migration; before that, yield the problems of its way down, if it has one."""
        if _has_way_down(migration):
            with self._databases.clone(self._dsn) as copy:
                yield from self._there_and_back(migration, made(self._make_migrator, copy), copy)
        run(partial(self._migrator.up, migration.version))

    def _there_and_back(self, migration: Migration, migrator: Migrator, copy: str) -> Iterator[str]:
        before = dumps.dump(self._pg_dump, copy, self._table)
        run(partial(migrator.up, migration.version))
        try:
            run(migrator.down)
        except (FilesError, MigrationFailedError) as error:
            yield _described(error)
            return
        different = list(dumps.differences(before, dumps.dump(self._pg_dump, copy, self._table)))
        if different and migration.down is not None:
            message = "leaves another schema than its up found"
            yield f"{migration.down.path}: down {migration.version} {migration.name} {message}"
            yield from different


def _has_way_down(migration: Migration) -> bool:
    """Return whether a migration has a way down; in a Python file any `down` counts, also one that a run refuses."""
    if migration.down is None or migration.kind is Kind.SQL:
        return migration.down is not None
    try:
        table = symtable.symtable(migration.down.text, migration.down.path, "exec")
    except SyntaxError:
        return False  # its way up, which comes next, reports the error
    return "down" in table.get_identifiers() and table.lookup("down").is_local()


@contextmanager
def _failing() -> Iterator[None]:
    """Turn errors of pgratchet into failures without a traceback: these errors are about files, not about code."""
    try:
        yield
    except PgratchetError as error:
        # Not by pytest.fail(), after which pytest would show the original error as well.
        raise pytest.fail.Exception(_described(error), pytrace=False) from None


def _described(error: PgratchetError) -> str:
    if not isinstance(error, MigrationFailedError):
        return str(error)
    failure = error.failure
    more = {"statement": failure.statement, "detail": failure.detail, "hint": failure.hint, "context": failure.context}
    return "\n".join([str(error), *(printable(f"  {name}: {text}") for name, text in more.items() if text)])
