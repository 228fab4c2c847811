"""A DSN, read as libpq reads it and written as asyncpg takes it. No message repeats a part of a password."""

import configparser
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self, TypeAlias
from urllib.parse import quote, unquote, urlsplit

from pgratchet.core.arguments import unseen
from pgratchet.core.errors import UsageError
from pgratchet.core.masking import Hidden, hide

Dsn: TypeAlias = str | Hidden[str]
Whereabouts: TypeAlias = tuple[str | None, int | None, str | None]
"""Host, port and database, as far as they are known."""

_SCHEMES = {"postgresql", "postgres", "postgresql+asyncpg", "postgres+asyncpg"}
_DRIVERS = {"psycopg", "psycopg2", "psycopg2cffi", "psycopg_async", "pg8000", "aiopg", "pygresql", "pypostgresql"}
_OTHERS = {"mysql", "mariadb", "sqlite", "mssql", "sqlserver", "oracle", "cockroachdb", "redshift", "mongodb", "jdbc"}
FORM = (
    "write postgresql://user:password@host:port/database, with %40, %2F, %3F and %23 in place of @, /, ? and # in a "
    "password"
)
_KEYWORDS = re.compile(r"\s*(host|hostaddr|port|dbname|user|password|service|sslmode)\s*=", re.IGNORECASE)

_MOST_PORT = 65535
CONNECT_SECONDS = 60
"""Seconds that connecting to one host may take where the DSN does not say: asyncpg's own limit."""

_SSL_MODES = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}

_VARIABLES = {"options": "PGOPTIONS", "application_name": "PGAPPNAME", "connect_timeout": "PGCONNECT_TIMEOUT"}
"""The variables of libpq that asyncpg does not read, by the parameter that each stands for."""

_NO_ASYNCPG = "asyncpg has nothing like it"
_OWN_KEEPALIVES = "a run sets its own, to notice a dead server after 14 s"
_ONE_SESSION = "it is a setting of a pool or of SQLAlchemy, and a run has one session of its own"
_IGNORED = {
    **dict.fromkeys(
        ["keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"],
        _OWN_KEEPALIVES,
    ),
    "channel_binding": f"{_NO_ASYNCPG}; sslmode=verify-full makes sure that the server is the right one",
    "client_encoding": "asyncpg reads and writes nothing but UTF-8",
    "gssencmode": _NO_ASYNCPG,
    "load_balance_hosts": "asyncpg tries the hosts in the order of the DSN",
    **dict.fromkeys(
        [
            "gssdelegation",
            "max_protocol_version",
            "min_protocol_version",
            "oauth_client_id",
            "oauth_client_secret",
            "oauth_issuer",
            "oauth_scope",
            "require_auth",
            "requirepeer",
            "requiressl",
            "scram_client_key",
            "scram_server_key",
            "sslcertmode",
            "sslcompression",
            "sslkeylogfile",
            "sslsni",
        ],
        _NO_ASYNCPG,
    ),
    **dict.fromkeys(
        [
            "async_fallback",
            "command_timeout",
            "connection_limit",
            "max_cacheable_statement_size",
            "max_cached_statement_lifetime",
            "pgbouncer",
            "pool_timeout",
            "prepared_statement_cache_size",
            "prepared_statement_name_func",
            "socket_timeout",
            "statement_cache_size",
            "supa",
        ],
        _ONE_SESSION,
    ),
    "schema": "the history's schema is a part of its table's name, and a migration finds its tables by search_path",
}
"""The parameters that have no effect on a run, by their names, with the reason."""

_NOTHING_LOST = {
    ("channel_binding", "disable"),
    ("channel_binding", "prefer"),
    ("client_encoding", "auto"),
    ("client_encoding", "utf-8"),
    ("client_encoding", "utf8"),
    ("gssencmode", "disable"),
    ("gssencmode", "prefer"),
    ("keepalives", "1"),
    ("load_balance_hosts", "disable"),
    ("sslcompression", "0"),
    ("sslsni", "1"),
}
"""Values of these parameters that change nothing."""

_NO = {"0", "false", "off", "no"}


