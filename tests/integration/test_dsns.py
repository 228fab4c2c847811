"""A DSN means what libpq takes it for; what asyncpg cannot honour is named, and no other database is ever used."""

import asyncio
import json
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import asyncpg
import pytest
from typer.testing import CliRunner

from pgratchet import BudgetExceededError, Destination, Migrator, ServerError, UsageError, embedded
from pgratchet.cli.program import app
from pgratchet.core.masking import Hidden
from pgratchet.postgres.link import session
from pgratchet.postgres.link.dsn import Address, address_of
from pgratchet.postgres.link.session import connector, open_session
from tests.support import PASSWORD, Connection, Write, ask, free_port, leave, states

pytestmark = pytest.mark.anyio

ONE = {"001_a.sql": "CREATE TABLE a AS SELECT current_database()::text AS d, current_setting('application_name') AS n;"}


class Server:
    """The parts of the DSN of a test's database."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        self.host, self.port = unquote(parts.hostname or ""), parts.port
        self.user, self.password = parts.username or "", parts.password or ""
        self.login = f"{self.user}:{self.password}@" if self.password else f"{self.user}@"
        self.database = parts.path[1:]
        self.query = dict(pair.split("=", 1) for pair in parts.query.split("&") if pair)

    def dsn(self, text: str) -> str:
        """Return a DSN whose placeholders are these parts."""
        return text.format(**vars(self))


@pytest.fixture
def there(dsn: str) -> Server:
    return Server(dsn)


@pytest.fixture(autouse=True)
def _silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each test hear of ignored parameters, and no variable of this process be a part of a DSN."""
    monkeypatch.setattr(session, "_told", set())
    for name in ("PGSERVICE", "PGSERVICEFILE", "PGDATABASE", "PGHOST", "PGPORT", "PGUSER", "PGOPTIONS", "PGAPPNAME"):
        monkeypatch.delenv(name, raising=False)


async def database_of(text: str) -> str:
    async with open_session(connector(address_of(text))) as connection:
        return str(await connection.fetchval("SELECT current_database()"))


PLACES = [
    "postgresql://{login}{host}:{port}/{database}",
    "postgres://{login}{host}:{port}/{database}",
    "postgresql+asyncpg://{login}{host}:{port}/{database}",
    "postgresql://{login}{host}:{port}?dbname={database}",
    "postgresql://{login}{host}:{port}/?dbname={database}",
    "postgresql://{login}{host}:{port}/postgres?dbname={database}",
    "postgresql://{login}{host}:{port}/?database={database}",
    "postgresql://{login}{host}:{port}/postgres?database={database}",
    "postgresql://{login}{host}/{database}?port={port}",
    "postgresql://{login}/{database}?host={host}&port={port}",
    "postgresql://{login}nowhere.invalid:1/{database}?host={host}&port={port}",
    "postgresql:///?dbname={database}&host={host}&port={port}&user={user}&password={password}",
    "postgresql://{login}/{database}?hostaddr={host}&port={port}",
    "postgresql://{login}{host}:1,{host}:{port}/{database}",
    "postgresql://{login}/{database}?host={host},{host}&port=1,{port}",
    "postgresql://{login}{host}:{port}/{database}?",
    "postgresql://{login}{host}:{port}/{database}?application_name=&options=",
]


@pytest.mark.parametrize("form", PLACES)
async def test_a_dsn_leads_to_the_database_that_libpq_would_take(there: Server, form: str) -> None:
    assert await database_of(there.dsn(form)) == there.database


@pytest.mark.parametrize("form", PLACES)
def test_a_report_says_first_where_the_command_was_connected(there: Server, write: Write, form: str) -> None:
    for arguments in (["up"], ["status"], ["check"], ["wait"], ["plan"], ["down"]):
        command = [*arguments, "--dir", str(write(ONE | {"001_a.down.sql": "DROP TABLE a;"})), "--dsn", there.dsn(form)]
        said, document = CliRunner().invoke(app, command), CliRunner().invoke(app, [*command, "--json"]).stdout
        place = f"database {there.database} at {there.host}:{there.port}, public.schema_migrations"
        assert said.stdout.splitlines()[0] == place
        fields = {name: json.loads(document)[name] for name in ("host", "port", "database", "table")}
        assert fields == {
            "host": there.host,
            "port": there.port,
            "database": there.database,
            "table": "public.schema_migrations",
        }


