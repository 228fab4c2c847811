"""For the tests of your application: databases, and ready-made checks of your migrations.

The fixtures need no import: the pytest plugin provides them. To use a check, import its name into a test module.
"""

from pgratchet.testing.checks import (
    test_every_down_undoes_its_up,
    test_every_migration_applies,
    test_no_released_migration_was_edited,
)
from pgratchet.testing.databases import Databases, MakeMigrator

__all__ = [
    "Databases",
    "MakeMigrator",
    "test_every_down_undoes_its_up",
    "test_every_migration_applies",
    "test_no_released_migration_was_edited",
]
