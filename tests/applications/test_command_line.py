import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pgratchet import FilesError, Migrator, PgratchetError, ServerError, Verdict, embedded
from pgratchet.cli import main
from tests import support
from tests.support import Write

USERS = {"1_users.sql": "CREATE TABLE users (id int);\n", "1_users.down.sql": "DROP TABLE users;\n"}
EMAIL = {
    "2_email.sql": "ALTER TABLE users ADD email text;\nCREATE INDEX ON users (email);\n",
    "2_email.down.sql": "ALTER TABLE users DROP email;\n",
}
BROKEN = {"3_broken.sql": "CREATE TABLE orders ();\n\n\tALTER TABLE nope ADD x int;\n"}
SECRET = "h1dden-pa55"  # noqa: S105 - to be looked for where it must not be

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def environment() -> dict[str, str]:
    names = [name for name in os.environ if not name.startswith(("PGRATCHET_", "PG")) and name != "DATABASE_URL"]
    return {name: os.environ[name] for name in names}


@pytest.fixture
def folder(write: Write) -> Path:
    return write(USERS | EMAIL)


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts the program as a process, in a directory of its own; whatever still runs in the end is killed."""
    started = []

    def start(*arguments: str | Path, **more: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "pgratchet", *arguments],
            cwd=tmp_path,
            env=environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Runs the program in this process, in a directory of its own: a process for each would take ten times as long."""

    def run(*arguments: str | Path, **more: str) -> "subprocess.CompletedProcess[str]":
        command = ["pgratchet", *map(str, arguments)]
        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", command)
            for name in os.environ.keys() - environment.keys():
                patch.delenv(name)
            for name, value in more.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as end:
                main()
        return subprocess.CompletedProcess(command, int(end.value.code or 0), *capfd.readouterr())

    return run


