"""A password is in nothing that is printed, logged, raised or sent by a tool that looks at errors."""

import asyncio
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import pytest

from pgratchet import Migrator, PgratchetError, ServerError, UsageError, Verdict, embedded, migrator
from pgratchet.cli import program, settings
from pgratchet.core.masking import Hidden, discreet
from pgratchet.postgres.link.dsn import SourcedDsn, address_of
from pgratchet.postgres.link.session import Connect, connector, open_session, prepared
from pgratchet.postgres.link.sql import Table
from pgratchet.testing import Databases, dumps, released
from tests.hostile import leaks
from tests.support import ask, connected, states, tell, until, without_tls

Verb = Callable[[Migrator], Awaitable[object]]

PASSWORD = "hunter2/s3cr3t @ho?me"  # noqa: S105 - nobody's
"""With all that a DSN has to have percent-encoded."""
ENCODED = quote(PASSWORD, safe="")
SECRETS = (PASSWORD, ENCODED, "hunter2", "s3cr3t")

BY_USER_INFO = f"postgresql://somebody:{ENCODED}@{{}}"
BY_QUERY = f"postgresql://somebody@{{}}?password={ENCODED}"
FORMS = (BY_USER_INFO, BY_QUERY)


def raised(work: Callable[[], object]) -> BaseException:
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - also an interrupt is looked into
        return error
    pytest.fail("nothing was raised")


def refuse_leaks(error: BaseException, output: str = "") -> None:
    assert leaks.found_in(error, SECRETS, but=__file__) == []
    leaks.without_frames_of(error, __file__)
    for tool in leaks.TOOLS:
        assert not leaks.shows(tool(error), SECRETS), tool.__name__
    assert not leaks.shows(output, SECRETS)