class Address(NamedTuple):
    """The parameters of a connection: libpq's, by its names, and settings of the server.

    `source` is where they were given: an argument, a flag, a variable. `ignored` are sentences about parameters that
    have no effect.
    """

    parameters: Hidden[Mapping[str, str]]
    source: str
    ignored: Sequence[str] = ()

    def get(self, name: str) -> str:
        """Return a parameter, empty where it is not given."""
        return self.parameters.reveal().get(name, "")

    def of_database(self, name: str) -> Self:
        """Return the address of another database on the same server."""
        return self._replace(parameters=Hidden({**self.parameters.reveal(), "dbname": name}))

    def only(self, names: Collection[str]) -> Self:
        """Return the address without all other parameters."""
        kept = {name: value for name, value in self.parameters.reveal().items() if name in names}
        return self._replace(parameters=Hidden(kept))

    @property
    def url(self) -> Hidden[str]:
        """The DSN that means the same to asyncpg, which passes unknown parameters to the server as its settings."""
        return Hidden(_url(dict(self.parameters.reveal())))

    @property
    def timeout(self) -> float | None:
        """The seconds that connecting to one host may take; None for no limit, which 0 and less means to libpq."""
        seconds = int(self.get("connect_timeout") or CONNECT_SECONDS)
        return max(2, seconds) if seconds > 0 else None

    @property
    def whereabouts(self) -> Whereabouts:
        """The host, the port and the database; no host and no port if there are several, or the default socket's."""
        host = self.get("host") or os.environ.get("PGHOST", "")
        (_, port), *others = self._servers
        known = host and port.isdecimal() and not others
        return host if known else None, int(port) if known else None, self._database or None

    @property
    def _user(self) -> str:
        return self.get("user") or os.environ.get("PGUSER", "")

    @property
    def _database(self) -> str:
        return self.get("dbname") or os.environ.get("PGDATABASE") or self._user

    @property
    def _servers(self) -> Sequence[tuple[str, str]]:
        hosts = (self.get("host") or os.environ.get("PGHOST") or "the local socket").split(",")
        ports = (self.get("port") or os.environ.get("PGPORT") or "5432").split(",")
        return tuple(zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=False))

    @property
    def place(self) -> str:
        """Database, server and user, with the environment's defaults, and the source."""
        servers = ", ".join(f"{host}:{port}" for host, port in self._servers)
        user = f"user {self._user}" if self._user else "the user of this process"
        database = f"database {self._database}" if self._database else "the database of the user's name"
        return f"{database} at {servers}, {user}, by {self.source}"


class SourcedDsn(str):
    """A DSN with the place where it was given, such as DATABASE_URL, for the errors of its connections."""

    __slots__ = ("source",)
    source: str

    def __new__(cls, dsn: str, source: str) -> Self:
        """Return the DSN with its source."""
        given = super().__new__(cls, dsn)
        given.source = source
        return given

    def __repr__(self) -> str:
        return "***"


def address_of(dsn: Dsn, what: str = "the DSN") -> Address:
    """Return the address that a DSN means, with the service that it or PGSERVICE names; the DSN wins, as with libpq.

    `what` is the caller's name of the DSN, unless the DSN itself has a source. Raises UsageError for a text that is no
    PostgreSQL DSN, for a service that is not there, and for a parameter that asyncpg cannot honour and that changes
    too much to be ignored.
    """
    given = hide(dsn)
    del dsn
    source = getattr(given.reveal(), "source", what)
    # A caller without a type checker may pass anything.
    if not isinstance(given.reveal(), str):
        raise UsageError(f"{source} must be a string, and is of the type {type(given.reveal()).__name__}")
    url = Hidden(_trimmed(given.reveal()))
    for why in _troubles(url):
        raise UsageError(f"{source} {why}")
    parameters = Hidden(_parameters(url.reveal()))
    variables = {name: os.environ[variable] for name, variable in _VARIABLES.items() if os.environ.get(variable)}
    parameters = Hidden(variables | _service(parameters, source).reveal() | parameters.reveal())
    for why in _refusals(parameters):
        raise UsageError(f"{source} has {why}")
    return _honoured(parameters, source)


def _trimmed(text: str) -> str:
    """Return a text without the blanks and the byte order mark around it, which no URL begins or ends with."""
    # Not left to urlsplit: it drops newlines anywhere, and leaves a blank at the end of the database's name.
    return text.strip().removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}").strip()


