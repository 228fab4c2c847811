"""A password is in nothing that is printed, logged, raised or sent by a tool that looks at errors."""

from urllib.parse import quote

import pytest

from pgratchet.core.masking import discreet

PASSWORD = "hunter2/s3cr3t @ho?me"  # noqa: S105 - nobody's
"""With all that a DSN has to have percent-encoded."""
ENCODED = quote(PASSWORD, safe="")
SECRETS = (PASSWORD, ENCODED, "hunter2", "s3cr3t")

DSN = f"postgresql://somebody:{ENCODED}@nowhere/x"
STRING = f"host=nowhere password='{PASSWORD}' dbname=x"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"'{DSN}' is none", "'postgresql://...' is none"),
        (f"'postgresql://somebody:{PASSWORD}@nowhere/x' is none", "'postgresql://...' is none"),
        ("postgresql+asyncpg://a:hunter2@b", "postgresql+asyncpg://..."),
        ("mysql://a:hunter2\n@b", "mysql://..."),
        ("postgresql:/a:hunter2@b", "postgresql:/..."),
        (STRING, "host=nowhere password=... dbname=x"),
        ("password = 'hunter2 s3cr3t'", "password = ..."),
        (r"password='it\'s hunter2' user=s3cr3t", "password=..."),
        (r"password=hunter2\ s3cr3t user=x", "password=..."),
        (repr(r"""password='it\'s "hunter2' user=x"""), "'password=..."),
        ("(host=x password=hunter2 s3cr3t user=x)", "(host=x password=..."),
        ("postgresql://h/x?password=hunter2 s3cr3t&sslmode=disable", "postgresql://h/x?password=..."),
        ("postgresql://h/x?password=hunter2 user=s3cr3t", "postgresql://h/x?password=..."),
        ("sslpassword=hunter2", "sslpassword=..."),
        ("PGPASSWORD=hunter2 psql", "PGPASSWORD=..."),
    ],
)
def test_passwords_are_masked_in_a_text(text: str, shown: str) -> None:
    assert discreet(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "write postgresql://user:password@host:port/database, or see https://www.postgresql.org/docs",
        "postgresql://somebody@nowhere:5432/x?application_name=a",
        "C:/users/a@b/migrations",
        "s3://bucket/migrations",
        "the password of a@b: 12",
    ],
)
def test_a_text_without_a_password_stays_as_it_is(text: str) -> None:
    assert discreet(text) == text