def run(work: Callable[[], Awaitable[object]]) -> object:
    hidden = Hidden(work)

    async def main() -> object:
        return await hidden.reveal()()

    return asyncio.run(main(), debug=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "001_a.sql").write_text("SELECT 1;")
    return tmp_path


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All that anybody logs, asyncio in its debug mode included."""
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, "asyncio"):
        yield caplog


def port_of_nobody() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Yield the address of a server that says the same to everybody, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    plug, _ = listener.accept()
                except OSError:
                    return
                with plug:
                    plug.recv(1000)
                    plug.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


VERBS: tuple[Verb, ...] = (Migrator.status, Migrator.up)


def use(verb: Verb, dsn: str, folder: Path) -> None:
    run(partial(verb, Migrator(dsn, folder, budget=0.3)))


class TestAConnectionThatFails:
    """Each way is gone through by a verb that tries once, and one that tries again."""

    @pytest.fixture(params=FORMS)
    def dsn_of(self, request: pytest.FixtureRequest) -> Callable[[str], str]:
        form: str = request.param
        return form.format

    def refuse_leaks_of(
        self, dsn: str, folder: Path, logged: pytest.LogCaptureFixture, kind: type[BaseException] = PgratchetError
    ) -> None:
        for verb in VERBS:
            error = raised(partial(use, verb, dsn, folder))
            assert isinstance(error, kind)
            refuse_leaks(error, logged.text)
        logged.clear()

    def test_a_connection_to_an_unknown_host_shows_no_password(
        self,
        dsn_of: Callable[[str], str],
        folder: Path,
        logged: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def unknown(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        self.refuse_leaks_of(dsn_of("nowhere.example/x"), folder, logged, ServerError)

    def test_a_connection_to_a_port_where_nobody_listens_shows_no_password(
        self, dsn_of: Callable[[str], str], folder: Path, logged: pytest.LogCaptureFixture
    ) -> None:
        self.refuse_leaks_of(dsn_of(f"127.0.0.1:{port_of_nobody()}/x"), folder, logged)
        self.refuse_leaks_of(dsn_of(f"127.0.0.1:{port_of_nobody()},[::1]:{port_of_nobody()}/x"), folder, logged)

    def test_a_connection_to_a_missing_socket_shows_no_password(
        self, folder: Path, logged: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        self.refuse_leaks_of(f"postgresql://somebody:{ENCODED}@/x?host={tmp_path}", folder, logged)

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"R\0\0\0\x08\0\0\0\x63",
            b"E\0\0\0\x1cSFATAL\0C53300\0Mfull\0\0",
            b"S",
        ],
    )
    def test_a_connection_to_a_server_that_is_not_postgresql_shows_no_password(
        self, dsn_of: Callable[[str], str], folder: Path, logged: pytest.LogCaptureFixture, answer: bytes
    ) -> None:
        with answering(answer) as address:
            self.refuse_leaks_of(dsn_of(f"{address}/x"), folder, logged)

    def test_a_connection_to_a_server_that_never_answers_shows_no_password(
        self, dsn_of: Callable[[str], str], folder: Path, logged: pytest.LogCaptureFixture
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            made = Migrator(without_tls(dsn_of(f"127.0.0.1:{listener.getsockname()[1]}/x")), folder, budget=0.1)
            refuse_leaks(raised(partial(run, made.up)), logged.text)

    def test_a_connection_that_is_cancelled_shows_no_password(
        self, dsn_of: Callable[[str], str], folder: Path, logged: pytest.LogCaptureFixture
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            made = Migrator(without_tls(dsn_of(f"127.0.0.1:{listener.getsockname()[1]}/x")), folder)

            async def cancelled(verb: Verb) -> None:
                task = asyncio.ensure_future(verb(made))
                plug, _ = await asyncio.get_running_loop().run_in_executor(None, listener.accept)
                with plug:
                    task.cancel()
                    await task

            for verb in VERBS:
                refuse_leaks(raised(partial(run, partial(cancelled, verb))), logged.text)

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("unforeseen"),
            KeyboardInterrupt(),
            TimeoutError(),
            asyncio.CancelledError(),
            ExceptionGroup("several", [OSError("one"), ValueError("two")]),
            asyncpg.InternalClientError("a defect"),
            asyncpg.TargetServerAttributeNotMatched("none is primary"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_any_exception_inside_asyncpg_shows_no_password(
        self,
        dsn_of: Callable[[str], str],
        folder: Path,
        logged: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
    ) -> None:
        async def fail(**given: object) -> None:
            assert leaks.shows(repr(given), SECRETS)
            try:
                raise OSError("its context")  # noqa: TRY301 - that it is the context is the point
            except OSError:
                raise error from LookupError("its cause")

        code = fail.__code__.replace(co_filename=asyncpg.__file__)
        monkeypatch.setattr(fail, "__code__", code)
        monkeypatch.setattr("asyncpg.connect_utils._connect_addr", fail)
        self.refuse_leaks_of(dsn_of("127.0.0.1/x"), folder, logged, BaseException)

    @pytest.mark.parametrize("more", ["sslmode=verify-full&sslrootcert=/no/root.pem", "sslmode=require&sslcert=/no/c"])
    def test_a_missing_file_for_tls_shows_no_password(
        self, folder: Path, logged: pytest.LogCaptureFixture, more: str
    ) -> None:
        self.refuse_leaks_of(f"{BY_USER_INFO.format('127.0.0.1/x')}?{more}", folder, logged, UsageError)

    @pytest.mark.parametrize(
        "place",
        [
            "a..b/x",
            "nowhere/x?sslmode=requir",
            "/x?port=a",
            "nowhere/x?target_session_attrs=x",
            "nowhere/x?sslmode=require&ssl_min_protocol_version=x",
            "nowhere/x?sslnegotiation=x",
            "nowhere/x?bare",
        ],
    )
    def test_a_dsn_that_cannot_be_honoured_shows_no_password(
        self, folder: Path, logged: pytest.LogCaptureFixture, place: str
    ) -> None:
        self.refuse_leaks_of(f"postgresql://somebody:{ENCODED}@{place}", folder, logged, UsageError)

    @pytest.mark.parametrize("line", [f"options=%{PASSWORD}", PASSWORD], ids=["interpolation", "no setting"])
    def test_a_connection_that_fails_by_a_service_file_shows_no_password(
        self,
        folder: Path,
        tmp_path: Path,
        logged: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        line: str,
    ) -> None:
        services = tmp_path / "services"
        services.write_text(f"[it]\nuser=somebody\npassword={PASSWORD}\nport={port_of_nobody()}\n{line}\n")
        monkeypatch.setenv("PGSERVICEFILE", str(services))
        self.refuse_leaks_of("postgresql://?service=it", folder, logged)

    @pytest.mark.parametrize("variable", ["PGPASSWORD", "PGPASSFILE", "passfile"])
    def test_a_connection_that_fails_shows_no_password_that_the_dsn_does_not_hold(
        self,
        folder: Path,
        tmp_path: Path,
        logged: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        variable: str,
    ) -> None:
        passfile = tmp_path / "passfile"
        passfile.write_text(f"*:*:*:*:{PASSWORD}\n")
        passfile.chmod(0o600)
        dsn = f"postgresql://somebody@127.0.0.1:{port_of_nobody()}/x"
        if variable == "passfile":
            dsn += f"?passfile={passfile}"
        else:
            monkeypatch.setenv(variable, PASSWORD if variable == "PGPASSWORD" else str(passfile))
        self.refuse_leaks_of(dsn, folder, logged)

    def test_a_callers_own_error_keeps_its_traceback(self, folder: Path) -> None:
        made = Migrator(BY_USER_INFO.format(f"127.0.0.1:{port_of_nobody()}/x"), folder)

        async def while_handling() -> None:
            try:
                raise LookupError("the caller's")  # noqa: TRY301 - that it is being handled is the point
            except LookupError:
                await made.status()

        error = raised(partial(run, while_handling))
        refuse_leaks(error)
        (callers,) = [each for each in leaks.chain(error) if isinstance(each, LookupError)]
        assert callers.__traceback__ is not None


@pytest.fixture(scope="module")
def guarded(memory: Path | None) -> Iterator[embedded.Server]:
    """A server that asks `somebody` for a password."""
    with embedded.server(tcp=True, folder=memory) as server:
        asyncio.run(tell(server.dsn, f"CREATE ROLE somebody LOGIN PASSWORD '{PASSWORD}'"))
        rules = server.data / "pg_hba.conf"
        rules.write_text("host all somebody all scram-sha-256\n" + rules.read_text())
        asyncio.run(tell(server.dsn, "SELECT pg_reload_conf()"))
        yield server


def address(server: embedded.Server, database: str = "postgres") -> str:
    return f"{urlsplit(server.dsn).netloc.rpartition('@')[2]}/{database}"


class TestAServerThatRefuses:
    @pytest.mark.parametrize(
        ("form", "database"),
        [
            ("postgresql://somebody:{wrong}@{server}", "postgres"),
            ("postgresql://somebody@{server}?password={wrong}", "postgres"),
            ("postgresql://somebody:{password}@{server}", "missing"),
            ("postgresql://somebody:{password}@{server}?sslmode=require", "postgres"),
            ("postgresql://somebody:{password}@{server}?options=-c%20nonsense=1", "postgres"),
            ("postgresql://somebody:{password}@{server}?nonsense=1", "postgres"),
            ("postgresql://somebody:{password}@{server}?target_session_attrs=standby", "postgres"),
        ],
    )
    def test_a_refusal_of_the_server_is_told_without_the_password(
        self, guarded: embedded.Server, folder: Path, logged: pytest.LogCaptureFixture, form: str, database: str
    ) -> None:
        dsn = form.format(wrong=f"{ENCODED}x", password=ENCODED, server=address(guarded, database))
        for verb in VERBS:
            error = raised(partial(run, partial(verb, Migrator(dsn, folder, budget=0.2))))
            assert isinstance(error, PgratchetError)
            refuse_leaks(error, logged.text)
        assert run(Migrator(f"postgresql://somebody:{ENCODED}@{address(guarded)}", folder).status)

    def test_a_refused_role_is_told_without_the_password(
        self, guarded: embedded.Server, folder: Path, logged: pytest.LogCaptureFixture
    ) -> None:
        dsn = f"postgresql://somebody:{ENCODED}@{address(guarded)}"

        async def connect() -> Any:
            return await asyncpg.connect(dsn)

        for owner in ("postgres", "nobody_of_that_name"):
            for made in (Migrator(dsn, folder, owner=owner), Migrator(connect=connect, migrations=folder, owner=owner)):
                error = raised(partial(run, made.up))
                assert isinstance(error, ServerError)
                refuse_leaks(error, logged.text)

    def test_a_session_that_ends_later_is_told_without_the_password(self, guarded: embedded.Server) -> None:
        dsn = BY_USER_INFO.format(address(guarded))

        async def work(connect: Connect) -> None:
            async with open_session(connect) as connection:
                assert await connection.fetchval("SELECT current_user") == "somebody"
                assert list(leaks.within(connection, SECRETS, "connection", set(), 3)) == []
                await connection.execute("SELECT nonsense")

        for connect in (connector(address_of(dsn)), prepared(partial(connecting, dsn))):
            error = raised(partial(run, partial(work, connect)))
            assert isinstance(error, ServerError)
            ours = [frame for frame in leaks.frames(error, but=__file__) if "connection" in frame.f_locals]
            assert ours
            refuse_leaks(error)


class Address:
    """A DSN as other packages have it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


