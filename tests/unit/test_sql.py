import pytest

from pgratchet.core.errors import UsageError
from pgratchet.core.model import State
from pgratchet.postgres.link.sql import LONGEST_NAME, Table, identifier, literal, milliseconds


@pytest.mark.parametrize(
    ("name", "expected"),
    [("users", '"users"'), ("Users", '"Users"'), ('a"b', '"a""b"'), ('"', '""""'), ("a;b--", '"a;b--"')],
)
def test_an_identifier_is_quoted(name: str, expected: str) -> None:
    assert identifier(name) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "NULL"),
        (0, "0"),
        (-7, "-7"),
        ("", "''"),
        ("it's", "'it''s'"),
        ("''", "''''''"),
        ("a\nb", "'a\nb'"),
        ("$$; DROP", "'$$; DROP'"),
        ("C:\\x", "E'C:\\\\x'"),
        ("\\'", "E'\\\\'''"),
        ("a\0b", "'ab'"),
        (State.APPLIED, "'applied'"),
    ],
)
def test_a_literal_means_its_value_whatever_the_settings(value: str | int | None, expected: str) -> None:
    assert literal(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "'0ms'"), (5, "'5000ms'"), (0.25, "'250ms'"), (0.0001, "'1ms'"), (0.0014, "'1ms'"), (86400, "'86400000ms'")],
)
def test_a_short_limit_is_never_rounded_to_none(seconds: float, expected: str) -> None:
    assert milliseconds(seconds) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("schema_migrations", Table("public", "schema_migrations")),
        ("tenant.history", Table("tenant", "history")),
        ("Größe.A b", Table("Größe", "A b")),
        ("x" * LONGEST_NAME, Table("public", "x" * LONGEST_NAME)),
    ],
)
def test_a_table_has_a_schema_and_a_name(text: str, expected: Table) -> None:
    assert Table.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a.b.c",
        '"a"',
        'a."b"',
        "x" * (LONGEST_NAME + 1),
        "ö" * (LONGEST_NAME // 2 + 1),
        "x" * (LONGEST_NAME + 1) + ".a",
    ],
)
def test_a_text_that_is_no_table_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"write schema\.name"):
        Table.parse(text)


def test_a_table_is_written_quoted_in_sql_and_plainly_for_people() -> None:
    table = Table("Tenant", "history")

    assert table.quoted == '"Tenant"."history"'
    assert str(table) == "Tenant.history"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("public.schema_migrations", -797820136570506340),
        ("schema_migrations", -797820136570506340),
        ("tenant_1.schema_migrations", 7745995376579364452),
        ("public.pgratchet_migrations", 1454452042199159181),
        ("Größe.Tabelle", 1000181730097623698),
    ],
)
def test_the_lock_of_a_table_is_the_same_in_every_release(text: str, expected: int) -> None:
    assert Table.parse(text).lock_key == expected


def test_tables_do_not_share_a_lock() -> None:
    tables = [Table("a", "b.c"), Table("a.b", "c"), Table("ab", "c"), Table("a", "bc"), Table("A", "bc")]

    assert len({table.lock_key for table in tables}) == len(tables)


def test_a_lock_key_fits_into_eight_bytes() -> None:
    keys = [Table("public", f"t{number}").lock_key for number in range(100)]

    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert min(keys) < 0 < max(keys)
