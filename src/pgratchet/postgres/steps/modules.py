"""The module of a Python migration: like an imported one while the migration runs, and gone afterwards."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import ExecutionLoader
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from itertools import count
from pathlib import Path
from types import ModuleType

from pgratchet.core.model import Source
from pgratchet.postgres.link.cancelling import OwnCancellationError

_numbers = count(1)


class _Loader(ExecutionLoader):
    """Runs the text that was checked: its file may be another one by now, or inside of an archive."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002 - the signature of ExecutionLoader
        """Return the path that tracebacks show."""
        return self._source.path

    def get_source(self, fullname: str) -> str:  # noqa: ARG002 - the signature of InspectLoader
        """Return the text of the file."""
        return self._source.text


@contextmanager
def imported(source: Source) -> Iterator[ModuleType]:
    """Yield the module of a file, which is in `sys.modules` during the block; its top level may raise anything.

    The module is in a package of its own, together with the modules beside the file: runs that are at work at the same
    time share none of them, and the next one reads all of them anew.
    """
    package = f"pgratchet_migrations_{next(_numbers)}"
    path = Path(source.path).absolute()
    # A finder remembers the names in its folder, and a helper may be new.
    sys.path_importer_cache.pop(str(path.parent), None)
    around = ModuleSpec(package, SourceFileLoader(package, str(path.parent / "__init__.py")), is_package=True)
    around.submodule_search_locations = [str(path.parent)]
    loader = _Loader(source)
    spec = ModuleSpec(f"{package}.{path.stem}", loader, origin=str(path))
    spec.has_location = True
    try:
        sys.modules[package] = module_from_spec(around)
        sys.modules[spec.name] = module = module_from_spec(spec)
        try:
            loader.exec_module(module)
        except asyncio.CancelledError as error:
            raise OwnCancellationError(error) from error
        yield module
    finally:
        for name in list(sys.modules):
            if name.partition(".")[0] == package:
                del sys.modules[name]