def _troubles(url: Hidden[str]) -> Iterator[str]:
    """Yield the reasons why a text is no DSN; the later ones hold only where there are no earlier ones."""
    if not url:
        yield f"is empty; {FORM}"
    if "%00" in url.reveal():
        yield "has a NUL (%00) in it, which PostgreSQL does not take"
    if (found := unseen(url.reveal())) is not None:
        yield f"has {found}; remove it, or write it as %XX if it belongs to the password"
    scheme = url.reveal().partition(":")[0]
    system, _, driver = scheme.lower().partition("+")
    if system in _OTHERS:
        yield f"begins with {system}:, and pgratchet is for PostgreSQL only; {FORM}"
    if system in {"postgresql", "postgres"} and driver in _DRIVERS:
        yield f"names the driver {driver}, and pgratchet connects by asyncpg: begin it with postgresql://"
    if _KEYWORDS.match(url.reveal()):
        yield f"cannot be parsed: it is a list of keywords; {FORM}"
    if scheme not in _SCHEMES or not url.reveal().startswith("://", len(scheme)):
        yield f"cannot be parsed; {FORM}"
    yield from _unescaped(url)


def _unescaped(url: Hidden[str]) -> Iterator[str]:
    """Yield the characters of a password, most likely, that have to be escaped in a URL."""
    if "#" in url.reveal():
        yield f"has a # in it: write %23 in a password; {FORM}"
    try:
        parts = Hidden(urlsplit(url.reveal()))
    except ValueError:
        yield f"has a bracket that is not around an IPv6 address: write %5B and %5D in a password; {FORM}"
    # Else a piece of the password would be taken for a host or a database, and shown as one.
    if parts.reveal().netloc.count("@") > 1:
        yield f"has more than one @: write %40 in a password; {FORM}"
    begun = "@" in parts.reveal().query and not _are_ports(_hosts(parts.reveal().netloc)[1])
    if "@" in parts.reveal().path or begun:
        found = "/" if parts.reveal().path else "?"
        yield f"has a {found} before an @: write %{ord(found):X} in a password, and %40 for any other @; {FORM}"
    if not all("=" in pair for pair in parts.reveal().query.split("&") if pair):
        yield "has a parameter without a value: write name=value, and %26 for an & in a value"


def _hosts(netloc: str) -> tuple[str, str]:
    """Return the hosts and the ports of a URL, as lists with commas."""
    names, ports = [], []
    for host in netloc.rpartition("@")[2].split(","):
        name, colon, port = host.rpartition(":")
        if not colon or port.endswith("]"):
            name, port = host, ""
        names.append(unquote(name))
        ports.append(unquote(port))
    return ",".join(names), ",".join(ports) if any(ports) else ""


def _are_ports(ports: str) -> bool:
    return all(
        not port or (port.isascii() and port.isdecimal() and 0 < int(port) <= _MOST_PORT) for port in ports.split(",")
    )


def _parameters(url: str) -> dict[str, str]:
    """Return the parameters of a URL, by libpq's names. The later of two values wins, as in libpq."""
    parts = urlsplit(url)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    hosts, ports = _hosts(parts.netloc)
    found = {
        "user": unquote(user),
        "password": unquote(password),
        "host": hosts,
        "port": ports,
        "dbname": unquote(parts.path.removeprefix("/")),
    }
    for pair in parts.query.split("&"):
        # Not by parse_qs(): there a plus sign is a blank, which libpq does not know.
        name, _, value = pair.partition("=")
        found["dbname" if name == "database" else unquote(name)] = unquote(value)
    # asyncpg takes an IPv6 address among several in brackets only, libpq without.
    found["host"] = ",".join(host.removeprefix("[").removesuffix("]") for host in found["host"].split(","))
    return {name: value for name, value in found.items() if name and value}


