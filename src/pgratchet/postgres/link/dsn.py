"""What a DSN says, and what a connection by it lacks on this machine; no message repeats a part of a password."""

import configparser
import errno
import getpass
import os
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias
from urllib.parse import parse_qs, quote, unquote, urlsplit

import asyncpg

from pgratchet.core.arguments import unseen
from pgratchet.core.errors import UsageError
from pgratchet.core.masking import Hidden

Dsn: TypeAlias = str | Hidden[str]

_SCHEMES = {"postgresql", "postgres", "postgresql+asyncpg", "postgres+asyncpg"}
_FORM = (
    "write postgresql://user:password@host:port/database, with %40, %2F, %3F and %23 in place of @, /, ? and # in a "
    "password"
)
_TLS_FILES = {
    "sslrootcert": "root.crt",
    "sslcert": "postgresql.crt",
    "sslkey": "postgresql.key",
    "sslcrl": "root.crl",
}
"""Where asyncpg looks in ~/.postgresql for what neither the DSN nor the environment names."""

_ABSENT = (FileNotFoundError, NotADirectoryError)
_HOME = "make it readable, set HOME to a directory that this process may read, or name other files in the DSN"
_NAMELESS = (
    "the DSN names no user, and the system has no name for this process's; write postgresql://user:password@host/..., "
    "or set PGUSER"
)

_NOT_READ = (
    ValueError,
    IndexError,
    OverflowError,
    asyncpg.ClientConfigurationError,
    asyncpg.InterfaceError,
    configparser.Error,
)
"""What asyncpg raises for a DSN or a service file that it cannot read, some of which quote from it."""


def read(dsn: Hidden[str], what: str = "the DSN") -> Hidden[str]:
    """Return the DSN as asyncpg takes it; raises UsageError for what is no PostgreSQL DSN."""
    # Not hidden by the type alone: it is the caller's, who may have no type checker.
    if not isinstance(dsn.reveal(), str):
        raise UsageError(f"{what} must be a string, and is of the type {type(dsn.reveal()).__name__}")
    url = Hidden(_trimmed(dsn.reveal()))
    if not url:
        raise UsageError(f"{what} is empty; {_FORM}")
    if "%00" in url.reveal():
        raise UsageError(f"{what} has a NUL (%00) in it, which PostgreSQL does not take")
    if (found := unseen(url.reveal())) is not None:
        raise UsageError(f"{what} has {found}; take it away, or write it as %XX if it belongs to the password")
    if not _is_read(url):
        raise UsageError(f"{what} cannot be parsed; {_FORM}")
    if found := unseen(query(url).get("application_name", "")):
        raise UsageError(f"the application_name of {what} has {found}; take it away")
    return Hidden("postgresql://" + url.reveal().partition("://")[2])


def _trimmed(text: str) -> str:
    """Return a text without the blanks and the byte order mark around it, which no URL begins or ends with."""
    # Not left to urlsplit: it drops newlines anywhere, and leaves a blank at the end of the database's name.
    return text.strip().removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}").strip()


def _is_read(dsn: Hidden[str]) -> bool:
    text = dsn.reveal()
    if text.partition("://")[0] not in _SCHEMES:
        return False
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    # Else a piece of a password would be taken for a host or a database, and shown as one.
    if parts.netloc.count("@") > 1 or "@" in parts.path or parts.fragment:
        return False
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        # Several hosts, as libpq takes them, are no URL's host and port: asyncpg judges those.
        return "," in parts.netloc


def query(address: Hidden[str]) -> Mapping[str, str]:
    """Return what stands behind the question mark; a password may be among it."""
    return {name: values[-1] for name, values in parse_qs(urlsplit(address.reveal()).query).items()}


def database(dsn: Hidden[str]) -> str:
    """Return the name of the database."""
    return unquote(urlsplit(read(dsn).reveal()).path.removeprefix("/"))


