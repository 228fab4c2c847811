"""Errors of connecting: which of them may pass by themselves, and the cure for the others."""

import socket

import asyncpg

_NOT_NOW = (
    ConnectionError,
    FileNotFoundError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.ConnectionFailureError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)

_POOLERS_NOT_NOW = (
    # PgBouncer remembers the server's error for some seconds. It reports that with the server's own SQLSTATE to the
    # client whose login it makes next.
    "server login has been failing",
    "cannot connect",
    "connect failed",
    "connect timeout",
    "server conn crashed",
    "server DNS lookup failed",
    "no more connections allowed",
    "client connections exceeded",
    "client_login_timeout",
    "query_wait_timeout",
    "shutting down",
    # The server's own words, in English only: before 1.20 PgBouncer does not tell their SQLSTATE, 57P03 or 53300.
    "the database system is",
    "too many clients",
    "too many connections",
    "remaining connection slots",
)
"""By words, because PgBouncer reports all of these, and a wrong name too, as a protocol violation.

It does not translate its own words.
"""

_ABSENT = {
    asyncpg.InvalidCatalogNameError: "create the database, or correct its name",
    # A server that asks for a password does not say whether the role is there.
    asyncpg.InvalidPasswordError: "create the role with this password, or correct user and password",
    asyncpg.InvalidAuthorizationSpecificationError: (
        "create the role with LOGIN and let pg_hba.conf admit it, or correct the user"
    ),
}
"""The cures for a database or a role that is not there, by the error; a subclass comes before its base."""

_POOLERS_ABSENT = ("does not exist", "no such database", "no such user", "password authentication failed")
"""By words, as above."""

_NO_TLS = "rejected SSL upgrade"
"""Words of asyncpg's error for a server without TLS."""


def may_pass(error: Exception) -> bool:
    """Return whether the server may be there soon: it is starting, full, or not listening yet. A wrong name is not."""
    if _NO_TLS in str(error) or getattr(error, "filename", None) is not None:
        # An error that names a file is not about a server's socket: an error of connecting to that names none.
        return False
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, asyncpg.ProtocolViolationError):
        return not absence(error) and any(words in str(error) for words in _POOLERS_NOT_NOW)
    return isinstance(error, _NOT_NOW)


def is_answer(error: Exception) -> bool:
    """Return whether a PostgreSQL, or a pooler before it, has sent the error."""
    # asyncpg makes this one where a connection ends without a word, as one to a proxy without a server behind it does.
    return isinstance(error, asyncpg.PostgresError) and not isinstance(error, asyncpg.ConnectionDoesNotExistError)


def absence(error: BaseException) -> str:
    """Return the cure for a database, a role or a right that is not there; empty for any other error."""
    if isinstance(error, asyncpg.ProtocolViolationError) and any(words in str(error) for words in _POOLERS_ABSENT):
        return "create the database or the role, or correct their names and the password"
    # The source functions of the server are not translated.
    if isinstance(error, asyncpg.InsufficientPrivilegeError) and error.server_source_function == "CheckMyDatabase":
        return "grant the role CONNECT on the database"
    return next((cure for kind, cure in _ABSENT.items() if isinstance(error, kind)), "")


def cure(error: BaseException) -> str:
    """Return the cure to add to an error of connecting; empty where the error says enough."""
    if _NO_TLS in str(error):
        return "; turn its TLS on, or ask for less: sslmode=prefer or disable"
    return f"; {absent}" if (absent := absence(error)) else ""
