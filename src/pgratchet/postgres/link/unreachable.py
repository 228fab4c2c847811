"""Why a server cannot be had, and whether that may pass by itself."""

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
    # What the server has answered to PgBouncer's own login: 57P03 or 53300, or what became of that.
    "the database system is",
    "too many clients",
    "too many connections",
    "remaining connection slots",
    "cannot connect",
    "connect failed",
    "connect timeout",
    "server conn crashed",
    "server DNS lookup failed",
    # Its own answers.
    "try again later",
    "no more connections allowed",
    "client connections exceeded",
    "client_login_timeout",
    "query_wait_timeout",
    "shutting down",
)
"""In words, because PgBouncer says all of this, and that a name is wrong, as a protocol violation."""

_NO_TLS = "rejected SSL upgrade"
"""What asyncpg says where a server has no TLS."""


def may_pass(error: Exception) -> bool:
    """Say whether a server may be there soon: it is starting, full, or not listening yet; a name may be mistyped."""
    if _NO_TLS in str(error) or getattr(error, "filename", None) is not None:
        # What names a file is no server's socket: the error of connecting to that has none.
        return False
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, asyncpg.ProtocolViolationError):
        return any(words in str(error) for words in _POOLERS_NOT_NOW)
    return isinstance(error, _NOT_NOW)


def cure(error: BaseException) -> str:
    """Return what is to be said behind an error that waiting does not cure, empty where its words are enough."""
    return "; turn its TLS on, or ask for less: sslmode=prefer or disable" if _NO_TLS in str(error) else ""
