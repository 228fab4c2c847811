"""One dedicated connection, which is always closed. Closing it releases the lock."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

import asyncpg

from pgratchet.core.errors import AbsentError, ConnectionLostError, PgratchetError, ServerError, UsageError
from pgratchet.core.masking import FramesForgotten, Hidden, hide
from pgratchet.postgres.link import own
from pgratchet.postgres.link.budget import Budget, backoff
from pgratchet.postgres.link.cancelling import undisturbed
from pgratchet.postgres.link.dsn import Address, Whereabouts
from pgratchet.postgres.link.factories import made_by, refuse_uncallable
from pgratchet.postgres.link.lending import Lendable
from pgratchet.postgres.link.overhearing import OverhearingLoop
from pgratchet.postgres.link.refusals import refusal, ways_without_home
from pgratchet.postgres.link.sql import EQ, identifier, literal
from pgratchet.postgres.link.unreachable import absence, cure, is_answer, may_pass

Connection: TypeAlias = own.Connection
Connect = Callable[[], Awaitable[Connection]]

CLOSE_SECONDS = 5.0
"""How long closing may take, waiting for a cancelled statement included."""

CLOSE_HURRIEDLY = 1.0
"""The same for a start that a signal has ended while it waited: there is no statement to stop."""

SILENT_SECONDS = 2.0
"""A server that has not answered a connection by then is told."""

LEAST_CONNECTING = 1.0
"""Seconds that connecting may take whatever is left of a budget."""

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 5, 3, 3
VANISHED_AFTER = KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * KEEPALIVE_PROBES
"""Seconds after which either side gives up a peer that vanished without a word, idle or with data under way."""

PARAMETERS = {
    # The server looks for its client twice a second, also in mid-statement: a killed runner's lock is free.
    "client_connection_check_interval": "500ms",
    "tcp_keepalives_idle": str(KEEPALIVE_IDLE),
    "tcp_keepalives_interval": str(KEEPALIVE_INTERVAL),
    "tcp_keepalives_count": str(KEEPALIVE_PROBES),
    # Keepalives are silent while data waits for its acknowledgement, such as a notice in mid-statement.
    "tcp_user_timeout": f"{VANISHED_AFTER}s",
    # Reads of the history never queue for long behind a migration that has locked it: a blocked statement
    # keeps a snapshot, and CREATE INDEX CONCURRENTLY would wait for that. Steps set their own limits.
    "lock_timeout": "1s",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}

LATER_PARAMETERS = {"transaction_timeout": "0"}
"""Not among the startup parameters: servers before PostgreSQL 17 refuse a connection that names one of these."""

APPLICATION = "pgratchet"
"""The name of a session whose DSN gives it no name."""

AT_WORK = f"{APPLICATION} since "
"""The name of a session that works on a step begins with this; the time at which its turn began and the step follow."""

_UNCONNECTED = (asyncpg.PostgresError, asyncpg.TargetServerAttributeNotMatched, OSError, TimeoutError)
_REFUSED = (
    asyncpg.InvalidParameterValueError,
    asyncpg.CantChangeRuntimeParamError,
    asyncpg.InsufficientPrivilegeError,
)
"""The errors of a server that knows a parameter and refuses it: for its platform, its engine or the role."""

_UNFIT_PARAMETER = (asyncpg.UndefinedObjectError, asyncpg.ProtocolViolationError, *_REFUSED)
_LOSSES = {
    "client_connection_check_interval": "the lock of a killed runner stays until its statement ends",
    "tcp": "the lock of a runner whose machine has vanished stays for as long as the server's own settings say",
    "lock_timeout": "a read of the history, or a migration, may wait for a lock as long as the server's setting says",
    "application_name": "other sessions do not see what this one is",
}
_LOSS = "the server's own setting may end a long migration"
_refused = WeakKeyDictionary[Connection, frozenset[str]]()
_outliving = WeakSet[Connection]()
_log = logging.getLogger("pgratchet")
_told = set[str]()


class NotPrimaryError(ServerError):
    """The server is a standby, or read-only; during a failover that may pass."""


class OutdatedSessionError(Exception):
    """A migration may have changed what only a new session has, and others are to follow it."""


def connector(address: Address, owner: str | None = None, *, sessions: bool = False) -> Connect:
    """Return a factory of connections to `address` that are ready for a run, as the role `owner` if one is given.

    Where a pooler answers they are left as they are: a parameter would stay with a session that the pooler hands to
    other clients. `sessions` promises that it does not. The errors of a connection name database, server and user, and
    no password.
    """
    name = "" if address.get("application_name") else APPLICATION
    # As a startup parameter it is also the role that RESET ROLE in a script returns to.
    parameters = PARAMETERS | ({"application_name": name} if name else {}) | ({"role": owner} if owner else {})
    opened = partial(_opened, address.url, address.timeout)

    async def connect() -> Connection:
        for sentence in address.ignored:
            if sentence not in _told:
                _told.add(sentence)
                _log.warning("%s: %s", address.source, sentence)
        try:
            try:
                return await _open(address, opened, parameters)
            except _UNFIT_PARAMETER:
                # A pooler passes on few startup parameters, and not every server takes them all. Nor is it told the
                # name, which would stay with its session for clients that have none.
                pass
            connection = await _open(address, opened, {})
            await _prepare(connection, owner, name, sessions=sessions)
        except (ServerError, UsageError) as error:
            raise type(error)(f"{error} ({address.place})") from error.__cause__
        except (*_UNCONNECTED, asyncio.CancelledError) as error:
            error.add_note(address.place)
            raise
        return connection

    return connect


async def _open(
    address: Address, opened: Callable[..., Awaitable[Connection]], parameters: Mapping[str, str]
) -> Connection:
    try:
        return await opened(parameters)
    except Exception as error:
        message = refusal(address, error)
        ways = ways_without_home(address) if isinstance(error, PermissionError) else ()
        if message is None:
            raise
    failed: Exception = UsageError(message)
    for way in ways:
        # The next way is for a server without TLS, or for one that accepts nothing else.
        try:
            return await opened(parameters, ssl=way)
        except (ConnectionError, asyncpg.InvalidAuthorizationSpecificationError) as error:
            failed = error
    raise failed


async def _opened(
    url: Hidden[str],
    limit: float | None,
    parameters: Mapping[str, str],
    **more: Any,
) -> Connection:
    # The stubs do not know that None is no limit.
    more |= {"timeout": limit, "server_settings": dict(parameters)}
    try:
        connection = await _made(url, more)
    except asyncpg.ConnectionDoesNotExistError as error:
        # The server has ended the session, and may have said why in an encoding that asyncpg does not read.
        loop = OverhearingLoop()
        try:
            connection = await _made(url, more | {"loop": loop})
        except asyncpg.ConnectionDoesNotExistError:
            raise loop.error() or error from None
        finally:
            loop.stop()
    _refit(connection)
    return connection


async def _made(url: Hidden[str], how: dict[str, Any]) -> Connection:
    with FramesForgotten():
        return await asyncpg.connect(url.reveal(), statement_cache_size=0, connection_class=Lendable, **how)


def prepared(connect: Connect | Hidden[Connect], owner: str | None = None, *, sessions: bool = False) -> Connect:
    """Return a factory that gives the connections of an application's factory our parameters, and the role `owner`.

    `sessions` is as in `connector`. Raises UsageError for a value that is no factory; the factory that is returned
    raises it for a result that is no new connection.
    """
    factory = hide(connect)
    del connect
    refuse_uncallable(factory)
    known: WeakSet[Connection] = WeakSet()

    async def connect_and_prepare() -> Connection:
        connection: Connection = await made_by(factory, known)
        _refit(connection)
        await _prepare(connection, owner, "", sessions=sessions)
        return connection

    return connect_and_prepare


def _refit(connection: Connection) -> None:
    """Have a new connection forget its password, and notice a peer that has vanished.

    asyncpg keeps the password without need, and some tools show the values of variables. It leaves the socket as it
    is, so that the kernel does not look for the peer of an idle connection.
    """
    # There is no public way to any of these.
    params: Any = getattr(connection, "_params", None)
    protocol: Any = getattr(connection, "_protocol", None)
    transport: asyncio.Transport | None = getattr(connection, "_transport", None)
    if hasattr(params, "password"):
        connection._params = params._replace(password=None)  # type: ignore[attr-defined]  # noqa: SLF001 - as above
    if hasattr(protocol, "password"):
        protocol.password = None
    plug = transport.get_extra_info("socket") if transport is not None else None
    if plug is None or plug.family not in (socket.AF_INET, socket.AF_INET6):
        return
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": KEEPALIVE_IDLE,
        "TCP_KEEPINTVL": KEEPALIVE_INTERVAL,
        "TCP_KEEPCNT": KEEPALIVE_PROBES,
        "TCP_USER_TIMEOUT": VANISHED_AFTER * 1000,
    }
    for option, value in options.items():
        if (number := getattr(socket, option, None)) is not None:
            plug.setsockopt(socket.IPPROTO_TCP, number, value)


def whereabouts(connection: Connection) -> Whereabouts:
    """Return host, port and database of a connection; of several hosts, the one that it was made to."""
    # There is no public way to these, too: the transport knows no names.
    address: Any = getattr(connection, "_addr", None)
    database: str | None = getattr(getattr(connection, "_params", None), "database", None)
    if isinstance(address, str):
        folder, _, number = address.rpartition("/.s.PGSQL.")
        return folder, int(number), database
    return *(address or (None, None)), database


async def set_parameters(
    connection: Connection, *, local: bool = False, name: str = "", here: str = ""
) -> frozenset[str]:
    """Give a session, or this transaction only, our parameters and a name, and return those that the server refuses.

    A refused one is left out from then on, and the lost guarantee is logged once. `here` is a condition in SQL.
    """
    left = frozenset(PARAMETERS | LATER_PARAMETERS | ({"application_name": name} if name else {}))
    try:
        await own.execute(connection, parameters_sql(refused(connection), local=local, name=name) + here)
    except _REFUSED:
        for parameter in sorted(left - refused(connection)):
            try:
                await own.execute(connection, parameters_sql(left - {parameter}, local=local, name=name) + here)
            except _REFUSED as error:
                _refused[connection] = refused(connection) | {parameter}
                _tell_loss(parameter, error)
    return refused(connection)


def refused(connection: Connection) -> frozenset[str]:
    """Return the names of the parameters that the server of a session has refused."""
    return _refused.get(connection, frozenset())


def _tell_loss(parameter: str, error: Exception) -> None:
    if parameter not in _told:
        _told.add(parameter)
        loss = _LOSSES.get(parameter) or _LOSSES.get(parameter.partition("_")[0], _LOSS)
        _log.warning("the server refuses the setting %s: %s; %s", parameter, describe(error), loss)


def parameters_sql(refused: Collection[str] = (), *, local: bool = False, name: str = "") -> str:
    """Return the statement that gives a session, or its transaction, those of our parameters that its server knows.

    Also a name if one is given, but none of the `refused`.
    """
    all_of_them = PARAMETERS | LATER_PARAMETERS | ({"application_name": name} if name else {})
    wanted = ", ".join(
        f"({literal(parameter)}, {literal(value)})"
        for parameter, value in all_of_them.items()
        if parameter not in refused
    )
    if not wanted:
        return "SELECT"
    return (
        f"SELECT pg_catalog.set_config(s.name, wanted.value, {str(local).lower()}) FROM pg_catalog.pg_settings s "
        f"JOIN (VALUES {wanted}) AS wanted(name, value) ON wanted.name {EQ} s.name"
    )


def _unusable(owner: str | None, error: Exception) -> AbsentError | None:
    """Return the error that there is no such role, or that the login may not become it; None for any other reason."""
    no_role = isinstance(error, asyncpg.InvalidParameterValueError)
    no_right = isinstance(error, asyncpg.InsufficientPrivilegeError) and not absence(error)
    if owner is None or not (no_role or no_right):
        return None
    create = f"CREATE ROLE {identifier(owner)}, and " if no_role else ""
    grant = f"GRANT {identifier(owner)} TO the one that logs in"
    return AbsentError(f"cannot work as the role {owner}: {describe(error)}; {create}{grant}")


async def _prepare(connection: Connection, owner: str | None, name: str, *, sessions: bool) -> None:
    """Give a session our parameters, its role and its name, unless a pooler lets another server process answer."""
    here = "" if sessions else f" WHERE pg_catalog.pg_backend_pid() {EQ} {connection.get_server_pid()}"
    try:
        await set_parameters(connection, name=name, here=here)
        if owner is not None:
            await own.execute(connection, f"SELECT pg_catalog.set_config('role', {literal(owner)}, false){here}")
    except BaseException as error:
        connection.terminate()
        if isinstance(error, Exception) and (unusable := _unusable(owner, error)):
            raise unusable from error
        raise


@asynccontextmanager
async def open_session(connect: Connect, budget: Budget | None = None) -> AsyncIterator[Connection]:
    """Yield a new connection, which is closed at the end of the block, also by cancellation.

    A server that is absent, starting or full is tried again while the budget lasts; once only if there is no budget.
    Raises ServerError if there is no connection, ConnectionLostError if it is lost inside the block, ServerError for an
    error of the server's inside the block that no code has handled: NotPrimaryError if the server takes no changes,
    AbsentError for a role that does not exist.
    """
    connection = await _connected(connect, budget)
    try:
        yield connection
    except Exception as error:
        # Not by the class of the error: a script can raise any, and open files and connections of its own.
        if connection.is_closed() and not isinstance(error, PgratchetError):
            raise lost(error) from error
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            raise NotPrimaryError(describe(error)) from error
        if isinstance(error, asyncpg.UndefinedObjectError):
            raise AbsentError(f"{describe(error)}; create the role, or correct its name") from error
        if isinstance(error, asyncpg.PostgresError):
            raise ServerError(describe(error)) from error
        raise
    finally:
        # Otherwise a cancellation would reach the close too, before it has stopped the statement on the server.
        hurries = budget is not None and budget.watch.hurries()
        await undisturbed(_close(connection, CLOSE_HURRIEDLY if hurries else CLOSE_SECONDS))


def lost(error: BaseException) -> ConnectionLostError:
    """Return the error that a session is lost, given the error of its use, with the last words of the server."""
    return ConnectionLostError(f"the connection to the server was lost: {describe(last_words(error) or error)}")


def last_words(error: BaseException | None) -> asyncpg.PostgresError | None:
    """Return the error by which a server has ended a session; None if the session ended without one.

    asyncpg has an error of its own for that, which has the server's as its cause.
    """
    while error is not None:
        severity = getattr(error, "severity_en", None) or getattr(error, "severity", None)
        if isinstance(error, asyncpg.PostgresError) and severity in {"FATAL", "PANIC"}:
            return error
        error = error.__cause__ or error.__context__
    return None


def outlives(connection: Connection) -> None:
    """Note that the session of a connection goes on after its end: closing it gives back locks and settings."""
    _outliving.add(connection)


async def _close(connection: Connection, seconds: float) -> None:
    try:
        # Bounded: a network that is gone must not keep a process alive.
        async with asyncio.timeout(seconds):
            if connection in _outliving and not connection.is_closed():
                await own.execute(connection, "ROLLBACK;SELECT pg_catalog.pg_advisory_unlock_all();RESET ALL")
                # Its server would not answer the farewell of a client.
                connection.terminate()
            await connection.close()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        _log.debug("closing the connection: %s", describe(error))
    finally:
        connection.terminate()


async def _connected(connect: Connect, budget: Budget | None) -> Connection:
    if budget is None:
        try:
            return await connect()
        except _UNCONNECTED as error:
            raise _failure(error) from error
    began = time.monotonic()
    for attempt in count():
        left = budget.remaining
        tell = partial(budget.tell, "the server has not answered yet", SILENT_SECONDS)
        silent = asyncio.get_running_loop().call_later(SILENT_SECONDS, tell)
        try:
            # Even with an empty budget: a server that is there takes less.
            with budget.waiting():
                async with asyncio.timeout(None if left is None else max(left, LEAST_CONNECTING)) as limit:
                    connection = await connect()
                budget.answered()
                if attempt:
                    _log.info("connected after %.1f s", time.monotonic() - began)
                return connection
        except asyncpg.TargetServerAttributeNotMatched as error:
            raise NotPrimaryError(_cannot_connect(error)) from error
        except (asyncpg.PostgresError, OSError, TimeoutError) as error:
            if limit.expired():
                # The cancellation that it is made of has the place.
                reason = f"cannot connect: the server does not answer{_notes(error.__cause__)}"
            else:
                reason = _cannot_connect(error)
                if not may_pass(error):
                    raise _failure(error) from error
                if is_answer(error):
                    budget.answered()
        finally:
            silent.cancel()
        budget.tell(f"{reason}; trying again")
        await budget.pause(*backoff(attempt), reason)
    raise AssertionError("count() has no end")


def _failure(error: BaseException) -> ServerError:
    return (AbsentError if absence(error) else ServerError)(_cannot_connect(error))


def _cannot_connect(error: BaseException) -> str:
    return f"cannot connect: {describe(error)}{_notes(error)}{cure(error)}"


def _notes(error: BaseException | None) -> str:
    return "".join(f" ({note})" for note in getattr(error, "__notes__", ()))


def describe(error: BaseException) -> str:
    """Return an error's text with its SQLSTATE, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    code = getattr(error, "sqlstate", None)
    return f"{text} ({code})" if code else text
