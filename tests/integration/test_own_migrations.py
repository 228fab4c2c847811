"""This project's own migrations, through the checks that others have: also an example of their use."""

import pytest

from pgratchet.testing import test_every_down_undoes_its_up, test_every_migration_applies

__all__ = ["test_every_down_undoes_its_up", "test_every_migration_applies"]


@pytest.fixture(scope="session")
def pgratchet_server(maintenance_dsn: str) -> str:
    return maintenance_dsn
