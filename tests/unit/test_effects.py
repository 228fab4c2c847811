from itertools import product

import pytest

from pgratchet.core.sql.statements import Effect, effect_of, scan


def effect(sql: str) -> Effect:
    (statement,) = scan(sql)
    return statement.effect


@pytest.mark.parametrize(
    ("sql", "reads"),
    [
        ("copy t from stdin", True),
        ("COPY s.t (a, b) FROM /* x */ STDIN WITH (FORMAT csv)", True),
        ("copy t from stdout", True),
        ("copy t to stdin", False),
        ("copy t from '/tmp/stdin'", False),
        ("copy (select 1 from stdin) to stdout", False),
        ('copy t from "stdin"', False),
        ("insert into copy select 1 from stdin", False),
    ],
)
def test_a_copy_that_waits_for_the_client_is_recognised(sql: str, reads: bool) -> None:  # noqa: FBT001 - an expectation
    assert effect(sql).reads_stdin is reads


REFUSED = {
    "CREATE INDEX CONCURRENTLY": [
        "create index concurrently i on t (a)",
        "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON t (a)",
        "create unique index concurrently on t (a)",
        "create /* c */ index -- d\n concurrently on t (a)",
    ],
    "DROP INDEX CONCURRENTLY": ["drop index concurrently i", "drop index concurrently if exists s.i"],
    "REINDEX CONCURRENTLY": [
        "reindex table concurrently t",
        "reindex (concurrently) index i",
        "reindex (verbose, concurrently on) table t",
        "reindex schema concurrently s",
    ],
    "REINDEX SCHEMA": ["reindex schema s", "reindex (verbose) schema s"],
    "REINDEX DATABASE": ["reindex database d", "reindex (concurrently off) database d"],
    "REINDEX SYSTEM": ["reindex system d"],
    "REPACK": ["repack", "repack (verbose)", "repack using index", "repack (analyze) t"],
    "REPACK CONCURRENTLY": ["repack (concurrently) t"],
    "VACUUM": ["vacuum", "vacuum full t", "vacuum(analyze) t"],
    "CREATE DATABASE": ["create database d"],
    "DROP DATABASE": ["drop database if exists d"],
    "CREATE TABLESPACE": ["create tablespace x location '/x'"],
    "DROP TABLESPACE": ["drop tablespace x"],
    "ALTER SYSTEM": ["alter system set work_mem = '4MB'", "alter system reset all"],
    "ALTER DATABASE SET TABLESPACE": [
        "alter database d set tablespace x",
        "alter database d with tablespace x",
        "alter database d tablespace x",
    ],
    "DETACH PARTITION CONCURRENTLY": [
        "alter table t detach partition p concurrently",
        'alter table if exists only "a"."b" * detach partition c.d concurrently /* x */',
    ],
    "CLUSTER": ["cluster", "cluster verbose", "cluster (verbose)", "cluster (verbose off)"],
    "DISCARD ALL": ["discard all"],
    "COMMIT PREPARED": ["commit prepared 'x'"],
    "ROLLBACK PREPARED": ["rollback prepared 'x'"],
    "CREATE SUBSCRIPTION": [
        "create subscription s connection '(create_slot = false)' publication p",
        "create subscription s connection '' publication p with (enabled = false)",
        "create subscription s connection '' publication p with (connect = true, create_slot)",
    ],
    "DROP SUBSCRIPTION": ["drop subscription s"],
    "ALTER SUBSCRIPTION": [
        "alter subscription s refresh publication",
        "alter subscription s refresh sequences",
        "alter subscription s set publication p",
        "alter subscription s add publication p with (copy_data = false)",
        "alter subscription s drop publication p with (refresh)",
        "alter subscription s set (failover = false)",
        "alter subscription s set (two_phase = false)",
    ],
}


@pytest.mark.parametrize(("name", "sql"), [(name, sql) for name, many in REFUSED.items() for sql in many])
def test_a_statement_that_a_transaction_block_refuses_is_named(name: str, sql: str) -> None:
    assert (effect(sql).refuses, effect(sql).controls) == (name, None)


