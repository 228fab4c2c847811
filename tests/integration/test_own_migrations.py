"""This project's own migrations, through the checks that others have: also an example of their use."""

import pytest

from pgratchet import testing

test_every_migration_applies = testing.test_every_migration_applies
test_every_down_undoes_its_up = testing.test_every_down_undoes_its_up


@pytest.fixture(scope="session")
def pgratchet_server(maintenance_dsn: str) -> str:
    return maintenance_dsn