async def connecting(dsn: str) -> Any:
    return await asyncpg.connect(dsn)


DSN = f"postgresql://somebody:{ENCODED}@nowhere/x"
STRING = f"host=nowhere password='{PASSWORD}' dbname=x"

UNREADABLE = [
    f"mysql://somebody:{ENCODED}@nowhere/x",
    f"postgresql:/somebody:{ENCODED}@nowhere/x",
    f"postgresql://somebody:{ENCODED}@nowhere:port/x",
    f"postgresql://somebody:{ENCODED}@[::1/x",
    f"postgresql://somebody:{ENCODED}\N{ACCOUNT OF}@nowhere/x",
    f"postgresql://somebody:{PASSWORD}@nowhere/x",
    "postgresql://somebody:12/hunter2@nowhere/x",
    "postgresql://somebody:12#hunter2@nowhere/x",
    "postgresql://somebody:a@hunter2@nowhere/x",
    f"postgresql://somebody:{ENCODED}@nowhere:0/x",
    "postgresql://somebody@nowhere/x?password=a#hunter2",
    STRING,
    DSN.encode(),
    Address(DSN),
    Path(DSN),
    42,
]

BAD: list[dict[str, Any]] = [
    {"table": "a.b.c"},
    {"table": ""},
    {"lock": "none of these"},
    {"listener": connecting},  # a coroutine function
    {"connect": connecting},
    {"direct_dsn": "nonsense"},
    {"readers": 5},
    {"migrations": DSN},
    {"migrations": Path(DSN)},
    {"table": DSN},
    {"table": STRING},
    {"lock": DSN},
    {"owner": DSN},
    {"owner": STRING},
    {"readers": [DSN]},
    {"readers": ("web", STRING)},
    {"readers": DSN},
    {"journal": DSN},
    {"journal": Path(DSN)},
    {"journal": f"postgresql://nowhere/x?password={PASSWORD}"},
    {"listener": DSN},
    {"budget": DSN},
    {"lock_timeout": STRING},
    {"statement_timeout": [DSN]},
    {"allow_late": DSN},
    {"strict": DSN},
    {"allow_empty": DSN},
]