def _service(parameters: Hidden[dict[str, str]], what: str) -> Hidden[dict[str, str]]:
    """Return the parameters of the service that the others, or PGSERVICE, name; none where they name none.

    Read here, because asyncpg passes over PGSERVICE, over services that are not there and over unknown parameters,
    and would connect somewhere else.
    """
    name = parameters.reveal().pop("service", "") or os.environ.get("PGSERVICE", "")
    file = parameters.reveal().pop("servicefile", "") or os.environ.get("PGSERVICEFILE", "")
    if not name:
        return Hidden({})
    paths = [Path(file)] if file else [*_home_file(".pg_service.conf")]
    if folder := os.environ.get("PGSYSCONFDIR"):
        paths.append(Path(folder, "pg_service.conf"))
    for path in paths:
        # Raw: libpq knows no interpolation.
        parser = Hidden(configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#",)))
        if why := _unread(parser, path):
            raise UsageError(f"{what} names the service '{name}', and {path} cannot be read: {why}")
        if parser.reveal().has_section(name):
            found = {"dbname" if key == "database" else key: value for key, value in parser.reveal().items(name)}
            return Hidden({key: value for key, value in found.items() if value})
    known = " and ".join(map(str, paths)) or "a file: there is no home directory"
    raise UsageError(f"{what} names the service '{name}', which is not in {known}; PGSERVICEFILE names another file")


def _unread(parser: Hidden[configparser.RawConfigParser], path: Path) -> str:
    """Read a file, which need not be there, and return why it cannot be read."""
    try:
        parser.reveal().read_string(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return str(error.strerror)
    except UnicodeDecodeError:
        return "it is not UTF-8"
    except configparser.Error:
        # Its message quotes the line, in which a password may be.
        return "it has a line that is neither [a name] nor name=value, or says something twice"
    return ""


def _home_file(name: str) -> Iterator[Path]:
    try:
        yield Path.home() / name
    except (RuntimeError, KeyError):
        return


def _refusals(parameters: Hidden[dict[str, str]]) -> Iterator[str]:
    """Yield the parameters that a run must not ignore, and cannot honour."""
    get = Hidden(parameters.reveal().get)
    if found := unseen(get.reveal()("application_name", "")):
        yield f"an application_name with {found}; remove it"
    if get.reveal()("gssencmode") == "require":
        yield "gssencmode=require, and asyncpg does not encrypt by GSSAPI; sslmode=require encrypts by TLS"
    if get.reveal()("replication", "no") not in _NO:
        yield "replication, which makes a session that cannot run migrations; leave it out"
    for name in ("ssl", "sslmode"):
        if get.reveal()(name, "require") not in _SSL_MODES:
            yield f"an {name} that is none of {', '.join(sorted(_SSL_MODES))}; write sslmode=require, for example"
    if get.reveal()("sslnegotiation", "postgres") not in {"postgres", "direct"}:
        yield "an sslnegotiation that is neither postgres nor direct"
    mode = get.reveal()("sslmode") or get.reveal()("ssl") or os.environ.get("PGSSLMODE")
    if get.reveal()("sslnegotiation") == "direct" and mode not in {"require", "verify-ca", "verify-full"}:
        yield "sslnegotiation=direct, which needs sslmode=require, verify-ca or verify-full; add one of them"
    if re.fullmatch(r"-?[0-9]+", get.reveal()("connect_timeout", "0")) is None:
        yield "a connect_timeout that is no whole number of seconds"
    if not _are_ports(get.reveal()("port", "")):
        yield f"a port that there cannot be; {FORM}"


def _honoured(parameters: Hidden[dict[str, str]], source: str) -> Address:
    """Return the parameters that have an effect, by the names that asyncpg knows, and sentences about the others."""
    kept, ignored = dict(parameters.reveal()), []
    kept.pop("replication", None)
    # SQLAlchemy's name for it.
    if mode := kept.pop("ssl", None):
        kept.setdefault("sslmode", mode)
    if name := kept.pop("fallback_application_name", None):
        kept.setdefault("application_name", name)
    if (address := kept.pop("hostaddr", None)) and kept.setdefault("host", address) != address:
        ignored.append("hostaddr is ignored: asyncpg looks the host up by its name")
    unheard = [(name, kept.pop(name).lower()) for name in list(kept) if name in _IGNORED]
    ignored += [f"{name} is ignored: {_IGNORED[name]}" for name, value in unheard if (name, value) not in _NOTHING_LOST]
    return Address(Hidden(kept), source, tuple(ignored))


def _url(parameters: dict[str, str]) -> str:
    user, password = parameters.pop("user", ""), parameters.pop("password", "")
    host, port = parameters.pop("host", ""), parameters.pop("port", "")
    parameters.pop("connect_timeout", None)
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "") if user else ""
    if password and not user:
        parameters["password"] = password
    server = ""
    if host and not host.startswith("/") and "," not in host + port:
        server = (f"[{host}]" if ":" in host else quote(host, safe="")) + (f":{port}" if port else "")
    else:
        # A list, or a socket: asyncpg reads these more reliably as parameters.
        hosts = [f"[{each}]" if ":" in each and not each.startswith("/") else each for each in host.split(",")]
        parameters |= {"host": ",".join(each or "localhost" for each in hosts)} if host else {}
        parameters |= {"port": ",".join(each or "5432" for each in port.split(","))} if port else {}
    path = f"/{quote(name, safe='')}" if (name := parameters.pop("dbname", "")) else ""
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in parameters.items())
    return f"postgresql://{login}{'@' if login else ''}{server}{path}{'?' if query else ''}{query}"
