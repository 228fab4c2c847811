import asyncio
import gc
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest

from pgratchet import BudgetExceededError, ConnectionLostError, Migrator, ServerError, UsageError
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.link import own
from pgratchet.postgres.link.dsn import address_of
from pgratchet.postgres.link.session import PARAMETERS, VANISHED_AFTER, _told, connector, open_session, prepared
from pgratchet.postgres.link.sql import Table
from tests.faults.localised import refused_in_latin1
from tests.faults.refusing import READY, between, refusing
from tests.faults.refusing import error as error_message
from tests.support import Connection, Write, abandoning, ask, column, connect, deserted, exists, sessions, states, tell

pytestmark = [pytest.mark.anyio, pytest.mark.every_major]

SETTING = "SELECT setting || COALESCE(unit, '') FROM pg_settings WHERE name = $1"
SHOWN = {
    "client_connection_check_interval": "500ms",
    "tcp_keepalives_idle": "5s",
    "tcp_user_timeout": "14000ms",
    "lock_timeout": "1000ms",
    "idle_session_timeout": "0ms",
}


UNITS = {"client_connection_check_interval": "ms", "tcp_keepalives_idle": "s", "idle_session_timeout": "ms"}

POOLERS_NOT_YET = (
    "the database system is starting up",
    "sorry, too many clients already",
    'too many connections for role "x"',
    "pgbouncer cannot connect to server",
    "server login has been failing, try again later (server_login_retry)",
    "server login has been failing, cached error: connect failed (server_login_retry)",
    "server login has been failing, cached error: the database system is shutting down (server_login_retry)",
    "server login has been failing, cached error: das Datenbanksystem startet gerade (server_login_retry)",
    "no more connections allowed (max_client_conn)",
    "client connections exceeded (max_db_client_connections)",
    "client_login_timeout (server down)",
    "query_wait_timeout",
    "pooler is shutting down",
)
"""As PgBouncer has it, from 1.16 to 1.25, each as a protocol violation."""