class TestAMigratorThatCannotBeMade:
    @pytest.mark.parametrize("dsn", UNREADABLE, ids=str)
    @pytest.mark.parametrize("name", ["dsn", "direct_dsn"])
    def test_a_migrator_refused_for_an_unreadable_dsn_shows_nothing_of_it(self, dsn: Any, name: str) -> None:
        given = {"dsn": "postgresql://nowhere/x"} | {name: dsn}
        error = raised(partial(Migrator, **given))

        assert isinstance(error, UsageError)
        refuse_leaks(error)

    @pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
    def test_a_migrator_refused_for_another_argument_shows_nothing_of_the_dsn(self, bad: dict[str, Any]) -> None:
        error = raised(partial(Migrator, DSN, **bad))

        assert isinstance(error, UsageError)
        refuse_leaks(error)

    def test_a_migrator_refused_for_want_of_a_dsn_shows_nothing_of_the_direct_one(self) -> None:
        refuse_leaks(raised(partial(Migrator, direct_dsn=DSN)))

    def test_a_migrator_refused_for_an_invalid_factory_shows_nothing_of_it(self) -> None:
        for connect in (DSN, Address(DSN), [DSN]):
            error = raised(partial(Migrator, connect=connect))  # type: ignore[arg-type]  # as intended
            assert isinstance(error, UsageError)
            refuse_leaks(error)

    @pytest.mark.parametrize("text", [DSN, STRING])
    def test_a_verb_shows_nothing_of_an_invalid_version(self, folder: Path, text: str) -> None:
        made = Migrator("postgresql://nobody@127.0.0.1:1/x", folder)
        for work in (
            partial(made.up, text),
            partial(made.down, text),
            partial(made.rehearse, text),
            partial(made.adopt, text),
            partial(made.repair, text, Verdict.APPLIED, "why"),
        ):
            error = raised(partial(run, work))
            assert isinstance(error, UsageError)
            refuse_leaks(error)

    @pytest.mark.parametrize("text", [DSN, STRING])
    def test_a_new_file_has_nothing_of_a_dsn_in_its_name(
        self, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for given in ((text, "a"), ("folder", f"add {text}")):
            error = raised(partial(migrator.new, *given))
            assert isinstance(error, UsageError)
            refuse_leaks(error)
        assert list(tmp_path.iterdir()) == []


def test_the_representations_of_a_migrator_and_its_parts_show_no_password() -> None:
    for made in (
        Migrator(DSN, direct_dsn=DSN),
        Migrator(connect=partial(connecting, DSN)),
        Databases(DSN),
        Hidden(DSN),
    ):
        assert list(leaks.within(made, SECRETS, "made", set(), 9)) == []


def test_the_representation_of_a_dsn_with_its_source_shows_no_password() -> None:
    given = SourcedDsn(DSN, "DATABASE_URL")

    assert f"{[given]}" == "[***]"
    assert given == DSN


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


BLANKS = r"host=nowhere password = 'hunter2 it\'s s3cr3t' dbname=x"
MISPLACED = (DSN, STRING, BLANKS, f"postgresql://nowhere/x?password={PASSWORD}", r"password=hunter2\ s3cr3t user=x")


class TestTheCommandLine:
    @pytest.fixture(autouse=True)
    def elsewhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DATABASE_URL", f"postgresql://somebody:{ENCODED}@127.0.0.1:{port_of_nobody()}/x")
        monkeypatch.setenv("PGRATCHET_BUDGET", "0.1")
        (tmp_path / "migrations/versions").mkdir(parents=True)
        (tmp_path / "migrations/versions/001_a.sql").write_text("SELECT 1;")

    def refuse_leaks_of(self, capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> None:
        for more in (("--json",), ("--verbose",)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", ["pgratchet", *arguments, *more])
                with pytest.raises(SystemExit) as ended:
                    program.main()
            output = capfd.readouterr()
            assert not leaks.shows("".join(output), SECRETS)
            assert ended.value.code == code
            if more == ("--json",):
                assert json.loads(output.out)["ok"] is False

    @pytest.mark.parametrize("text", MISPLACED)
    @pytest.mark.parametrize(
        "name", ["table", "owner", "reader", "journal", "dir", "to", "lock", "budget", "lock-timeout", "nonsense"]
    )
    def test_the_command_line_masks_a_dsn_given_to_another_option(
        self, capfd: pytest.CaptureFixture[str], name: str, text: str
    ) -> None:
        self.refuse_leaks_of(capfd, "up", f"--{name}", text)
        self.refuse_leaks_of(capfd, "up", f"--{name}={text}")

    @pytest.mark.parametrize("text", MISPLACED)
    @pytest.mark.parametrize("name", ["TABLE", "OWNER", "READERS", "JOURNAL", "DIR", "LOCK", "BUDGET", "STRICT"])
    def test_the_command_line_masks_a_dsn_given_to_another_variable(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, text: str
    ) -> None:
        monkeypatch.setenv(f"PGRATCHET_{name}", text)
        self.refuse_leaks_of(capfd, "up")

    @pytest.mark.parametrize("text", MISPLACED)
    def test_the_command_line_masks_a_dsn_given_to_another_setting(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
    ) -> None:
        # Variables come before the file, and a setting that does not count is not judged.
        monkeypatch.delenv("PGRATCHET_BUDGET")
        monkeypatch.delenv("DATABASE_URL")
        for line in (
            "dir = {}",
            "table = {}",
            "owner = {}",
            "readers = [{}]",
            "journal = {}",
            "lock = {}",
            "dns = {}",
            "budget = {}",
            "dsn = [{}]",
            "dsn = {} nonsense",
        ):
            (tmp_path / "pyproject.toml").write_text(f"[tool.pgratchet]\n{line.format(json.dumps(text))}\n")
            self.refuse_leaks_of(capfd, "up")

    @pytest.mark.parametrize("text", MISPLACED)
    def test_the_command_line_masks_a_dsn_that_is_an_argument_too_many(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path, text: str
    ) -> None:
        for arguments in (
            [text],
            ["up", text],
            ["up", *text.split()],
            ["new", f"add {text}"],
            ["new", "a", "--dir", text],
            ["repair", text, "--applied", "--reason", "why"],
            ["adopt", "--source", text],
        ):
            self.refuse_leaks_of(capfd, *arguments)
        assert [path.name for path in tmp_path.iterdir()] == ["migrations"]

    def test_the_command_line_shows_nothing_of_a_dsn_that_leads_nowhere(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.refuse_leaks_of(capfd, "status")
        self.refuse_leaks_of(capfd, "up", "--budget", "0.1", code=5)
        self.refuse_leaks_of(capfd, "up", "--dsn", DSN.replace("nowhere", "127.0.0.1:0"))

    def test_the_command_line_holds_every_dsn_hidden(self, tmp_path: Path) -> None:
        (tmp_path / "pyproject.toml").write_text(f"[tool.pgratchet]\ndsn = '{DSN}'\ndirect_dsn = '{DSN}'\n")
        assert not leaks.shows(repr(settings.read({})), SECRETS)
        assert not leaks.shows(repr(settings.read({"dsn": Hidden(DSN), "direct_dsn": Hidden(DSN)})), SECRETS)
        for bad in ({"lock": "none of these"}, {"table": "a.b.c"}, {"direct_dsn": Hidden("nonsense")}):
            refuse_leaks(raised(partial(settings.open_migrator, bad)))
        for line in ("dns = '{}'", "dsn = ['{}']", "dsn = '{}' nonsense"):
            (tmp_path / "pyproject.toml").write_text(f"[tool.pgratchet]\n{line.format(DSN)}\n")
            refuse_leaks(raised(partial(settings.open_migrator, {})))


def test_a_reason_is_recorded_without_the_password_in_it(dsn: str, folder: Path) -> None:
    made = Migrator(dsn, folder)
    asyncio.run(made.up())
    asyncio.run(made.repair("1", Verdict.NOT_APPLIED, f"it was {DSN}"))

    reason = asyncio.run(ask(dsn, "SELECT reason FROM public.schema_migrations"))
    assert "postgresql://..." in reason
    assert not leaks.shows(reason, SECRETS)
    asyncio.run(made.up())
    assert asyncio.run(states(dsn)) == {"1": "applied"}


BY_ANOTHER = """
import asyncio, json, os, sys
import encodings.idna
from pgratchet import Migrator
from pgratchet.cli import main

dsn, folder, home = sys.argv[1:]

def all_ways(dsn):
    for verb in (Migrator.status, Migrator.up):
        try:
            asyncio.run(verb(Migrator(dsn, folder, budget=0.1)))
            yield "none", ""
        except Exception as error:
            yield type(error).__name__, str(error)
    sys.argv = ["pgratchet", "status", "--dsn", dsn, "--dir", folder]
    try:
        main()
    except SystemExit as ended:
        yield ended.code, ""

# Before it becomes somebody who may not read the modules.
list(all_ways("postgresql://somebody@127.0.0.1:1/x?sslmode=verify-full"))
os.environ.pop("HOME")
if home:
    os.environ["HOME"] = home
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(54321)
    os.setuid(54321)
print(json.dumps(list(all_ways(dsn))), file=sys.stderr)
"""
"""Tries to connect as a user without a name, if it may become one."""


@pytest.fixture
def by_another(tmp_path: Path) -> Iterator[Callable[[str, Path | None], list[list[Any]]]]:
    """Returns what the library and the command line come to for somebody else, with another home."""
    parent = Path(tempfile.mkdtemp())  # that of tmp_path is not for others
    shutil.copytree(tmp_path, folder := parent / "migrations")
    (folder / "001_a.sql").write_text("SELECT 1;")
    parent.chmod(0o755)
    folder.chmod(0o755)
    unwanted = ("USER", "LOGNAME", "LNAME", "USERNAME")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted and name[:2] != "PG"}

    def come_to(dsn: str, home: Path | None) -> list[list[Any]]:
        command = [sys.executable, "-c", BY_ANOTHER, dsn, str(folder), str(home or "")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        results: list[list[Any]] = json.loads(done.stderr.splitlines()[-1])
        return results

    yield come_to
    shutil.rmtree(parent)


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a name")


class TestAProcessOfAnotherUser:
    @root_only
    def test_a_process_whose_user_has_no_name_is_told_to_give_one(
        self, by_another: Callable[[str, Path | None], list[list[Any]]]
    ) -> None:
        for home in (None, Path("/root"), Path("/nowhere")):
            results = by_another("postgresql://127.0.0.1:1/x", home)
            assert [kind for kind, _ in results] == ["UsageError", "UsageError", 2]
            assert "names no user" in results[0][1]
        named = by_another("postgresql://?user=somebody&host=127.0.0.1&port=1&dbname=x", Path("/nowhere"))
        assert [kind for kind, _ in named] == ["ServerError", "BudgetExceededError", 2]

    @root_only
    def test_a_process_that_may_not_read_its_home_is_told_so(
        self, by_another: Callable[[str, Path | None], list[list[Any]]]
    ) -> None:
        results = by_another("postgresql://somebody:x@127.0.0.1:1/x?sslmode=verify-ca", Path("/root"))

        assert [kind for kind, _ in results] == ["UsageError", "UsageError", 2]
        assert "/root/.postgresql/" in results[0][1]
        assert "HOME" in results[0][1]
        results = by_another("postgresql://somebody:x@127.0.0.1:1/x", Path("/root"))
        assert [kind for kind, _ in results] == ["ServerError", "BudgetExceededError", 2]
        results = by_another("postgresql://somebody:x@/x?host=/nowhere", Path("/root"))
        assert [kind for kind, _ in results] == ["ServerError", "BudgetExceededError", 2]
        for more in ("sslmode=disable", "sslmode=verify-full"):
            results = by_another(f"postgresql://somebody:x@127.0.0.1:1/x?{more}", None)
            assert results[0][0] == ("UsageError" if more == "sslmode=verify-full" else "ServerError")

    @root_only
    def test_a_process_that_may_not_read_its_password_file_is_told_so(
        self, by_another: Callable[[str, Path | None], list[list[Any]]], guarded: embedded.Server, tmp_path: Path
    ) -> None:
        home = tmp_path / "home"
        home.mkdir()
        (home / ".pgpass").write_text(f"*:*:*:*:{PASSWORD}\n")
        (home / ".pgpass").chmod(0o600)
        shown = Path(shutil.copytree(home, Path(tempfile.mkdtemp()) / "home"))
        shown.parent.chmod(0o755)
        try:
            for more, place in (("", shown), ("", None), (f"&passfile={shown}/.pgpass", Path("/nowhere"))):
                results = by_another(f"postgresql://somebody@{address(guarded)}?sslmode=disable{more}", place)
                assert [kind for kind, _ in results] == ["UsageError", "UsageError", 2]
                assert ".pgpass" in results[0][1]
                assert not leaks.shows(json.dumps(results), SECRETS)
            os.chown(shown / ".pgpass", 54321, 54321)
            results = by_another(f"postgresql://somebody@{address(guarded)}?sslmode=disable", shown)
            assert results[0] == ["none", ""]
        finally:
            shutil.rmtree(shown.parent)

    def test_a_process_whose_home_leads_nowhere_is_told_so(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home/.postgresql").symlink_to(".postgresql")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for verb in VERBS:
            with pytest.raises(UsageError, match=r"home/\.postgresql/.*HOME"):
                run(partial(verb, Migrator(BY_USER_INFO.format(f"127.0.0.1:{port_of_nobody()}/x"), folder)))

    def test_a_process_whose_user_has_no_name_gets_no_error_of_asyncpgs(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def unknown(uid: int) -> None:
            raise KeyError(f"getpwuid(): uid not found: {uid}")

        monkeypatch.setattr("pwd.getpwuid", unknown)
        for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "PGUSER", "HOME"):
            monkeypatch.delenv(name, raising=False)
        made = Migrator("postgresql://127.0.0.1:1/x", folder, direct_dsn="postgresql://127.0.0.1:1/x")
        for verb in (*VERBS, Migrator.wait):
            with pytest.raises(UsageError, match="names no user"):
                run(partial(verb, made))
        monkeypatch.setattr(sys, "argv", ["pgratchet", "up", "--dsn", "postgresql:///x", "--dir", str(folder)])
        with pytest.raises(SystemExit) as ended:
            program.main()
        assert ended.value.code == 2
        assert "names no user" in capfd.readouterr().err
        monkeypatch.setenv("PGUSER", "somebody")
        with pytest.raises(ServerError, match="cannot connect"):
            run(made.status)


class Foreign:
    """A connection of another driver."""

    async def close(self) -> None:
        raise AssertionError("it is not ours to close")


class TestAFactory:
    @pytest.mark.parametrize("verb", [Migrator.up, Migrator.status, Migrator.wait])
    @pytest.mark.parametrize("way", ["method", "partial", "lambda", "coroutine"])
    def test_a_factory_of_a_pools_connections_is_refused_before_anything_is_done(
        self, dsn: str, folder: Path, way: str, verb: Verb
    ) -> None:
        async def work() -> None:
            pool = await asyncpg.create_pool(dsn, min_size=1, max_size=1)

            async def acquire_one() -> Any:
                return await pool.acquire()

            connect: Any = {
                "method": pool.acquire,
                "partial": partial(pool.acquire, timeout=1),
                "lambda": lambda: pool.acquire(),  # noqa: PLW0108 - another name
                "coroutine": acquire_one,
            }[way]
            names = {"method": "Pool.acquire", "partial": "Pool.acquire", "lambda": "<lambda>"}
            with pytest.raises(UsageError, match="a connection of a pool") as caught:
                await verb(Migrator(connect=connect, migrations=folder))
            assert names.get(way, "acquire_one") in str(caught.value)
            assert "asyncpg.connect()" in str(caught.value)
            # The pool has its only one back, and it works.
            async with asyncio.timeout(5):
                assert await pool.fetchval("SELECT to_regclass('public.schema_migrations')") is None
                await pool.close()

        asyncio.run(work())
        asyncio.run(Migrator(connect=partial(connecting, dsn), migrations=folder).up())
        assert asyncio.run(states(dsn)) == {"1": "applied"}

    @pytest.mark.parametrize(
        ("made", "words"),
        [(None, "NoneType"), (42, "int"), (Foreign(), "Foreign"), ((1, 2), "tuple"), (DSN, "the type str")],
        ids=["nothing", "number", "foreign", "tuple", "dsn"],
    )
    def test_a_factory_that_makes_something_else_is_refused(self, folder: Path, made: object, words: str) -> None:
        async def make_it() -> Any:
            return made

        def make_at_once() -> Any:
            return made

        for connect in (make_it, make_at_once):
            for verb in VERBS:
                error = raised(partial(run, partial(verb, Migrator(connect=connect, migrations=folder))))
                assert isinstance(error, UsageError)
                assert f"TestAFactory.{self.test_a_factory_that_makes_something_else_is_refused.__name__}" in str(error)
                assert connect.__name__ in str(error)
                assert words in str(error)
                refuse_leaks(error)

    def test_a_factory_that_makes_one_connection_only_is_refused(
        self, dsn: str, folder: Path, logged: pytest.LogCaptureFixture
    ) -> None:
        (folder / "001_a.sql").write_text("CREATE TABLE t (a int);")

        async def work() -> None:
            only = await asyncpg.connect(dsn, statement_cache_size=0)

            async def share() -> Any:
                return only

            async def noticed() -> bool:
                return "used already" in logged.text

            made = Migrator(connect=share, migrations=folder)
            await made.up()
            with pytest.raises(UsageError, match=r"share.*used already, or closed"):
                await made.up()

            # It is not given a second time to who looks out for blockers, and would close it.
            (folder / "002_b.sql").write_text("ALTER TABLE t ADD b int;")
            only = await asyncpg.connect(dsn, statement_cache_size=0)
            async with connected(dsn) as other, other.transaction():
                await other.execute("LOCK TABLE t")
                running = asyncio.ensure_future(Migrator(connect=share, migrations=folder, lock_timeout=60).up())
                await until(noticed)
                assert not only.is_closed()
            assert len(await running) == 1

        asyncio.run(work())
        assert asyncio.run(states(dsn)) == {"1": "applied", "2": "applied"}

    @pytest.mark.parametrize(
        "given",
        [
            KeyError("PASSWORD"),
            RuntimeError(f"cannot open {DSN}"),
            asyncpg.InterfaceError("misuse"),
            ExceptionGroup("several", [ValueError("one")]),
            OSError("the vault is closed"),
            asyncpg.InvalidPasswordError("expired"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_a_factory_that_raises_is_told_by_its_name(self, folder: Path, given: Exception) -> None:
        async def fetch_and_connect() -> Any:
            raise given

        def fail_at_once() -> Any:
            raise given

        for connect in (fetch_and_connect, fail_at_once):
            with pytest.raises(ServerError) as caught:
                run(Migrator(connect=connect, migrations=folder).status)
            assert connect.__name__ in str(caught.value)
            assert caught.value.__cause__ is given
            assert discreet(str(given)).split("\n")[0] in str(caught.value)
            assert not isinstance(given, ExceptionGroup) or "ValueError: one" in str(caught.value)
            assert not leaks.shows(str(caught.value), SECRETS)

    def test_a_factory_whose_error_is_ours_keeps_it(self, folder: Path) -> None:
        async def connect() -> Any:
            raise UsageError("no token")

        with pytest.raises(UsageError, match=r"\Ano token\Z"):
            run(Migrator(connect=connect, migrations=folder).status)

    def test_a_factorys_password_is_in_no_frame_of_ours(self, folder: Path) -> None:
        dsn = BY_USER_INFO.format(f"127.0.0.1:{port_of_nobody()}/x")
        for connect in (partial(connecting, dsn), partial(asyncpg.connect, dsn)):
            error = raised(partial(run, Migrator(connect=connect, migrations=folder).status))
            ours = [frame for frame in leaks.frames(error, but=__file__) if "pgratchet" in frame.f_code.co_filename]
            places = [
                place
                for frame in ours
                for name, value in frame.f_locals.items()
                for place in leaks.within(value, SECRETS, f"{frame.f_code.co_name}:{name}", set(), leaks.DEPTH)
            ]
            assert len(ours) > 3
            assert places == []


class TestDatabasesForTests:
    def test_databases_for_tests_are_not_made_with_the_password_in_a_traceback(self, guarded: embedded.Server) -> None:
        refused = f"postgresql://somebody:{ENCODED}x@{address(guarded)}"
        powerless = f"postgresql://somebody:{ENCODED}@{address(guarded)}"
        for work in (
            Databases(refused).sweep,
            Databases(refused).server_major,
            Databases(powerless).empty().__enter__,
            Databases(powerless).clone(powerless).__enter__,
            Databases(powerless).migrated(Migrator).__enter__,
            partial(Databases, f"postgresql://somebody:{ENCODED}@[::1/x"),
        ):
            error = raised(work)
            assert isinstance(error, PgratchetError)
            refuse_leaks(error)

    def test_databases_for_tests_are_not_dumped_with_the_password_in_a_traceback(
        self, guarded: embedded.Server, tmp_path: Path
    ) -> None:
        pg_dump = tmp_path / "pg_dump"
        for dsn in (f"postgresql://somebody:{ENCODED}@{address(guarded)}", BY_QUERY.format(address(guarded))):
            dump = partial(dumps.dump, pg_dump, dsn, Table.parse("public.schema_migrations"))
            for text, mode in ((None, 0), ("#!/bin/sh", 0o600), ("#!/nowhere", 0o700), ("nonsense", 0o700)):
                if text is not None:
                    pg_dump.write_text(text)
                    pg_dump.chmod(mode)
                error = raised(dump)
                assert isinstance(error, ServerError)
                assert "cannot be run" in str(error)
                refuse_leaks(error)
            pg_dump.write_text("#!/bin/sh\necho $PGPASSWORD | cut -c 1-3; echo no >&2; exit 1")
            refuse_leaks(raised(dump))
            pg_dump.unlink()

    def test_databases_for_tests_are_shown_by_pytest_without_the_password(
        self, guarded: embedded.Server, tmp_path: Path
    ) -> None:
        asyncio.run(tell(guarded.dsn, "ALTER ROLE somebody CREATEDB"))
        (tmp_path / "sql").mkdir()
        (tmp_path / "sql/001_a.sql").write_text("SELECT 1;")
        (tmp_path / "pytest.ini").write_text("[pytest]\npgratchet_migrations = sql\n")
        (tmp_path / "test_it.py").write_text(
            "import asyncio, asyncpg\n"
            "def test_template(pgratchet_dsn, pgratchet_template, pgratchet_server): assert 0\n"
            "def test_empty(pgratchet_empty_dsn, pgratchet_databases): deeper(pgratchet_empty_dsn)\n"
            "def deeper(dsn):\n    kept = {'dsn': dsn}\n    raise ValueError(1)\n"
            "def test_use(pgratchet_dsn): asyncio.run(use(pgratchet_dsn))\n"
            "async def use(dsn):\n"
            "    await (await asyncpg.connect(dsn)).close()\n"
            "    await (await asyncpg.connect(dsn.replace('somebody', 'somebody'))).close()\n"
            "    assert f'{dsn}'.startswith('postgresql://somebody:hunter')\n"
        )
        dsn = BY_USER_INFO.format(address(guarded))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-pno:hypothesispytest", "-pno:faker", "-pno:asyncio", "--showlocals"],
            cwd=tmp_path,
            env=os.environ | {"DATABASE_URL": dsn},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "2 failed, 1 passed" in done.stdout
        assert "kept       = {'dsn': 'postgresql://...'}" in done.stdout
        assert not leaks.shows(done.stdout + done.stderr, SECRETS)


SENTRY = """
import asyncio, logging, sys
import sentry_sdk
from sentry_sdk.integrations.asyncpg import AsyncPGIntegration
from sentry_sdk.transport import Transport
from pgratchet import Migrator, migrated
from pgratchet.core.masking import Hidden

class Kept(Transport):
    def capture_envelope(self, envelope):
        sys.stdout.buffer.write(envelope.serialize() + b"\\n")

# By default, but that it does not import each of the frameworks that are installed here.
sentry_sdk.init(
    "http://key@127.0.0.1:1/1",
    transport=Kept,
    auto_enabling_integrations=False,
    integrations=[AsyncPGIntegration()],
)
folder = sys.argv[1]
# This script's own frames hide it, as an application's may.
dsns = [Hidden(line) for line in sys.stdin.read().splitlines()]

async def starting(hidden):
    async with migrated(Migrator(hidden.reveal(), folder, budget=0.1)):
        pass

for hidden in dsns:
    for given in ({}, {"table": "a.b.c"}, {"direct_dsn": "nonsense"}):
        try:
            asyncio.run(Migrator(hidden.reveal(), folder, budget=0.1, **given).status(), debug=True)
        except Exception as error:
            sentry_sdk.capture_exception(error)
    try:
        asyncio.run(starting(hidden))
    except Exception:
        logging.getLogger("app").exception("at start-up")
sentry_sdk.flush()
"""


def test_sentry_is_sent_no_password(guarded: embedded.Server, folder: Path) -> None:
    dsns = [
        BY_USER_INFO.format(f"127.0.0.1:{port_of_nobody()}/x"),
        BY_USER_INFO.format(address(guarded, "missing")),
        BY_QUERY.format("a..b/x"),
        BY_QUERY.format(address(guarded)) + "x",
    ]
    done = subprocess.run(
        [sys.executable, "-c", SENTRY, str(folder)], input="\n".join(dsns).encode(), capture_output=True, check=True
    )
    sent = done.stdout.decode()
    assert sent.count('"stacktrace"') >= 4 * len(dsns)
    assert '"vars"' in sent
    assert "_connected" in sent
    assert not leaks.shows(sent + done.stderr.decode(), SECRETS)


def test_git_is_not_asked_with_the_environment_in_a_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE_URL", DSN)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    refuse_leaks(raised(partial(released.edits, folder, "origin/main")))
    monkeypatch.setenv("PATH", "/nowhere")
    refuse_leaks(raised(partial(released.edits, folder, "origin/main")))
