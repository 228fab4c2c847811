import pytest

from pgratchet.core.sql.bare import Bare, read
from pgratchet.core.sql.statements import Nature


@pytest.mark.parametrize(
    ("text", "name", "table"),
    [
        ("CREATE INDEX CONCURRENTLY i ON t (n)", "i", "t"),
        ("create unique index concurrently if not exists i on only s.t (n)", "i", "s.t"),
        ("CREATE INDEX CONCURRENTLY i ON ONLY (t) (n)", "i", "t"),
        ('CREATE INDEX CONCURRENTLY "I x" ON "S"."T""t" USING gin (n)', '"I x"', '"S"."T""t"'),
        ("CREATE INDEX CONCURRENTLY/* a */i -- ON x\nON s /* b */ . t(n)", "i", "s.t"),
        ("CREATE INDEX CONCURRENTLY if ON t (n)", "if", "t"),
        ("CREATE INDEX CONCURRENTLY ÄÖ_1$ ON db.s.t(n)", "ÄÖ_1$", "db.s.t"),
        ("CREATE INDEX CONCURRENTLY _i ON t (n)", "_i", "t"),
        ("CREATE INDEX CONCURRENTLY ON t (n)", None, "t"),
        ('CREATE INDEX CONCURRENTLY "on" ON t (n)', '"on"', "t"),
    ],
)
def test_an_index_has_a_name_and_a_table_as_they_are_written(text: str, name: str | None, table: str) -> None:
    assert read(text) == Bare(Nature.BUILD, name, table, concurrently=True)
    assert read(text).is_recoverable


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("DROP INDEX CONCURRENTLY i", "i"),
        ("DROP INDEX CONCURRENTLY IF EXISTS i", "i"),
        ('drop index concurrently S . "I" CASCADE', 'S."I"'),
    ],
)
def test_an_index_to_be_dropped_has_a_name(text: str, name: str) -> None:
    assert read(text) == Bare(Nature.DROP, name, concurrently=True)


@pytest.mark.parametrize(
    ("text", "table", "name"),
    [
        ("ALTER TABLE p DETACH PARTITION c CONCURRENTLY", "p", "c"),
        ('ALTER TABLE IF EXISTS ONLY s.p * DETACH PARTITION s."C" CONCURRENTLY', "s.p", 's."C"'),
    ],
)
def test_a_partition_has_a_name_and_a_parent(text: str, table: str, name: str) -> None:
    assert read(text) == Bare(Nature.DETACH, name, table, concurrently=True)


@pytest.mark.parametrize(
    ("text", "nature", "concurrently"),
    [
        ("DROP DATABASE IF EXISTS d", Nature.REPEATABLE, False),
        ("DROP SUBSCRIPTION IF EXISTS d", Nature.REPEATABLE, False),
        ("DROP TABLESPACE IF EXISTS d", Nature.REPEATABLE, False),
        ("VACUUM (ANALYZE) t", Nature.REPEATABLE, False),
        ("CLUSTER", Nature.REPEATABLE, False),
        ("REPACK (CONCURRENTLY) t", Nature.REPEATABLE, True),
        ("ALTER SYSTEM SET work_mem = '1MB'", Nature.REPEATABLE, False),
        ("ALTER DATABASE d SET TABLESPACE x", Nature.REPEATABLE, False),
        ("REINDEX TABLE t", Nature.REINDEX, False),
        ("REINDEX TABLE CONCURRENTLY t", Nature.REINDEX, True),
        ("REINDEX (CONCURRENTLY) TABLE t", Nature.REINDEX, True),
    ],
)
def test_a_repeatable_statement_is_recoverable(text: str, nature: Nature, *, concurrently: bool) -> None:
    assert read(text) == Bare(nature, concurrently=concurrently)
    assert read(text).is_recoverable


@pytest.mark.parametrize(
    "text",
    [
        "CALL work()",
        "DO $$BEGIN COMMIT; END$$",
        "CREATE DATABASE d",
        "DROP DATABASE d",
        "CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p",
        "ALTER SUBSCRIPTION s REFRESH PUBLICATION",
        "DROP SUBSCRIPTION s",
        "CREATE TABLESPACE s LOCATION '/x'",
        "COMMIT PREPARED 'x'",
        "ALTER TABLE p ADD CONCURRENTLY int",
        "ALTER TABLE p DETACH PARTITION c",
        "ALTER DATABASE d RENAME TO x",
        'CREATE INDEX CONCURRENTLY U&"d\\0061t" ON t (n)',
        'CREATE INDEX CONCURRENTLY i ON u&"d\\0061t" (n)',
        "CREATE INDEX CONCURRENTLY i",
        "CREATE INDEX CONCURRENTLY i ON",
        "DROP INDEX CONCURRENTLY",
        'DROP INDEX CONCURRENTLY IF EXISTS U&"d\\0061t"',
        "",
    ],
)
def test_any_other_bare_statement_needs_a_person(text: str) -> None:
    assert read(text).nature is Nature.OPAQUE
    assert not read(text).is_recoverable