@pytest.mark.parametrize(
    "sql",
    [
        "create index i on t (a)",
        'create index "concurrently" on t (a)',
        'create unique index "CONCURRENTLY" on t (a)',
        "create index on s.concurrently (a)",
        "create table concurrently_built (vacuum int)",
        'drop index "concurrently"',
        "drop table database",
        "reindex table t",
        "reindex (concurrently false) table t",
        "reindex (concurrently 'off', verbose) table t",
        "reindex (concurrently 0) index i",
        "reindex table s.concurrently",
        "repack t",
        "repack (verbose) t using index i",
        "analyze",
        "alter database d set work_mem = '4MB'",
        "alter database d rename to tablespace",
        "alter table t detach partition p",
        "alter table t detach partition p finalize",
        "alter table t detach partition s.concurrently",
        "alter table t add a text default 'detach partition p concurrently'",
        "alter table t rename to concurrently",
        "cluster t using i",
        "cluster (verbose) t",
        "cluster verbose t",
        "discard temp",
        "create subscription s connection '' publication p with (connect = false)",
        "create subscription s connection '' publication p with (enabled = false, \"create_slot\" = 'off')",
        "alter subscription s set publication p with (copy_data = true, refresh = false)",
        "alter subscription s enable",
        "alter subscription s set (two_phase = true)",
        "refresh materialized view concurrently m",
        "alter type t add value 'x'",
        "(select 'vacuum')",
        "create schema vacuum",
        "alter",
        "create",
    ],
)
def test_a_statement_that_a_transaction_block_accepts_has_no_effect(sql: str) -> None:
    assert (effect(sql).refuses, effect(sql).controls) == (None, None)


@pytest.mark.parametrize(
    ("sql", "controls"),
    [
        ("begin", "BEGIN"),
        ("/* x */ Begin work isolation level serializable", "BEGIN"),
        ("start transaction read only", "START TRANSACTION"),
        ("commit", "COMMIT"),
        ("commit work", "COMMIT"),
        ("commit and chain", "COMMIT AND CHAIN"),
        ("commit transaction and no chain", "COMMIT"),
        ("end", "END"),
        ("end and chain", "END AND CHAIN"),
        ("rollback", "ROLLBACK"),
        ("rollback work and chain", "ROLLBACK AND CHAIN"),
        ("abort transaction", "ABORT"),
        ("prepare transaction 'x'", "PREPARE TRANSACTION"),
        ("set transaction isolation level serializable", "SET TRANSACTION"),
        ("rollback to s", None),
        ("rollback work to savepoint s", None),
        ("savepoint s", None),
        ("release s", None),
        ("prepare transaction as select 1", None),
        ("prepare x as select 1", None),
        ("set session characteristics as transaction read only", None),
        ("set local work_mem = '4MB'", None),
        ("start_something", None),
        ("do $$ begin commit; end $$", None),
    ],
)
def test_a_statement_that_ends_or_begins_a_transaction_is_named(sql: str, controls: str | None) -> None:
    assert (effect(sql).controls, effect(sql).refuses) == (controls, None)


def test_the_pattern_of_opening_words_hides_no_effect() -> None:
    firsts = "create drop alter set begin commit end rollback abort start prepare discard copy vacuum cluster reindex"
    seconds = "or unique index database tablespace subscription schema function rule system table transaction prepared"
    gaps = " ", "\n\t", "/**/", " -- c\n"
    tails = "concurrently", "index concurrently", "p detach partition q concurrently", "s refresh", "d set tablespace x"

    words = product(
        [*firsts.split(), "repack"], gaps, ["", "all", "t", *seconds.split()], ["", "'x'", "from stdin", *tails]
    )
    for first, gap, second, tail in words:
        text = f"{first}{gap}{second} {tail}".upper() if tail == "'x'" else f"{first}{gap}{second} {tail}"
        statement, *_ = scan(text)
        assert statement.effect == effect_of(text, statement.start, statement.end), text
