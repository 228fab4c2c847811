"""For the tests of those who use pgratchet: databases, and ready-made checks of their migrations.

The fixtures need no import: pytest has them. A check is switched on by importing its name into a test module.
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