def of_database(dsn: Hidden[str], name: str) -> Hidden[str]:
    """Return the same DSN, to another database on the server."""
    parts = urlsplit(read(dsn).reveal())
    return Hidden(f"postgresql://{parts.netloc}/{quote(name, safe='')}" + (f"?{parts.query}" if parts.query else ""))


def refusal(address: Hidden[str], error: Exception) -> str | None:
    """Say what has to change in the DSN or on this machine; None where an error of connecting is the server's."""
    match error:
        case asyncpg.InvalidPasswordError():
            return _password_file(address)
        case ssl.SSLError():
            pass  # before ValueError, which a certificate that is not trusted is, too
        case KeyError() | ImportError() | OSError(errno=None) if _is_nameless(address):
            return _NAMELESS
        case FileNotFoundError() | PermissionError() | IsADirectoryError() | NotADirectoryError() | RuntimeError():
            # Also where a server's socket is not there, or not for this process.
            return next(_tls_files(address), None) if _has_tls(address) else None
        case asyncpg.ClientConfigurationError() if str(error).startswith("root certificate file"):
            return f"{str(error).splitlines()[0]}; name one by sslrootcert=, or ask for less by sslmode=require"
        case _ if isinstance(error, _NOT_READ):
            return f"asyncpg cannot read the DSN; {_FORM}"
    return None


def _is_nameless(address: Hidden[str]) -> bool:
    """Say whether nobody says who is to log in: getpass does it in asyncpg, and raises what differs by release."""
    if urlsplit(address.reveal()).username or query(address).get("user") or os.environ.get("PGUSER"):
        return False
    try:
        getpass.getuser()
    except (KeyError, ImportError, OSError):
        return True
    return False


def _has_tls(address: Hidden[str]) -> bool:
    """Say whether asyncpg looks for files for TLS, which it does before it connects."""
    named = query(address)
    if mode := named.get("sslmode") or os.environ.get("PGSSLMODE"):
        return mode != "disable"
    hosts = urlsplit(address.reveal()).netloc.rpartition("@")[2] or named.get("host") or os.environ.get("PGHOST", "")
    return not all(unquote(host).startswith("/") for host in hosts.split(","))


def _tls_files(address: Hidden[str]) -> Iterator[str]:
    """Yield what is wrong with each file for TLS that asyncpg cannot read."""
    named = query(address)
    for setting, usual in _TLS_FILES.items():
        if path := named.get(setting) or os.environ.get(f"PG{setting.upper()}"):
            if trouble := _trouble(path):
                yield f"asyncpg cannot read the file {setting}={path}: {trouble}"
        elif (home := _home()) and (trouble := _trouble(path := f"{home}/.postgresql/{usual}", *_ABSENT)):
            yield f"asyncpg cannot read {path}: {trouble}; {_HOME}"


def _password_file(address: Hidden[str]) -> str | None:
    """Say why asyncpg has found no password, where nobody gives it one and its file cannot be read."""
    named = query(address)
    if urlsplit(address.reveal()).password or named.get("password") or os.environ.get("PGPASSWORD"):
        return None
    if path := named.get("passfile") or os.environ.get("PGPASSFILE"):
        trouble = _trouble(path)
    elif home := _home():
        trouble = _trouble(path := f"{home}/.pgpass", *_ABSENT)
    else:
        path, trouble = "~/.pgpass", "this process has no home directory"
    if trouble is None:
        return None
    return f"the DSN has no password that the server takes, and asyncpg cannot read {path}: {trouble}; {_HOME}"


def _home() -> Path | None:
    try:
        return Path.home()
    except (RuntimeError, KeyError):
        return None


def _trouble(path: str, *passed_over: type[OSError]) -> str | None:
    """Say why a file cannot be read; it is not opened, as that may block."""
    try:
        Path(path).stat()
    except passed_over:
        return None
    except OSError as error:
        return error.strerror
    except ValueError as error:
        return str(error)
    return None if os.access(path, os.R_OK) else os.strerror(errno.EACCES)
