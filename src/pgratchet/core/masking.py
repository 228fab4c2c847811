"""Passwords, kept out of whatever prints a text."""

import re
from typing import TypeVar, cast

T = TypeVar("T")

# A password may hold any character: from its first one to the last @ of the text. The example is no secret.
_URL = re.compile(r"(\w://|\bpostgres\w*(?:\+\w+)?:/(?!/))(?!user:password@)[^@:]*:.*@[^\s'\"]*", re.DOTALL)
# Where its end is in doubt it goes on to the end: quotes and backslashes may have been quoted again, and what is not
# percent-encoded in a URL's query may hold blanks.
_PASSWORD = re.compile(
    r"(password\s*=\s*)"
    r"(?:'[^'\\]*'(?=[\s\"')]|\Z)"
    r"|(?<![?&]password=)[^\s'\"\\]+(?=\s+(?:host|hostaddr|port|user|dbname|sslmode|options)\s*=)"
    r"|.*)",
    re.DOTALL | re.IGNORECASE,
)


def discreet(value: T) -> T:
    """Return a text without the passwords of URLs and connection strings in it; anything else as it is."""
    if not isinstance(value, str):
        return value
    return cast("T", _URL.sub(r"\1...", _PASSWORD.sub(r"\1...", value)))