class TestASession:
    async def test_a_session_has_settings_that_free_the_lock_of_a_dead_runner(self, dsn: str) -> None:
        async with open_session(connector(address_of(dsn))) as connection:
            for name, value in SHOWN.items():
                assert await connection.fetchval(SETTING, name) == value
            await connection.execute("SET lock_timeout = '1h'; RESET ALL")
            assert await connection.fetchval("SHOW lock_timeout") == "1s"
            assert await connection.fetchval("SHOW application_name") == "pgratchet"

    async def test_a_factorys_session_gets_the_same_settings(self, dsn: str, write: Write) -> None:
        async with open_session(prepared(partial(connect, dsn))) as connection:
            assert await connection.fetchval("SHOW client_connection_check_interval") == "500ms"
        look = "CREATE TABLE {} AS SELECT current_setting('client_connection_check_interval') AS v; RESET ALL;"
        await Migrator(
            connect=partial(connect, dsn), migrations=write({f"00{n}_a.sql": look.format(f"t{n}") for n in (1, 2)})
        ).up()
        assert await column(dsn, "SELECT v FROM t1 UNION ALL SELECT v FROM t2") == ["500ms", "500ms"]
        await deserted(dsn)

    @pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
    async def test_a_session_opens_for_every_spelling_of_a_dsn(self, dsn: str, scheme: str) -> None:
        async with open_session(connector(address_of(f"{scheme}://{dsn.partition('://')[2]}"))) as connection:
            assert await connection.fetchval("SELECT 1") == 1

    async def test_a_session_keeps_the_application_name_of_the_dsn(self, dsn: str) -> None:
        async with open_session(connector(address_of(f"{dsn}?application_name=billing"))) as connection:
            assert await connection.fetchval("SHOW application_name") == "billing"

    async def test_a_session_has_keepalives_in_its_socket(self, dsn: str) -> None:
        async with open_session(connector(address_of(dsn))) as connection:
            transport: Any = connection._transport  # type: ignore[attr-defined]  # no public way
            plug = transport.get_extra_info("socket")
            assert plug.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            if (option := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:
                assert plug.getsockopt(socket.IPPROTO_TCP, option) == VANISHED_AFTER * 1000

    async def test_a_session_is_closed_whatever_happens_inside(self, dsn: str) -> None:
        for error in (KeyError("x"), asyncio.CancelledError(), KeyboardInterrupt()):
            with pytest.raises(type(error)):
                async with open_session(connector(address_of(dsn))):
                    raise error
        await deserted(dsn, 2)

    async def test_a_session_that_ends_inside_says_so(self, dsn: str) -> None:
        async def lose() -> None:
            async with open_session(connector(address_of(dsn))) as connection:
                pid = await connection.fetchval("SELECT pg_backend_pid()")
                await tell(dsn, f"SELECT pg_terminate_backend({pid})")
                await connection.fetchval("SELECT 1")

        with pytest.raises(ConnectionLostError):
            await lose()

    async def test_a_session_does_not_take_every_error_for_its_end(self, dsn: str) -> None:
        for error in (OSError("disk"), TimeoutError("slow"), asyncpg.InterfaceError("misuse")):
            with pytest.raises(type(error)):
                async with open_session(connector(address_of(dsn))):
                    raise error


class TestAServerThatIsNotThere:
    @pytest.fixture
    def nowhere(self) -> str:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        return f"postgresql://me:geheim@127.0.0.1:{port}/x"

    async def test_a_missing_server_is_an_error_at_once_for_verbs_that_do_not_wait(
        self, nowhere: str, write: Write
    ) -> None:
        migrator = Migrator(nowhere, write({"001_a.sql": "SELECT 1;"}))
        for verb in (migrator.check, migrator.status, migrator.plan):
            with anyio.fail_after(5), pytest.raises(ServerError) as caught:
                await verb()
            assert "geheim" not in str(caught.value)

    async def test_a_run_waits_for_a_missing_server_while_the_budget_lasts(
        self, nowhere: str, write: Write, caplog: pytest.LogCaptureFixture
    ) -> None:
        migrator = Migrator(nowhere, write({"001_a.sql": "SELECT 1;"}), budget=0.4)
        for verb in (migrator.up, migrator.wait, migrator.down, migrator.rehearse):
            with anyio.fail_after(5), pytest.raises(BudgetExceededError) as caught:
                await verb()
            assert "geheim" not in str(caught.value)
        assert "geheim" not in caplog.text

    async def test_a_run_finds_a_missing_server_when_it_comes_up(
        self, dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        attempts = 0
        not_yet = (
            asyncpg.CannotConnectNowError("not yet"),
            asyncpg.TooManyConnectionsError("not yet"),
            *map(asyncpg.ProtocolViolationError, POOLERS_NOT_YET),
        )

        async def connect() -> Connection:
            nonlocal attempts
            attempts += 1
            if attempts <= len(not_yet):
                raise not_yet[attempts - 1]
            return await asyncpg.connect(dsn, statement_cache_size=0)

        monkeypatch.setattr("pgratchet.postgres.link.session.backoff", lambda _: (0.0, 0.01))
        with anyio.fail_after(10):
            await Migrator(connect=connect, migrations=write({"001_a.sql": "SELECT 1;"})).up()
        assert attempts == len(not_yet) + 1
        assert await states(dsn) == {"1": "applied"}

    async def test_a_run_gives_up_at_once_where_waiting_is_no_cure(self, dsn: str, write: Write) -> None:
        missing = Migrator(dsn + "_missing", write({"001_a.sql": "SELECT 1;"}))
        with anyio.fail_after(5), pytest.raises(ServerError, match="3D000"):
            await missing.up()

    @pytest.mark.parametrize(
        ("more", "word"),
        [
            ("sslmode=require", "rejected SSL upgrade.*sslmode=prefer"),
            ("sslmode=verify-full&sslrootcert=/no/root.pem", "sslrootcert=/no/root.pem"),
            ("sslmode=require&sslcert=/no/client.pem", "sslcert=/no/client.pem"),
        ],
    )
    async def test_a_run_gives_up_at_once_where_the_server_has_no_tls(
        self, dsn: str, write: Write, more: str, word: str
    ) -> None:
        if await ask(dsn, "SHOW ssl") == "on" and "/no/" not in more:
            pytest.skip("the server has TLS")
        migrator = Migrator(f"{dsn.partition('?')[0]}?{more}", write({"001_a.sql": "SELECT 1;"}))
        for verb in (migrator.up, migrator.wait, migrator.status):
            with anyio.fail_after(5), pytest.raises((ServerError, UsageError), match=word):
                await verb()

    async def test_a_run_gives_up_at_once_where_a_factory_misses_a_file(self, write: Write) -> None:
        async def connect() -> Connection:
            password = Path("/no/password").read_text()  # noqa: ASYNC240 - it does not come to that
            return await asyncpg.connect(password=password)

        with anyio.fail_after(5), pytest.raises(ServerError, match="/no/password"):
            await Migrator(connect=connect, migrations=write({"001_a.sql": "SELECT 1;"})).up()

    async def test_a_run_waits_for_a_server_whose_socket_is_missing(self, write: Write, tmp_path: Path) -> None:
        migrator = Migrator(f"postgresql://x@/x?host={tmp_path}", write({"001_a.sql": "SELECT 1;"}), budget=0.4)
        with anyio.fail_after(5), pytest.raises(BudgetExceededError):
            await migrator.up()

    @pytest.mark.parametrize("words", ["no such database: x", 'password authentication failed for user "x"'])
    async def test_a_run_gives_up_at_once_where_a_pooler_says_that_a_name_is_wrong(
        self, write: Write, words: str
    ) -> None:
        for said in (words, f"server login has been failing, cached error: {words} (server_login_retry)"):

            async def connect(said: str = said) -> Connection:
                raise asyncpg.ProtocolViolationError(said)

            with anyio.fail_after(5), pytest.raises(ServerError, match="08P01"):
                await Migrator(connect=connect, migrations=write({"001_a.sql": "SELECT 1;"})).up()

    async def test_a_server_that_accepts_and_never_answers_uses_up_the_budget(self, write: Write) -> None:
        async with deaf() as address:
            migrator = Migrator(f"postgresql://x@{address}/x", write({"001_a.sql": ""}), budget=0.5)
            with anyio.fail_after(10), pytest.raises(BudgetExceededError):
                await migrator.up()


@asynccontextmanager
async def deaf() -> AsyncIterator[str]:
    """Yield the address of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


BAD = [
    "mysql://me:geheim@host/x",
    "host=localhost password=geheim",
    "postgresql:/me:geheim@host/x",
    "postgresql://me:geheim@host:port/x",
    "postgresql://me:geheim@[::1/x",
    "",
]


@pytest.mark.parametrize("bad", BAD)
async def test_a_dsn_that_cannot_be_read_is_refused_without_being_shown(bad: str) -> None:
    with pytest.raises(UsageError) as caught:
        await Migrator(bad, "nowhere").up()
    assert "geheim" not in str(caught.value)
    assert "geheim" not in repr(Migrator("postgresql://me:geheim@host/x"))


async def test_a_server_without_some_of_our_settings_gets_the_others(
    dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARAMETERS, "setting_of_a_later_release", "1")
    look = "CREATE TABLE seen AS SELECT current_setting('client_connection_check_interval') AS v;"
    await Migrator(dsn, write({"001_a.sql": look})).up()
    assert await column(dsn, "SELECT v FROM seen") == ["500ms"]
    assert await exists(dsn, "seen")


FILES = {
    "001_a.sql": "CREATE TABLE a AS SELECT name, setting FROM pg_settings;",
    "002_b.py": "async def up(connection): await connection.execute('CREATE TABLE b ()')\n",
    "003_c.sql": "-- pgratchet: no-transaction\nCREATE INDEX CONCURRENTLY ON a (name);\nVACUUM a;",
    "004_d.sql": "CREATE TABLE d ();",
}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("client_connection_check_interval", "22023"),
        ("client_connection_check_interval", "55P02"),
        ("client_connection_check_interval", "42501"),
        ("tcp_user_timeout", "22023"),
        ("lock_timeout", "42501"),
        ("statement_timeout", "55P02"),
        ("application_name", "42501"),
    ],
)
@pytest.mark.parametrize("by_factory", [False, True], ids=["a DSN", "a factory"])
async def test_a_server_that_refuses_one_of_our_settings_gets_the_others(  # noqa: PLR0913 - fixtures and cases
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, name: str, code: str, *, by_factory: bool
) -> None:
    _told.clear()
    async with refusing(dsn, name, code) as refused:
        how: Any = {"connect": partial(asyncpg.connect, refused)} if by_factory else {"dsn": refused}
        with caplog.at_level(logging.WARNING, "pgratchet"):
            assert len(await Migrator(migrations=write(FILES), **how).up()) == 4
            await Migrator(migrations=write({"005_e.sql": "CREATE TABLE e ();"}), lock="transaction", **how).up()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith(f"the server refuses the setting {name}: refused ({code}); ")
    expected = {"client_connection_check_interval": "500", "tcp_keepalives_idle": "5", "lock_timeout": "5000"}
    expected.pop(name, None)
    others = {"client_connection_check_interval", "tcp_keepalives_idle", "idle_session_timeout"} - {name}
    for other in others:
        assert f"{await ask(dsn, 'SELECT setting FROM a WHERE name = $1', other)}{UNITS[other]}" == SHOWN[other]


@pytest.mark.parametrize("code", ["3D000", "28000", "28P01", "42501"])
@pytest.mark.parametrize("mode", ["", "?sslmode=disable", "?sslmode=prefer"])
async def test_a_refusal_in_an_encoding_of_the_server_ends_the_run_at_once(write: Write, code: str, mode: str) -> None:
    async with refused_in_latin1(code) as (dsn, sessions):
        migrator = Migrator(dsn + mode, write({"001_a.sql": "SELECT 1;"}))
        for work in (migrator.up, migrator.wait, migrator.status):
            with anyio.fail_after(5), pytest.raises(ServerError, match=rf"nein.*\({code}\)"):
                await work()
    assert len(sessions) <= 3 * 6


@pytest.mark.parametrize("code", ["57P03", "53300"])
async def test_a_server_that_says_not_yet_in_an_encoding_of_its_own_is_tried_again(write: Write, code: str) -> None:
    async with refused_in_latin1(code) as (dsn, _):
        with anyio.fail_after(10), pytest.raises(BudgetExceededError, match=code):
            await Migrator(dsn, write({"001_a.sql": "SELECT 1;"}), budget=1).up()


async def test_a_start_with_nothing_pending_is_one_connection(dsn: str, write: Write) -> None:
    opened = 0

    async def connect() -> Connection:
        nonlocal opened
        opened += 1
        return await asyncpg.connect(dsn, statement_cache_size=0)

    migrator = Migrator(connect=connect, migrations=write({"001_a.sql": "SELECT 1;"}))
    await migrator.up()
    assert opened == 1
    await migrator.up()
    assert opened == 2
    assert await sessions(dsn) == []


async def test_a_lost_session_is_told_in_the_log(dsn: str, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    code = """async def up(connection):
    if await connection.fetchval("SELECT nextval('tries')") < 2:
        connection.terminate()
    await connection.fetchval("SELECT 1")
"""
    await tell(dsn, "CREATE SEQUENCE tries")
    with caplog.at_level(logging.WARNING, "pgratchet"), anyio.fail_after(10):
        await Migrator(dsn, write({"001_a.py": code})).up()
    assert any("connecting again" in record.getMessage() for record in caplog.records)
    assert await states(dsn) == {"1": "applied"}


ENDED = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"


def hear_the_end(session: Connection) -> None:
    """Have a session hear the server's last word while it waits for nothing."""
    protocol: Any = session._protocol  # type: ignore[attr-defined]  # asyncpg has no public door for it
    protocol.data_received(b"E" + (len(ENDED) + 4).to_bytes(4, "big") + ENDED)


REQUESTS = {
    "a query": lambda session: own.ask(session, "SELECT 1 AS one"),
    "a message": lambda session: own.execute(session, "SELECT 1"),
    "a read of the history": lambda session: History(Table("public", "schema_migrations")).read(session),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
async def test_a_session_that_the_server_ends_between_two_requests_counts_as_lost(
    dsn: str, request_: Callable[[Connection], Awaitable[object]]
) -> None:
    async def ask_behind_the_end() -> None:
        async with open_session(connector(address_of(dsn))) as session:
            hear_the_end(session)
            await request_(session)

    with abandoning():
        with pytest.raises(ConnectionLostError):
            await ask_behind_the_end()
        async with open_session(connector(address_of(dsn))) as session:
            await request_(session)


async def test_a_session_that_ends_between_two_requests_leaves_no_exception_that_nobody_takes(
    dsn: str, write: Write
) -> None:
    def answer(message: bytes) -> bytes | None:
        """Answer a query, and say the last words of the session; they are read before the connection ends."""
        last_words = error_message("ERROR", "57P01")
        return b"C\0\0\0\x0dSELECT 0\0" + READY + last_words if b"/* the last request */" in message else None

    untaken: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: untaken.append(context))
    try:
        async with between(dsn, answer) as there:
            connection = await connect(there)
            await connection.execute("/* the last request */")
            with pytest.raises(asyncpg.InternalClientError, match="another operation"):
                await own.ask(connection, "SELECT 1 AS one")
            assert connection.is_closed()
        await Migrator(dsn, write({"001_a.sql": "CREATE TABLE a (n int)"})).up()
        gc.collect()
    finally:
        asyncio.get_running_loop().set_exception_handler(None)
    assert untaken == []


async def test_rows_that_the_driver_loses_are_an_error(dsn: str) -> None:
    await tell(
        dsn, "CREATE FUNCTION speak() RETURNS int LANGUAGE plpgsql AS $$BEGIN RAISE NOTICE 'a row'; RETURN 1; END$$"
    )
    spoken = "pg_catalog.query_to_xml('SELECT public.speak()', true, false, '') IS NULL"
    async with open_session(connector(address_of(dsn))) as connection:
        copy = "SELECT;COPY (SELECT {} AS n FROM pg_catalog.generate_series(1, 300)) " + own.AS_CSV
        with pytest.raises(own.UnreadableError, match="asyncpg has lost rows of it; leave client_min_messages"):
            await own.copied(connection, copy.format(spoken))
        assert len((await own.copied(connection, copy.format("1")))["n"]) == 300