def ended(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def pgratchet(run: Run, dsn: str, folder: Path) -> Run:
    """Runs the program on the database and the files of the test."""
    return lambda command, *arguments: run(command, "--dir", folder, *arguments, DATABASE_URL=dsn)


def states(dsn: str) -> dict[str, str]:
    return asyncio.run(support.states(dsn))


def exists(dsn: str, relation: str) -> bool:
    return asyncio.run(support.exists(dsn, relation))


def document(result: "subprocess.CompletedProcess[str]") -> Any:
    """Return the one JSON document that is all of stdout."""
    return json.loads(result.stdout)


def report(text: str) -> list[str]:
    """Return the lines of a report behind its first line, which says where the work was done."""
    place, *lines = [line for line in text.splitlines() if " INFO " not in line]
    assert place.startswith("database pgratchet_")
    return lines


def test_up_applies_and_says_so_and_has_nothing_to_do_the_second_time(pgratchet: Run, dsn: str) -> None:
    first, second = pgratchet("up"), pgratchet("up")

    assert (first.returncode, second.returncode) == (0, 0)
    assert [line.split("(")[0] for line in report(first.stdout)] == ["applied 1 users ", "applied 2 email "]
    assert (report(second.stdout), second.stderr) == (["nothing to do"], "")
    assert states(dsn) == {"1": "applied", "2": "applied"}


def test_logs_do_not_mix_with_the_document(start: Start, dsn: str, folder: Path) -> None:
    result = ended(start("up", "--dir", folder, "--json", "-v", DATABASE_URL=dsn))

    assert [step["version"] for step in document(result)["finished"]] == ["1", "2"]
    assert "INFO" in result.stderr


def test_up_stops_at_a_version(pgratchet: Run, dsn: str) -> None:
    assert pgratchet("up", "--to", "1").returncode == 0
    assert states(dsn) == {"1": "applied"}


def test_the_installed_program_is_the_same_one(environment: dict[str, str], dsn: str, folder: Path) -> None:
    command: list[str | Path] = [Path(sys.executable).with_name("pgratchet"), "up", "--dir", folder, "--dsn", dsn]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert report(result.stdout)[0].startswith("applied 1 users ")
    assert states(dsn) == {"1": "applied", "2": "applied"}


COMPLETES = """
eval "$(pgratchet --show-completion)"
completed() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    _pgratchet_completion pgratchet
    echo "${COMPREPLY[@]}"
}
completed pgratchet sta
completed pgratchet up --lock-
completed pgratchet up --lock ""
completed pgratchet nothing --lock
"""


def test_bash_completes_commands_options_and_choices(environment: dict[str, str]) -> None:
    path = {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    shown = subprocess.run(
        ["bash", "-c", COMPLETES], env=environment | path, capture_output=True, text=True, check=True, timeout=60
    )

    assert (shown.stdout, shown.stderr) == ("status\n--lock-timeout\nsession transaction none\n\n", "")


def test_the_completion_of_bash_is_installed_for_new_shells(environment: dict[str, str], tmp_path: Path) -> None:
    path = {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "HOME": str(tmp_path)}
    # A last command would take the place of the shell, and no shell would be found.
    for command in ("pgratchet --install-completion; true", "source ~/.bashrc; complete -p pgratchet"):
        shown = subprocess.run(
            ["bash", "-c", command], env=environment | path, capture_output=True, text=True, check=True, timeout=60
        )

    assert " -F " in shown.stdout


def test_settings_come_from_the_environment_and_from_the_project(
    run: Run, dsn: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text(f'[tool.pgratchet]\ndir = "{folder.name}"\ntable = "public.project"\n')
    result = run("up", "--table", "public.flag", DATABASE_URL=dsn, PGRATCHET_TABLE="public.variable")

    assert result.returncode == 0
    assert exists(dsn, "public.flag")
    assert not exists(dsn, "public.variable")
    assert not exists(dsn, "public.project")


def test_a_dry_run_changes_nothing(pgratchet: Run, dsn: str) -> None:
    result = pgratchet("up", "--dry-run")

    assert (result.returncode, report(result.stdout)) == (
        0,
        ["would apply 1 users (1 statement, one transaction)", "would apply 2 email (2 statements, one transaction)"],
    )
    assert result.stdout == pgratchet("plan").stdout
    assert not exists(dsn, "schema_migrations")


def test_a_rehearsal_changes_nothing(pgratchet: Run, dsn: str) -> None:
    result = pgratchet("up", "--rehearse", "--json")

    assert result.returncode == 0
    assert [step["version"] for step in document(result)["rehearsed"]] == ["1", "2"]
    assert not exists(dsn, "users")
    assert not exists(dsn, "schema_migrations")


def test_a_rehearsal_finds_what_would_fail(pgratchet: Run, dsn: str, write: Write) -> None:
    write(BROKEN)
    result = pgratchet("up", "--rehearse")

    assert result.returncode == 1
    assert "3_broken.sql" in result.stderr
    assert not exists(dsn, "users")


def test_down_reverts_the_newest_version_or_more(pgratchet: Run, dsn: str) -> None:
    pgratchet("up")
    newest = pgratchet("down")
    after = states(dsn)
    everything = pgratchet("down", "--to", "0")

    assert report(newest.stdout)[0].startswith("reverted 2 email (1 statement, ")
    assert after == {"1": "applied"}
    assert report(everything.stdout)[0].startswith("reverted 1 users ")
    assert states(dsn) == {}
    assert not exists(dsn, "users")


def test_down_takes_steps_or_a_version(pgratchet: Run, dsn: str) -> None:
    pgratchet("up")

    assert pgratchet("down", "--steps", "2", "--to", "1").returncode == 2
    assert pgratchet("down", "--steps", "2").returncode == 0
    assert states(dsn) == {}


def test_redo_reverts_and_applies_again(pgratchet: Run, dsn: str) -> None:
    pgratchet("up")
    result = pgratchet("redo", "--json")

    assert [(step["direction"], step["version"]) for step in document(result)["finished"]] == [
        ("down", "2"),
        ("up", "2"),
    ]
    assert states(dsn) == {"1": "applied", "2": "applied"}


def test_the_status_shows_both_sides(pgratchet: Run) -> None:
    pgratchet("up", "--to", "1")
    heading, one, two, total = report(pgratchet("status").stdout)

    assert heading.split() == ["version", "state", "name", "when", "by"]
    assert one.split()[:3] == ["1", "applied", "users"]
    assert two.split() == ["2", "pending", "email", "-", "-"]
    assert one.index("applied") == two.index("pending") == heading.index("state")
    assert total == "1 applied, 1 pending"


def test_check_says_behind_until_everything_is_applied(pgratchet: Run) -> None:
    behind = pgratchet("check", "--json")
    pgratchet("up")
    there = pgratchet("check", "--json")

    assert (behind.returncode, document(behind)["error"]["versions"]) == (3, ["1", "2"])
    assert (there.returncode, document(there)["ok"]) == (0, True)
    assert pgratchet("wait").returncode == 0


def test_check_and_wait_tell_versions_that_follow_each_other_as_a_range(pgratchet: Run, write: Write) -> None:
    pgratchet("up")
    write({f"{number}_a.sql": "SELECT 1;" for number in (4, 5, 7, 8, 9)})
    pgratchet("repair", "7", "--applied", "--reason", "done by hand")
    write({"12_a.sql": "SELECT 1;", "20260101_a.sql": "SELECT 1;"})

    assert pgratchet("check", "--allow-late").stderr.splitlines()[-1].endswith("pending: 4, 5, 8 to 20260101")
    assert "apply 4, 5, 8 to 20260101" in pgratchet("wait", "--allow-late", "--budget", "0").stderr.splitlines()[-1]


def test_a_changed_file_is_a_disagreement(pgratchet: Run, write: Write) -> None:
    pgratchet("up")
    write({"1_users.sql": "CREATE TABLE users (id bigint);\n"})
    result = pgratchet("up", "--json")

    assert result.returncode == 4
    assert document(result)["error"] == {
        "type": "HistoryError",
        "message": report(result.stderr)[0].removeprefix("error: "),
        "versions": ["1"],
    }
    assert "1_users.sql was edited after it had been applied" in result.stderr
    assert "1        changed  users" in pgratchet("status").stdout


def test_a_table_of_another_tool_is_a_disagreement(pgratchet: Run, dsn: str) -> None:
    asyncio.run(support.tell(dsn, "CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty bool)"))
    result = pgratchet("up", "--json")

    assert (result.returncode, document(result)["error"]["type"]) == (4, "ForeignTableError")


def test_files_with_problems_are_reported_all_at_once(pgratchet: Run, write: Write) -> None:
    write({"3_one.sql": "-- pgratchet: no-transction\n", "4.sql": ""})
    result = pgratchet("up")

    assert result.returncode == 4
    assert "3_one.sql:1: unknown directive 'no-transction'; did you mean 'no-transaction'?" in result.stderr
    assert result.stderr.splitlines()[-1] == "2 problems"


def test_a_failed_migration_is_shown_where_it_failed(pgratchet: Run, dsn: str, write: Write) -> None:
    folder = write(BROKEN)
    failed = pgratchet("up")
    write({"3_broken.sql": "SELECT 1;\n"})
    fixed = pgratchet("up")

    assert (failed.returncode, failed.stdout) == (1, "")
    assert report(failed.stderr) == [
        f"{folder}/3_broken.sql:3:2: up 3 broken failed in statement 2 of 2",
        "",
        "  1 | CREATE TABLE orders ();",
        "  2 |",
        "> 3 | \tALTER TABLE nope ADD x int;",
        "    | \t^",
        "  4 |",
        "",
        'SQLSTATE 42P01: relation "nope" does not exist',
        "",
        "finished before it: 1, 2; they stay",
        "fix the file and run `pgratchet up` again: the failed migration was rolled back",
    ]
    assert fixed.returncode == 0
    assert states(dsn) == {"1": "applied", "2": "applied", "3": "applied"}


def test_a_failed_migration_as_json_has_place_and_cause(pgratchet: Run, write: Write) -> None:
    write(BROKEN)
    result = pgratchet("up", "--json")

    failure = document(result)["error"]["failure"]
    assert (failure["version"], failure["line"], failure["column"], failure["sqlstate"]) == ("3", 3, 2, "42P01")
    assert [step["version"] for step in document(result)["finished"]] == ["1", "2"]


def test_the_budget_bounds_the_wait_for_the_lock(start: Start, pgratchet: Run, dsn: str, folder: Path) -> None:
    async def run_behind_somebody() -> "subprocess.CompletedProcess[str]":
        async with support.runner_lock(dsn):
            process = start("up", "--dir", folder, "--budget", "0.5", "--json", DATABASE_URL=dsn)
            return await asyncio.to_thread(ended, process)

    result = asyncio.run(run_behind_somebody())

    assert (result.returncode, document(result)["error"]["type"]) == (5, "BudgetExceededError")
    assert pgratchet("up").returncode == 0


@pytest.mark.parametrize("how", ["flag", "variable", "setting"])
def test_a_server_that_never_answers_is_given_up(run: Run, tmp_path: Path, folder: Path, how: str) -> None:
    address = f"127.0.0.1:{support.free_port()}"
    more = {"PGRATCHET_CONNECT_BUDGET": "300ms"} if how == "variable" else {}
    if how == "setting":
        (tmp_path / "pyproject.toml").write_text("[tool.pgratchet]\nconnect_budget = 0.3\n")
    flags = ("--connect-budget", "0.3s") if how == "flag" else ()
    for command in ("up", "wait"):
        result = run(command, "--dir", folder, *flags, DATABASE_URL=f"postgresql://app@{address}/shop", **more)
        assert result.returncode == 5
        last = result.stderr.splitlines()[-1]
        assert last.startswith("error: gave up after 0.3 s: cannot connect: ")
        assert f"at {address}, user app" in last
        assert last.endswith("; start the server, or correct its address")


def test_a_repair_is_recorded_and_shown(pgratchet: Run, dsn: str, write: Write) -> None:
    pgratchet("up")
    write({"3_a.sql": "SELECT 1;", "4_b.sql": "SELECT 1;"})
    repaired = pgratchet("repair", "3", "--applied", "--reason", "done by hand", "--json")
    refused = pgratchet("repair", "3", "--skip", "--reason", "why not")
    unknown = pgratchet("repair", "7", "--applied", "--reason", "why not")

    entry = document(repaired)["entry"]
    assert (repaired.returncode, entry["version"], entry["state"]) == (0, "3", "applied")
    assert entry["reason"].startswith("done by hand (applied, ")
    assert f"3: {entry['reason']}" in pgratchet("status").stdout.splitlines()
    assert (refused.returncode, unknown.returncode) == (4, 2)
    assert "no statement of it is in doubt" in refused.stderr
    assert report(pgratchet("up").stdout)[0].startswith("applied 4 b")
    assert set(states(dsn).values()) == {"applied"}


def test_adopt_says_what_it_would_do_and_does_it_when_told(pgratchet: Run, dsn: str, write: Write) -> None:
    columns = "description text, filename text, executed_at timestamptz, success bool, error_message text"
    rows = "SELECT v, 'x', NULL, now(), true, NULL FROM unnest('{1,2,3,5,6,7}'::int[]) AS v"
    asyncio.run(
        support.tell(
            dsn, f"CREATE TABLE schema_migrations (version int, {columns}); INSERT INTO schema_migrations {rows}"
        )
    )
    write({f"{number}_a.sql": "SELECT 1;" for number in (3, 4, 7)})
    before = pgratchet("adopt")
    there = exists(dsn, "pgratchet_migrations")
    after = pgratchet("adopt", "--yes", "--json")

    said = "would adopt, from public.schema_migrations into public.pgratchet_migrations: 1 to 3, 5 to 7"
    assert report(before.stdout)[0] == said
    assert not there
    assert document(after)["adopted"] == list("123567")
    assert asyncio.run(support.states(dsn, "public.pgratchet_migrations")) == dict.fromkeys("123567", "applied")


def test_new_writes_files_that_up_applies_once_they_are_written(run: Run, dsn: str, tmp_path: Path) -> None:
    created = run("new", "add orders")
    refused = run("up", DATABASE_URL=dsn)
    with (tmp_path / "migrations/versions/001_add_orders.sql").open("a") as file:
        file.write("CREATE TABLE orders ();\n")
    applied = run("up", DATABASE_URL=dsn)

    assert (created.returncode, refused.returncode, applied.returncode) == (0, 4, 0)
    assert "write its SQL" in refused.stderr
    assert report(applied.stdout)[0].startswith("applied 1 add_orders ")


NOTHING = "SELECT 1"
FOREIGN = "DROP TABLE schema_migrations; CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty bool)"
STRANGER = "ALTER TABLE schema_migrations OWNER TO pg_monitor"
NAMED: list[tuple[str, dict[str, str], str, str, Callable[[Migrator], Awaitable[object]], str]] = [
    (NOTHING, {"0_late.sql": "SELECT 1;"}, "up", "(--allow-late)", Migrator.up, "(allow_late=True)"),
    (FOREIGN, {}, "up", "(--table public.pgratchet_migrations)", Migrator.up, '(table="public.pgratchet_migrations")'),
    (STRANGER, {}, "up", ": --trusted-owner pg_monitor.", Migrator.up, ": trusted_owners=['pg_monitor']."),
    (NOTHING, {}, "up --to soon", "--to is 'soon'", lambda m: m.up("soon"), "to is 'soon'"),
    (NOTHING, {}, "down --to 1 --steps 1", "--to, a version", lambda m: m.down(1, steps=1), "either to, a version"),
    (NOTHING, {}, "down --to 1 --steps 1", "--steps, a number", lambda m: m.down(1, steps=1), "or steps, a number"),
    (NOTHING, {}, "adopt --source a.b.c", "--source is", lambda m: m.adopt("a.b.c"), "source is"),
    (
        NOTHING,
        {},
        "repair soon --skip --reason x",
        "VERSION is 'soon'",
        lambda m: m.repair("soon", Verdict.SKIP, "x"),
        "version is 'soon'",
    ),
    (
        NOTHING,
        {},
        "repair 1 --skip --reason \udcff",
        "--reason has",
        lambda m: m.repair("1", Verdict.SKIP, "\udcff"),
        "reason has",
    ),
]


@pytest.mark.parametrize(("sql", "files", "command", "flag", "call", "argument"), NAMED)
def test_an_error_names_flags_here_and_arguments_in_python(  # noqa: PLR0913, PLR0917 - fixtures, and the two sides
    pgratchet: Run,
    dsn: str,
    write: Write,
    sql: str,
    files: dict[str, str],
    command: str,
    flag: str,
    call: Callable[[Migrator], Awaitable[object]],
    argument: str,
) -> None:
    pgratchet("up")
    asyncio.run(support.tell(dsn, sql))
    folder = write(files)

    async def in_python() -> str:
        with pytest.raises(PgratchetError) as caught:
            await call(Migrator(dsn, folder))
        return str(caught.value)

    # The second time, what the command line has set is set back.
    for _ in range(2):
        assert flag in pgratchet(*command.split()).stderr
        said = asyncio.run(in_python())
        assert argument in said
        assert "--" not in said


def test_an_empty_folder_names_the_flag_here_and_the_argument_in_python(run: Run, dsn: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert "(--allow-empty)" in run("up", "--dir", "empty", DATABASE_URL=dsn).stderr
    with pytest.raises(FilesError, match=r"\(allow_empty=True\)"):
        asyncio.run(Migrator(dsn, tmp_path / "empty").up())


def test_a_lack_of_a_lock_names_the_flags_here_and_the_arguments_in_python(
    pgratchet: Run, dsn: str, write: Write
) -> None:
    folder = write({"3_bare.sql": "-- pgratchet: no-transaction\nVACUUM;\n"})
    said = pgratchet("up", "--lock", "transaction").stderr

    assert "as --direct-dsn (PGRATCHET_DIRECT_DSN), or --lock session where" in said
    with pytest.raises(ServerError, match='as direct_dsn, or lock="session" where'):
        asyncio.run(Migrator(dsn, folder, lock="transaction").up())
    assert pgratchet("up").returncode == 0


def test_a_journal_gets_a_line_for_each_step(pgratchet: Run, tmp_path: Path) -> None:
    pgratchet("up", "--journal", "journal.jsonl")

    assert [json.loads(line)["version"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()] == ["1", "2"]


def test_the_exit_code_is_the_same_when_nobody_reads_the_report(
    environment: dict[str, str], dsn: str, folder: Path
) -> None:
    read, write = os.pipe()
    os.close(read)
    command: list[str | Path] = [sys.executable, "-m", "pgratchet", "status", "--dir", folder]
    with_dsn = environment | {"DATABASE_URL": dsn}
    result = subprocess.run(command, env=with_dsn, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)

    assert (result.returncode, result.stderr) == (0, b"")


ASLEEP = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
SLEEPERS = {
    "in one transaction": {"3_sleep.sql": "CREATE TABLE orders ();\nSELECT pg_sleep(600);\n"},
    "in Python": {"3_sleep.py": "async def up(connection):\n    await connection.execute('SELECT pg_sleep(600)')\n"},
}


def asleep(dsn: str) -> None:
    async def asleep() -> bool:
        return bool(await support.ask(dsn, ASLEEP))

    asyncio.run(support.until(asleep))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("files", SLEEPERS.values(), ids=SLEEPERS)
def test_a_signal_ends_the_statement_and_leaves_nothing(  # noqa: PLR0913, PLR0917 - fixtures, and the cases
    start: Start, run: Run, dsn: str, write: Write, files: dict[str, str], number: signal.Signals, code: int
) -> None:
    folder = write(USERS | EMAIL | files)
    process = start("up", "--dir", folder, "--journal", "journal", DATABASE_URL=dsn)
    asleep(dsn)
    process.send_signal(number)
    result = ended(process)
    asyncio.run(support.deserted(dsn))

    assert (result.returncode, result.stdout) == (code, "")
    (said,) = report(result.stderr)
    assert said == (
        f"interrupted by {number.name}: the statement under way has been cancelled; "
        "committed work stays: 2 applied, 1 pending"
    )
    assert states(dsn) == {"1": "applied", "2": "applied"}
    assert not exists(dsn, "orders")

    for name in files:
        (folder / name).unlink()
    write({"3_quick.sql": "CREATE TABLE orders ();\n"})
    assert run("up", "--dir", folder, DATABASE_URL=dsn).returncode == 0
    assert states(dsn) == {"1": "applied", "2": "applied", "3": "applied"}


HALF_DONE = {
    "interrupted": ("SELECT pg_sleep(600);", "the next `pgratchet up` goes on with it"),
    "in doubt": ("CALL work();", "the next `pgratchet up` stops, and says what to look at before `pgratchet repair 3`"),
}


@pytest.mark.parametrize("state", HALF_DONE)
def test_a_signal_in_a_file_that_runs_statement_by_statement_says_what_it_leaves(
    start: Start, run: Run, dsn: str, write: Write, state: str
) -> None:
    slow, then = HALF_DONE[state]
    asyncio.run(
        support.tell(
            dsn,
            "CREATE PROCEDURE work() LANGUAGE plpgsql AS $$ BEGIN COMMIT; PERFORM pg_sleep(600); COMMIT; END $$",
        )
    )
    sql = f"-- pgratchet: no-transaction\nCREATE TABLE orders ();\n{slow}\n"
    folder = write(USERS | EMAIL | {"3_slow.sql": sql})
    process = start("up", "--dir", folder, DATABASE_URL=dsn)
    asleep(dsn)
    process.send_signal(signal.SIGINT)
    result = ended(process)

    (said,) = report(result.stderr)
    line = f"3 {state}: 1 of 2 statements are committed; {then}"
    assert said.endswith(f"committed work stays: 2 applied, 1 {state}; {line}")
    status = run("status", "--dir", folder, DATABASE_URL=dsn).stdout.splitlines()
    assert [line for line in status if line.startswith("3 ")][1:] == [line]
    assert status[-1] == f"2 applied, 1 {state}"

    asyncio.run(support.tell(dsn, "CREATE OR REPLACE PROCEDURE work() LANGUAGE sql AS 'SELECT 1'"))
    if state == "in doubt":
        assert run("up", "--dir", folder, DATABASE_URL=dsn).returncode == 4
        given = ("repair", "3", "--again", "--reason", "it did nothing", "--dir", folder)
        assert report(run(*given, DATABASE_URL=dsn).stdout) == ["repaired 3 slow: interrupted, 1 of 2 statements done"]
    else:
        write({"3_slow.sql": sql.replace("600", "0")})
    assert run("up", "--dir", folder, DATABASE_URL=dsn).returncode == 0
    assert states(dsn) == {"1": "applied", "2": "applied", "3": "applied"}


def test_a_signal_ends_the_wait_for_the_lock(start: Start, dsn: str, folder: Path) -> None:
    async def interrupt_behind_somebody() -> "subprocess.CompletedProcess[str]":
        async with support.runner_lock(dsn):
            process = start("up", "--dir", folder, "--json", DATABASE_URL=dsn)
            await support.waiters(dsn)
            process.send_signal(signal.SIGTERM)
            return await asyncio.to_thread(ended, process)

    result = asyncio.run(interrupt_behind_somebody())

    assert (result.returncode, document(result)["error"]["signal"]) == (143, "SIGTERM")
    assert not exists(dsn, "schema_migrations")


def test_a_wrong_password_is_not_shown(run: Run, server: embedded.Server, folder: Path) -> None:
    wrong = server.dsn.replace(server.password, SECRET)
    for arguments in (("up",), ("status", "--json"), ("up", "-v", "--budget", "0.2")):
        result = run(*arguments, "--dir", folder, DATABASE_URL=wrong)
        assert result.returncode == 2
        assert "password authentication failed" in result.stderr
        assert SECRET not in result.stdout + result.stderr


@pytest.mark.parametrize("character", "/#@%?:[]&,= '\"")
@pytest.mark.parametrize("place", ["{}h1dden", "h1d{}den", "1{}h1dden", "h1dden{}"])
def test_a_password_with_a_special_character_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, character: str, place: str
) -> None:
    # In this process, as there are many; the user is called localhost because that is what some are taken for.
    password = place.format(character)
    dsn = f"postgresql://localhost:{password}@127.0.0.1:1/nothing"
    monkeypatch.setattr(sys, "argv", ["pgratchet", "check", "-v", "--dir", str(folder), "--dsn", dsn])
    with pytest.raises(SystemExit) as end:
        main()
    output = capsys.readouterr()

    assert (end.value.code, output.out) == (2, "")
    assert "error: " in output.err
    assert not any(part in output.err for part in (password, "h1d", "den"))


def test_a_server_that_refuses_does_not_get_the_password_shown(run: Run, folder: Path) -> None:
    url = f"postgresql://somebody:{SECRET}@127.0.0.1:1/nothing"
    for arguments in (("status",), ("check", "--json"), ("wait", "-v", "--budget", "0.2", "--json")):
        result = run(*arguments, "--dir", folder, DATABASE_URL=url)
        assert result.returncode in {2, 5}
        assert "Connect call failed" in result.stderr
        assert SECRET not in result.stdout + result.stderr
