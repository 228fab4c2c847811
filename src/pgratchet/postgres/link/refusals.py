"""Reasons on this machine for which asyncpg cannot connect, with their cures, and no part of a password."""

import configparser
import errno
import getpass
import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import asyncpg

from pgratchet.postgres.link.dsn import FORM, Address

_TLS_FILES = {
    "sslrootcert": "root.crt",
    "sslcert": "postgresql.crt",
    "sslkey": "postgresql.key",
    "sslcrl": "root.crl",
}
"""The files in ~/.postgresql that asyncpg reads if neither the DSN nor the environment names others."""

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
"""Errors of asyncpg about a DSN or a service file that it cannot read; some quote from it."""


def refusal(address: Address, error: Exception) -> str | None:
    """Return the change that the DSN or this machine needs; None if an error of connecting is the server's."""
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
            return f"asyncpg cannot read the DSN; {FORM}"
    return None


def _is_nameless(address: Address) -> bool:
    """Return whether the user of the login is unknown. asyncpg asks getpass, whose errors differ by release."""
    if address.get("user") or os.environ.get("PGUSER"):
        return False
    try:
        getpass.getuser()
    except (KeyError, ImportError, OSError):
        return True
    return False


def _has_tls(address: Address) -> bool:
    """Return whether asyncpg looks for files for TLS; it does so before it connects."""
    if mode := address.get("sslmode") or os.environ.get("PGSSLMODE"):
        return mode != "disable"
    hosts = address.get("host") or os.environ.get("PGHOST", "")
    return not all(host.startswith("/") for host in hosts.split(","))


def ways_without_home(address: Address) -> Sequence[ssl.SSLContext | bool]:
    """Return the ways of TLS, in order, that libpq would try without the files of a home that cannot be read.

    asyncpg fails there; libpq ignores such files. Empty if the DSN or the environment names files, or asks for a check
    of the server's certificate.
    """
    mode = address.get("sslmode") or os.environ.get("PGSSLMODE") or "prefer"
    named = any(address.get(setting) or os.environ.get(f"PG{setting.upper()}") for setting in _TLS_FILES)
    if named or mode not in {"allow", "prefer", "require"} or not any(map(_trouble_at_home, _TLS_FILES.values())):
        return ()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["postgresql"])
    ways: Mapping[str, Sequence[ssl.SSLContext | bool]] = {"allow": (False, context), "prefer": (context, False)}
    return ways.get(mode, (context,))


def _trouble_at_home(name: str) -> str | None:
    home = _home()
    return None if home is None else _trouble(f"{home}/.postgresql/{name}", *_ABSENT)


def _tls_files(address: Address) -> Iterator[str]:
    """Yield a sentence about each file for TLS that asyncpg cannot read."""
    for setting, usual in _TLS_FILES.items():
        if path := address.get(setting) or os.environ.get(f"PG{setting.upper()}"):
            if trouble := _trouble(path):
                yield f"asyncpg cannot read the file {setting}={path}: {trouble}"
        elif trouble := _trouble_at_home(usual):
            yield f"asyncpg cannot read {_home()}/.postgresql/{usual}: {trouble}; {_HOME}"


def _password_file(address: Address) -> str | None:
    """Return the reason why asyncpg has no password, if none is given and the password file cannot be read."""
    if address.get("password") or os.environ.get("PGPASSWORD"):
        return None
    if path := address.get("passfile") or os.environ.get("PGPASSFILE"):
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
    """Return the reason why a file cannot be read. It is not opened, because that may block."""
    try:
        Path(path).stat()
    except passed_over:
        return None
    except OSError as error:
        return error.strerror
    except ValueError as error:
        return str(error)
    return None if os.access(path, os.R_OK) else os.strerror(errno.EACCES)