def test_an_error_says_first_where_the_command_was_connected(there: Server, write: Write) -> None:
    several = there.dsn("postgresql://{login}{host}:1,{host}:{port}/{database}")
    for files, command, code in (({}, "check", 3), ({"001_a.sql": "SELECT 1/0;"}, "up", 1)):
        arguments = [command, "--dir", str(write(ONE | files)), "--table", "app.history", "--dsn", several, "--json"]
        ended = CliRunner().invoke(app, arguments)
        assert ended.exit_code == code
        said = [line for line in ended.stderr.splitlines() if " INFO " not in line]
        assert said[0] == f"database {there.database} at {there.host}:{there.port}, app.history"
        document = json.loads(ended.stdout)
        assert (document["ok"], document["host"], document["port"]) == (False, there.host, there.port)
        assert (document["database"], document["table"]) == (there.database, "app.history")


async def test_a_migrator_knows_where_its_last_session_led(there: Server, write: Write) -> None:
    several = there.dsn("postgresql://{login}{host}:1,{host}:{port}/{database}")
    connected = Destination(there.host, there.port, there.database, "app.history")

    async def connect() -> Connection:
        return await asyncpg.connect(several, statement_cache_size=0)

    for migrator, before in (
        (Migrator(several, write(ONE), table="app.history"), connected._replace(host=None, port=None)),
        (
            Migrator(connect=connect, migrations=write(ONE), table="app.history"),
            Destination(None, None, None, "app.history"),
        ),
    ):
        assert migrator.destination == before
        await migrator.status()
        assert migrator.destination == connected


async def test_a_session_of_direct_dsn_is_where_a_run_was_connected(there: Server, write: Write) -> None:
    one = there.dsn("postgresql://{login}{host}:{port}/postgres")
    migrator = Migrator(one, write(ONE), direct_dsn=there.dsn("postgresql://{login}{host}:{port}/{database}"))
    assert migrator.destination.database == "postgres"
    await migrator.up()
    assert migrator.destination.database == there.database


async def test_a_socket_is_named_by_its_directory(tmp_path: Path, write: Write) -> None:
    with embedded.server(folder=tmp_path) as server:
        migrator = Migrator(server.dsn, write(ONE))
        before = migrator.destination
        await migrator.up()
        assert migrator.destination == before
        folder, database = await ask(server.dsn, "SHOW unix_socket_directories"), before.database
        await leave(server.dsn)
    assert str(before) == f"database {database} at {folder}:{before.port}, public.schema_migrations"


def test_an_ipv6_address_is_told_from_its_port() -> None:
    place = Migrator("postgresql://me@[::1]:6000/app", "m").destination
    assert str(place) == "database app at [::1]:6000, public.schema_migrations"


async def test_a_socket_s_directory_is_a_host_in_each_place(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / ".s.PGSQL.5432"))
        listener.listen()
        for form in ("postgresql://a@{}/x", "postgresql://a@/x?host={}"):
            address = address_of(form.format(quote(str(tmp_path), safe="")))
            assert address.get("host") == str(tmp_path)
            with pytest.raises(ServerError, match=f"at {tmp_path}:5432"):
                await refused_by(listener, address)


async def refused_by(listener: socket.socket, address: Address) -> None:
    """Connect to a server that hangs up."""

    def hang_up() -> None:
        # The second connection is to hear why the first one was ended.
        for _ in range(2):
            listener.accept()[0].close()

    task = asyncio.create_task(asyncio.to_thread(hang_up))
    try:
        async with open_session(connector(address)):
            raise AssertionError
    finally:
        await task


