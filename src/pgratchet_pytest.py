"""The pytest plugin: fixtures and their options.

It is not inside the package, because pytest imports it at every start, and that would import the package too.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options of the plugin in the settings of pytest."""
    parser.addini(
        "pgratchet_server", "DSN of a server to test on (default: DATABASE_URL, or a private one)", default=""
    )
    parser.addini(
        "pgratchet_migrations", "folder of migrations, from the root directory", default="migrations/versions"
    )
    parser.addini("pgratchet_released", "git ref of the release, or a pattern of tags", default="origin/main")


@pytest.fixture(scope="session")
def pgratchet_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """Yield the DSN of the server for test databases: the given one, or a private one. Its role may make databases."""
    from pgratchet.testing.databases import ShownDsn, server  # noqa: PLC0415 - at the first use: see above

    with server(pytestconfig.getini("pgratchet_server")) as dsn:
        yield ShownDsn(dsn.reveal())


@pytest.fixture(scope="session")
def pgratchet_migrations(pytestconfig: pytest.Config) -> str | os.PathLike[str]:
    """Return the folder of migrations."""
    folder: str = pytestconfig.getini("pgratchet_migrations")
    return Path(pytestconfig.rootpath, folder)


@pytest.fixture(scope="session")
def pgratchet_layout() -> Any:
    """Return the layout: the names, the form and the versions of the files."""
    from pgratchet.files.layouts import DEFAULT_LAYOUT  # noqa: PLC0415 - as above

    return DEFAULT_LAYOUT


@pytest.fixture(scope="session")
def pgratchet_migrator(pgratchet_migrations: str | os.PathLike[str], pgratchet_layout: Any) -> Callable[[str], Any]:
    """Return a function that takes a DSN and returns the Migrator of that database; override it to give options."""
    from pgratchet import Migrator  # noqa: PLC0415 - as above

    return partial(Migrator, migrations=pgratchet_migrations, layout=pgratchet_layout)


@pytest.fixture(scope="session")
def pgratchet_databases(pgratchet_server: str) -> Any:
    """Return a maker of databases: `with pgratchet_databases.empty() as dsn`, or `.clone(template)`."""
    from pgratchet.testing.databases import Databases  # noqa: PLC0415 - as above

    databases = Databases(pgratchet_server)
    del pgratchet_server  # a project may override the fixture with a plain DSN, and a traceback shows local variables
    databases.sweep()
    return databases


@pytest.fixture(scope="session")
def pgratchet_template(pgratchet_databases: Any, pgratchet_migrator: Callable[[str], Any]) -> Iterator[str]:
    """Yield the DSN of the migrated database that each test gets a copy of; override it to add rows."""
    with pgratchet_databases.migrated(pgratchet_migrator) as dsn:
        yield dsn


@pytest.fixture
def pgratchet_dsn(pgratchet_databases: Any, pgratchet_template: str) -> Iterator[str]:
    """Yield the DSN, for asyncpg, of a migrated database for this test alone; dropped afterwards."""
    with pgratchet_databases.clone(pgratchet_template) as dsn:
        yield dsn


@pytest.fixture
def pgratchet_empty_dsn(pgratchet_databases: Any) -> Iterator[str]:
    """Yield the DSN, for asyncpg, of an empty database for this test alone; dropped afterwards."""
    with pgratchet_databases.empty() as dsn:
        yield dsn