class TestAService:
    @pytest.fixture
    def file(self, there: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        path = tmp_path / "services"
        path.write_text(
            there.dsn(
                "# a comment\n[other]\nhost=nowhere.invalid\n\n"
                "[it]\nhost={host}\nport={port}\ndbname={database}\nuser={user}\npassword={password}\n"
            )
        )
        monkeypatch.setenv("PGSERVICEFILE", str(path))
        return path

    @pytest.mark.usefixtures("file")
    @pytest.mark.parametrize("form", ["postgresql://?service=it", "postgresql:///?service=it", "postgresql://"])
    async def test_a_service_names_server_and_database(
        self, there: Server, monkeypatch: pytest.MonkeyPatch, form: str
    ) -> None:
        if "service" not in form:
            monkeypatch.setenv("PGSERVICE", "it")
        assert await database_of(form) == there.database

    @pytest.mark.usefixtures("file")
    async def test_the_dsn_wins_over_its_service(self) -> None:
        assert await database_of("postgresql:///postgres?service=it") == "postgres"
        assert await database_of("postgresql://?service=it&dbname=postgres") == "postgres"

    @pytest.mark.usefixtures("file")
    async def test_a_service_wins_over_the_environment(self, there: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGDATABASE", "nowhere")
        assert await database_of("postgresql://?service=it") == there.database

    async def test_a_service_has_every_parameter_that_a_dsn_may_have(self, file: Path) -> None:
        with file.open("a") as services:
            services.write("options=-c search_path=elsewhere\napplication_name=from a file\n")
        async with open_session(connector(address_of("postgresql://?service=it"))) as connection:
            assert await connection.fetchval("SHOW search_path") == "elsewhere"
            assert await connection.fetchval("SHOW application_name") == "from a file"

    def test_a_percent_sign_in_a_service_is_nothing_special(self, file: Path) -> None:
        file.write_text("[it]\npassword=100%s\n")
        assert address_of("postgresql://?service=it").get("password") == "100%s"

    def test_a_service_may_call_its_database_so(self, file: Path) -> None:
        file.write_text("[it]\ndatabase=elsewhere\n")
        assert address_of("postgresql://?service=it").get("dbname") == "elsewhere"
        assert address_of("postgresql:///mine?service=it").get("dbname") == "mine"

    @pytest.mark.parametrize(
        "text",
        ["", "[other]\n", "[it\n", "nonsense\n[it]\n", "[it]\nnonsense\n", "[it]\nport=1\nport=2\n", b"\xff[it]\n"],
    )
    def test_a_service_that_is_not_there_is_an_error_and_no_other_database(self, file: Path, text: str | bytes) -> None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UsageError, match=r"dsn names the service 'it'.*services"):
            Migrator("postgresql://?service=it")

    def test_a_service_file_that_is_not_there_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "nothing"))
        with pytest.raises(UsageError, match=r"'it', which is not in .*nothing"):
            Migrator("postgresql://?service=it")

    def test_the_home_s_file_and_the_system_s_are_looked_into(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PGSERVICEFILE", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path / "etc"))
        for folder, name in (("home/.pg_service.conf", "mine"), ("etc/pg_service.conf", "everybodys")):
            (tmp_path / folder).parent.mkdir()
            (tmp_path / folder).write_text(f"[{name}]\ndbname={name}\n")
            assert address_of(f"postgresql://?service={name}").get("dbname") == name


IGNORED = {
    "channel_binding": "require",
    "gssdelegation": "1",
    "hostaddr": "127.0.0.9",
    "keepalives": "0",
    "keepalives_count": "3",
    "keepalives_idle": "10",
    "keepalives_interval": "10",
    "load_balance_hosts": "random",
    "require_auth": "scram-sha-256",
    "sslcertmode": "disable",
    "sslsni": "0",
    "tcp_user_timeout": "10000",
    "client_encoding": "latin1",
    "statement_cache_size": "0",
    "prepared_statement_cache_size": "0",
    "command_timeout": "60",
    "pgbouncer": "true",
    "connection_limit": "1",
    "pool_timeout": "10",
    "schema": "public",
    "supa": "base-pooler.x",
}


@pytest.mark.parametrize("name", sorted(IGNORED))
async def test_a_parameter_of_another_client_is_ignored_once_with_its_name_and_the_reason(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    migrator = Migrator(f"{dsn}?{name}={IGNORED[name]}", write(ONE), direct_dsn=f"{dsn}?{name}={IGNORED[name]}")
    await migrator.up()
    await migrator.status()

    assert await states(dsn) == {"1": "applied"}
    (said,) = [record.getMessage() for record in caplog.records if "is ignored" in record.getMessage()]
    assert f"dsn: {name} is ignored: " in said


@pytest.mark.parametrize(
    "query",
    ["channel_binding=prefer", "gssencmode=disable", "gssencmode=prefer", "keepalives=1", "client_encoding=UTF8"],
)
async def test_a_parameter_that_asks_for_what_happens_anyway_is_not_worth_a_word(
    dsn: str, write: Write, caplog: pytest.LogCaptureFixture, query: str
) -> None:
    await Migrator(f"{dsn}?{query}", write(ONE)).up()

    assert [record for record in caplog.records if "ignored" in record.getMessage()] == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("gssencmode=require", "GSSAPI"),
        ("replication=database", "replication"),
        ("ssl=true", "write sslmode=require"),
        ("sslmode=true", "write sslmode=require"),
        ("sslnegotiation=tls", "neither postgres nor direct"),
        ("sslnegotiation=direct", "needs sslmode=require"),
        ("sslnegotiation=direct&sslmode=prefer", "needs sslmode=require"),
        ("connect_timeout=soon", "whole number of seconds"),
        ("connect_timeout=1.5", "whole number of seconds"),
        ("port=x", "port that there cannot be"),
        ("port=70000", "port that there cannot be"),
        ("bare", "name=value"),
    ],
)
def test_a_parameter_that_cannot_be_honoured_and_changes_too_much_is_refused(query: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Migrator(f"postgresql://a:secret@localhost/x?{query}")


@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-full"])
def test_sqlalchemy_s_name_for_tls_means_the_same(mode: str) -> None:
    assert address_of(f"postgresql+asyncpg://a@localhost/x?ssl={mode}").get("sslmode") == mode


def test_sslmode_wins_over_sqlalchemy_s_name_for_tls() -> None:
    for query in ("ssl=prefer&sslmode=require", "sslmode=require&ssl=prefer"):
        assert address_of(f"postgresql://a@localhost/x?{query}").get("sslmode") == "require"


async def test_a_server_without_tls_is_refused_where_the_dsn_asks_for_tls(there: Server) -> None:
    for query in ("ssl=require", "sslmode=require"):
        with pytest.raises(ServerError, match="rejected SSL upgrade"):
            await database_of(there.dsn("postgresql://{login}{host}:{port}/{database}?") + query)


async def test_the_connection_s_name_is_the_dsn_s_or_its_fallback_or_ours(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def name(text: str) -> str:
        async with open_session(connector(address_of(text))) as connection:
            return str(await connection.fetchval("SHOW application_name"))

    assert await name(dsn) == "pgratchet"
    assert await name(f"{dsn}?fallback_application_name=later") == "later"
    assert await name(f"{dsn}?fallback_application_name=later&application_name=first") == "first"
    monkeypatch.setenv("PGAPPNAME", "by variable")
    assert await name(f"{dsn}?fallback_application_name=later") == "by variable"


async def test_options_reach_the_server(dsn: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"001_a.sql": "CREATE SCHEMA elsewhere;", "002_b.sql": "CREATE TABLE here ();"}
    await Migrator(f"{dsn}?options=-c%20search_path%3Delsewhere", write(files)).up()
    assert await ask(dsn, "SELECT to_regclass('elsewhere.here') IS NOT NULL")

    monkeypatch.setenv("PGOPTIONS", "-c search_path=by_variable")
    async with open_session(connector(address_of(dsn))) as connection:
        assert await connection.fetchval("SHOW search_path") == "by_variable"


async def test_a_plus_sign_and_an_escaped_character_in_a_parameter_are_read_as_libpq_reads_them(dsn: str) -> None:
    async with open_session(connector(address_of(f"{dsn}?application_name=a+b%20c%26d"))) as connection:
        assert await connection.fetchval("SHOW application_name") == "a+b c&d"


async def test_a_setting_that_nobody_knows_is_refused_with_its_name(dsn: str) -> None:
    with pytest.raises(ServerError, match="unheard_of"):
        await database_of(f"{dsn}?unheard_of=1")


async def test_connecting_takes_no_longer_than_the_dsn_allows() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dsn = f"postgresql://a@127.0.0.1:{listener.getsockname()[1]}/x?sslmode=disable&connect_timeout=2"
        with pytest.raises(ServerError, match="cannot connect"):
            async with asyncio.timeout(30):
                await database_of(dsn)
    assert [address_of(f"{dsn[:-1]}{seconds}").timeout for seconds in (0, -1, 1, 2, 5)] == [None, None, 2, 2, 5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mysql://a:{}@h/d", "begins with mysql:"),
        ("sqlite:///{}", "begins with sqlite:"),
        ("jdbc:postgresql://h/d?password={}", "begins with jdbc:"),
        ("postgresql+psycopg://a:{}@h/d", "names the driver psycopg"),
        ("postgresql+psycopg2://a:{}@h/d", "names the driver psycopg2"),
        ("postgres+pg8000://a:{}@h/d", "names the driver pg8000"),
        ("postgresql+other://a:{}@h/d", "cannot be parsed"),
        ("host=h dbname=d password={}", "list of keywords"),
        ("postgresql://a:{}#x@h/d", "%23"),
        ("postgresql://a:{}/x@h/d", "%2F"),
        ("postgresql://a:{}@x@h/d", "%40"),
        ("postgresql://a:{}?x@h/d", "%3F"),
        ("postgresql://a:{}[x@h/d", "%5B"),
        ("postgresql://a:{}/?#@h/d", "%23"),
    ],
)
def test_the_reason_why_a_text_is_no_dsn_is_told_without_the_text(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Migrator(text.format(PASSWORD))

    assert words in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("character", [*"@/?#[]%:+ &=\\'\"", "é", "日"])
def test_every_character_may_stand_in_a_password_when_it_is_escaped(character: str) -> None:
    address = address_of(f"postgresql://a:{quote('x' + character, safe='')}@h/d?application_name=a%40b")

    assert address.get("password") == f"x{character}"
    assert address_of(address.url).parameters.reveal() == address.parameters.reveal()


def test_an_address_with_several_hosts_is_written_and_read_again() -> None:
    for text in (
        "postgresql://a:b@h1:1,h2:2/d?target_session_attrs=read-write",
        "postgresql://a@[::1]:1,h2/d",
        "postgresql://a@[::1]/d",
        "postgresql://?host=::1,/tmp&port=1,2&user=a&password=p",
        "postgresql://?password=p&dbname=d",
    ):
        address = address_of(text)
        again = address_of(address.url)
        assert again.get("host") == address.get("host")
        assert again.get("password") == address.get("password")
        assert again.get("port").split(",")[0] in {address.get("port").split(",")[0], "5432"}


class TestThePlaceInAnError:
    async def test_an_error_names_host_port_database_user_and_the_argument(self, write: Write) -> None:
        port = free_port()
        migrator = Migrator(f"postgresql://somebody:{PASSWORD}@127.0.0.1:{port}/shop", write(ONE))
        with pytest.raises(ServerError) as caught:
            await migrator.status()

        for word in ("database shop", f"127.0.0.1:{port}", "user somebody", "by dsn"):
            assert word in str(caught.value)
        assert PASSWORD not in str(caught.value)

    async def test_a_server_that_never_answers_is_named(self, write: Write) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            migrator = Migrator(f"postgresql://u@127.0.0.1:{port}/d?sslmode=disable", write(ONE), budget=0.1)
            with pytest.raises(BudgetExceededError, match=f"does not answer .database d at 127.0.0.1:{port}, user u"):
                await migrator.up()

    async def test_an_error_names_the_environment_s_part(self, monkeypatch: pytest.MonkeyPatch) -> None:
        port = free_port()
        for name, value in (("PGHOST", "127.0.0.1"), ("PGPORT", str(port)), ("PGUSER", "u"), ("PGDATABASE", "d")):
            monkeypatch.setenv(name, value)
        with pytest.raises(ServerError, match=f"database d at 127.0.0.1:{port}, user u"):
            await database_of("postgresql://")

    @pytest.mark.parametrize("given", ["--dsn", "PGRATCHET_DSN", "DATABASE_URL", "'dsn' under [tool.pgratchet]"])
    def test_the_command_line_says_where_the_dsn_was_given(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
    ) -> None:
        dsn = f"postgresql://somebody:{PASSWORD}@127.0.0.1:{free_port()}/shop"
        monkeypatch.chdir(tmp_path)
        for name in ("PGRATCHET_DSN", "DATABASE_URL"):
            monkeypatch.delenv(name, raising=False)
        if "tool" in given:
            (tmp_path / "pyproject.toml").write_text(f'[tool.pgratchet]\ndsn = "{dsn}"\n')
        (tmp_path / "sql").mkdir()
        flag = ["--dsn", dsn] if given == "--dsn" else []
        variables = {given: dsn} if given.isupper() else {}
        result = CliRunner(env=variables).invoke(app, ["status", "--dir", "sql", *flag])

        assert result.exit_code == 2
        assert f"by {given}" in result.stderr
        assert PASSWORD not in result.output

    async def test_a_refusal_of_the_server_names_the_place_too(self, there: Server) -> None:
        for change in ({"database": "nowhere"}, {"login": "nobody@"}):
            vars(there).update(change)
            with pytest.raises(ServerError, match=r"cannot connect: .* at .*, user .*, by the DSN"):
                await database_of(there.dsn("postgresql://{login}{host}:{port}/{database}"))

    def test_a_repr_of_an_address_shows_no_password(self) -> None:
        address = address_of(Hidden(f"postgresql://a:{PASSWORD}@h/d"))

        with suppress(AttributeError):
            assert PASSWORD not in repr(address)
        assert PASSWORD not in address.place
