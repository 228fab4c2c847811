import inspect
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
import typer
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from pgratchet.cli import interruption, program, reports, settings, troubles
from pgratchet.cli.commands import COMMANDS
from pgratchet.cli.interruption import InterruptedBySignalError
from pgratchet.core.errors import (
    BehindError,
    BudgetExceededError,
    ConnectionLostError,
    FilesError,
    ForeignTableError,
    HistoryError,
    MigrationFailedError,
    ScriptError,
    ServerError,
    UsageError,
)
from pgratchet.core.masking import discreet
from pgratchet.core.model import (
    Adoption,
    Destination,
    Direction,
    Entry,
    Failure,
    Finished,
    HistoryRow,
    Kind,
    Migration,
    Mode,
    Plan,
    Problem,
    RecordState,
    Script,
    Source,
    State,
    Step,
    Verdict,
)
from pgratchet.files.layouts.own import own
from pgratchet.runs import excerpts

UNCONNECTED = Destination(None, None, None, "public.schema_migrations")
DSN = "postgresql://somebody@nowhere/nothing"
ARGUMENTS = {"new": ["add users"]}
"""The arguments that a command needs."""


@dataclass
class FakeMigrator:
    """Remembers how it was made and what it was asked, and answers as told."""

    answers: dict[str, Any] = field(default_factory=dict)
    made: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    destination: Destination = UNCONNECTED

    def __call__(self, *arguments: Any, **options: Any) -> "FakeMigrator":
        self.made.append((arguments, options))
        return self

    def __getattr__(self, verb: str) -> Any:
        async def answer(*arguments: Any, **options: Any) -> Any:
            self.asked.append((verb, arguments, options))
            result = self.answers.get(verb, Plan(()) if verb == "plan" else ())
            if isinstance(result, Exception):
                raise result
            return result

        return answer


@pytest.fixture(autouse=True)
def _nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in os.environ:
        if name.startswith("PGRATCHET_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeMigrator:
    fake = FakeMigrator()
    monkeypatch.setattr(settings, "Migrator", fake)
    return fake


def invoke(*arguments: str, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner(env={"DATABASE_URL": DSN, **(env or {})}).invoke(program.app, arguments)


def command(name: str) -> Any:
    group: Any = typer.main.get_command(program.app)
    return group.get_command(None, name)


def lines(result: Result) -> list[str]:
    return result.stdout.splitlines()


def finished(version: str, direction: Direction = Direction.UP) -> Finished:
    return Finished(version, f"name{version}", direction, 2, 0.0125)


def failure(**more: Any) -> Failure:
    return Failure("7", "add_email", Direction.UP, "m/7_add_email.sql", 'relation "nope" does not exist', **more)


def migration(version: str, name: str) -> Migration:
    return Migration(version, (int(version),), name, Kind.SQL, "00", Source(f"m/{version}_{name}.sql", ""))


def row(version: str, name: str, **more: Any) -> HistoryRow:
    values: dict[str, Any] = dict.fromkeys(HistoryRow._fields) | {
        "version": version,
        "name": name,
        "kind": "sql",
        "state": RecordState.APPLIED,
        "statements_done": 1,
        "statements_total": 1,
    }
    return HistoryRow(**(values | more))


def test_the_commands_are_these() -> None:
    assert list(COMMANDS) == ["up", "down", "redo", "status", "check", "wait", "plan", "new", "adopt", "repair"]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_is_a_coroutine_function(name: str) -> None:
    callback = command(name).callback

    while callback is not None:
        assert not inspect.iscoroutinefunction(callback)
        callback = getattr(callback, "__wrapped__", None)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_common_options(name: str) -> None:
    options = {option for parameter in command(name).params for option in parameter.opts}

    assert {"--dsn", "--dir", "--table", "--json", "--verbose"} <= options


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_explained(name: str) -> None:
    result = invoke(name, "--help")

    assert result.exit_code == 0
    assert invoke(name, "-h").output == result.output
    assert all(parameter.help for parameter in command(name).params if parameter.param_type_name == "option")


def test_no_secret_is_in_the_help() -> None:
    result = invoke("up", "--help", env={"PGRATCHET_DSN": "postgresql://somebody:h1dden@nowhere/nothing"})

    assert "PGRATCHET_DSN" in result.stdout
    assert "h1dden" not in result.output


def test_the_help_is_shown_where_no_command_is_given() -> None:
    result = invoke()

    assert result.exit_code == 2
    assert result.output == invoke("-h").output == invoke("--help").output
    assert all(f"  {name} " in result.output for name in COMMANDS)
    assert "..." not in result.output.partition("Commands:")[2]


def test_the_version_is_shown() -> None:
    assert invoke("--version").stdout.startswith("pgratchet ")


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["up"], ("up", (None,), {})),
        (["up", "--to", "7"], ("up", ("7",), {})),
        (["up", "--dry-run"], ("plan", (None,), {})),
        (["up", "--rehearse", "--to", "7"], ("rehearse", ("7",), {})),
        (["down"], ("down", (None,), {"steps": None})),
        (["down", "--to", "0"], ("down", ("0",), {"steps": None})),
        (["down", "--steps", "2"], ("down", (None,), {"steps": 2})),
        (["redo"], ("redo", (1,), {})),
        (["redo", "--steps", "3"], ("redo", (3,), {})),
        (["status"], ("status", (), {})),
        (["check"], ("check", (), {})),
        (["wait"], ("wait", (), {})),
        (["plan"], ("plan", (None,), {})),
        (["plan", "--to", "7"], ("plan", ("7",), {})),
    ],
)
def test_a_command_asks_the_migrator_once(fake: FakeMigrator, arguments: list[str], asked: object) -> None:
    result = invoke(*arguments)

    assert (result.exit_code, result.stderr) == (0, "")
    assert fake.asked == [asked]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {"dry_run": True, "skip_failed": False}),
        (["--yes", "--skip-failed"], {"dry_run": False, "skip_failed": True}),
    ],
)
def test_adopt_does_nothing_without_a_yes(fake: FakeMigrator, arguments: list[str], options: object) -> None:
    fake.answers["adopt"] = Adoption("public.a", "public.b", ("1",), (), (), (), dry_run=not arguments)

    assert invoke("adopt", "--source", "public.a", *arguments).exit_code == 0
    assert fake.asked == [("adopt", ("public.a",), options)]


def test_new_needs_no_dsn(tmp_path: Path) -> None:
    result = CliRunner().invoke(program.app, ["new", "add users", "--dir", "m"])

    assert (result.exit_code, result.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["001_add_users.down.sql", "001_add_users.sql"]
    assert lines(result) == ["created m/001_add_users.sql", "created m/001_add_users.down.sql"]


def test_new_writes_python_where_asked() -> None:
    result = invoke("new", "add users", "--python", "--json")

    assert json.loads(result.stdout) == {"ok": True, "created": ["migrations/versions/001_add_users.py"]}


def test_a_dry_run_is_no_rehearsal(fake: FakeMigrator) -> None:
    assert invoke("up", "--dry-run", "--rehearse").exit_code == 2
    assert fake.asked == []


def test_the_defaults_without_settings_are_the_librarys(fake: FakeMigrator) -> None:
    invoke("up")

    assert fake.made == [((DSN, "migrations/versions"), {})]


EVERYTHING = {
    "layout": "pgratchet",
    "table": "a.b",
    "budget": 1.5,
    "connect_budget": 30.0,
    "wait_for": "database",
    "lock_timeout": 2.0,
    "statement_timeout": 3.0,
    "allow_late": True,
    "strict": True,
    "allow_empty": True,
    "readers": ["web", "worker"],
    "journal": "j.jsonl",
}


def test_every_setting_can_be_a_flag(fake: FakeMigrator) -> None:
    flags = "--dsn postgresql:///x --dir d --table a.b --budget 1500ms --lock-timeout 2 --statement-timeout 3s"
    more = "--allow-late --layout pgratchet --strict --allow-empty --reader web --reader worker --journal j.jsonl"
    result = invoke("up", *flags.split(), *more.split(), "--connect-budget", "30s", "--wait-for", "database")

    assert result.exit_code == 0
    assert fake.made == [(("postgresql:///x", "d"), EVERYTHING | {"layout": own})]


def test_every_setting_can_be_a_variable(fake: FakeMigrator) -> None:
    values = {"dsn": "postgresql:///x", "dir": "d", **EVERYTHING, "readers": "web worker"}
    result = invoke("up", env={f"PGRATCHET_{name.upper()}": str(value) for name, value in values.items()})

    assert result.exit_code == 0
    assert fake.made == [(("postgresql:///x", "d"), EVERYTHING | {"layout": own})]


def test_every_setting_can_stand_in_the_project(fake: FakeMigrator, tmp_path: Path) -> None:
    values = {"dsn": "postgresql:///x", "dir": "d", **EVERYTHING}
    toml = "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
    (tmp_path / "pyproject.toml").write_text(f"[tool.pgratchet]\n{toml}\n")
    result = CliRunner().invoke(program.app, ["up"])

    assert result.exit_code == 0
    assert fake.made == [(("postgresql:///x", "d"), EVERYTHING | {"layout": own})]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("500ms", 0.5), ("2m", 120), ("1.5 min", 90), ("1h", 3600), (" 7 ", 7), (".5", 0.5), ("0", 0)],
)
@pytest.mark.parametrize("name", settings.DURATIONS)
def test_a_duration_may_have_a_unit_wherever_it_is_given(
    fake: FakeMigrator, tmp_path: Path, name: str, text: str, seconds: float
) -> None:
    invoke("up", f"--{name.replace('_', '-')}", text)
    invoke("up", env={f"PGRATCHET_{name.upper()}": text})
    (tmp_path / "pyproject.toml").write_text(f"[tool.pgratchet]\n{name} = '{text}'\n")
    invoke("up")

    assert [options for _, options in fake.made] == [{name: seconds}] * 3


@pytest.mark.parametrize(
    "text", ["soon", "5 parsecs", "-1s", "1e3", "5.", "1.2.3s", "s", "nan", "25d", "597h", "10s 5ms"]
)
def test_a_text_that_is_no_duration_is_refused_with_some_that_are(fake: FakeMigrator, text: str) -> None:
    result = invoke("up", "--budget", text)

    assert result.exit_code == 2
    assert result.stderr.startswith("error: --budget (PGRATCHET_BUDGET) must be a number of seconds, from 0 to")
    assert "500ms, 10s or 2m" in result.stderr
    assert fake.made == []


def test_a_layout_that_nobody_knows_is_refused_with_those_that_are_known(fake: FakeMigrator) -> None:
    for arguments in (["up"], ["new", "add users"]):
        result = invoke(*arguments, "--layout", "flyway")

        assert result.exit_code == 2
        assert "--layout (PGRATCHET_LAYOUT) is 'flyway'; it must be one of pgratchet" in result.stderr
    assert fake.made == []


def test_flags_come_before_variables_and_those_before_the_project(fake: FakeMigrator, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pgratchet]\ndsn = "postgresql:///x"\ndir = "p"\ntable = "p"\nstrict = true\n'
    )
    invoke("status", "--table", "f", env={"PGRATCHET_TABLE": "v", "PGRATCHET_DIR": "v"})
    invoke("up", "--no-strict", env={"PGRATCHET_DSN": "postgresql:///y"})

    assert fake.made == [
        ((DSN, "v"), {"table": "f", "strict": True}),
        (("postgresql:///y", "p"), {"table": "p", "strict": False}),
    ]


def test_the_three_ways_to_give_a_dsn_are_named_where_none_is_given(fake: FakeMigrator) -> None:
    result = CliRunner().invoke(program.app, ["up"])

    assert (result.exit_code, result.stdout) == (2, "")
    assert all(way in result.stderr for way in ("--dsn", "PGRATCHET_DSN", "DATABASE_URL", "[tool.pgratchet]"))
    assert fake.made == []


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("tabel = 1", "unknown setting 'tabel' under [tool.pgratchet] in pyproject.toml; did you mean 'table'?"),
        (
            "xyz = 1",
            "unknown setting 'xyz' under [tool.pgratchet] in pyproject.toml; known are allow_empty, allow_late,",
        ),
        ("strict = 1", "'strict' under [tool.pgratchet] in pyproject.toml must be true or false"),
        ("budget = true", "'budget' under [tool.pgratchet] in pyproject.toml must be a number of seconds"),
        ("budget = -1", "'budget' under [tool.pgratchet] in pyproject.toml must be a number of seconds"),
        ('readers = "web"', "'readers' under [tool.pgratchet] in pyproject.toml must be a list of strings"),
        ("dsn = ", "cannot read pyproject.toml: Invalid value"),
        ("a = '\udcff'", "cannot read pyproject.toml: 'utf-8' codec"),
    ],
)
def test_a_wrong_setting_in_the_project_is_named(fake: FakeMigrator, tmp_path: Path, toml: str, message: str) -> None:
    text = f"[tool.pgratchet]\n{toml}\n"
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8", errors="surrogateescape")
    result = invoke("up")

    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert fake.made == []


def test_a_project_that_does_not_mention_us_is_not_parsed(fake: FakeMigrator, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("this is no TOML\n")

    assert invoke("up").exit_code == 0
    assert len(fake.made) == 1


def test_a_project_file_that_cannot_be_read_is_named(fake: FakeMigrator, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").mkdir()

    assert (invoke("up").exit_code, fake.made) == (2, [])


def test_a_run_says_what_it_did_step_by_step(fake: FakeMigrator) -> None:
    fake.answers["redo"] = (finished("7", Direction.DOWN), finished("7"))

    assert lines(invoke("redo")) == [
        "reverted 7 name7 (2 statements, 0.013 s)",
        "applied 7 name7 (2 statements, 0.013 s)",
    ]
    assert json.loads(invoke("redo", "--json").stdout) == {
        "ok": True,
        **UNCONNECTED._asdict(),
        "finished": [
            {"version": "7", "name": "name7", "direction": "down", "statements": 2, "seconds": 0.0125},
            {"version": "7", "name": "name7", "direction": "up", "statements": 2, "seconds": 0.0125},
        ],
    }


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("arguments", [["up"], ["down"], ["redo"], ["plan"], ["up", "--rehearse"]])
def test_a_run_with_nothing_to_do_says_so(arguments: list[str]) -> None:
    assert lines(invoke(*arguments)) == ["nothing to do"]


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"new", "repair"}))
def test_every_report_begins_with_the_place_if_it_is_known(fake: FakeMigrator, name: str) -> None:
    fake.destination = Destination("db", 6000, "app", "public.t")
    fake.answers["adopt"] = Adoption("public.a", "public.t", (), (), (), (), dry_run=True)
    assert lines(invoke(name))[0] == "database app at db:6000, public.t"
    for error in (ServerError("no"), InterruptedBySignalError(signal.SIGINT), LookupError("unforeseen")):
        fake.answers[name] = error
        assert invoke(name).stderr.splitlines()[0] == "database app at db:6000, public.t"
    document = json.loads(invoke(name, "--json").stdout)
    assert [document[key] for key in ("ok", "host", "port", "database", "table")] == [
        False,
        "db",
        6000,
        "app",
        "public.t",
    ]


def test_a_rehearsal_says_that_nothing_has_changed(fake: FakeMigrator) -> None:
    fake.answers["rehearse"] = (finished("7"),)

    assert lines(invoke("up", "--rehearse")) == [
        "rehearsed 7 name7 (2 statements)",
        "rolled back: nothing has changed",
    ]
    assert json.loads(invoke("up", "--rehearse", "--json").stdout)["rehearsed"][0]["version"] == "7"


def test_a_plan_says_what_would_be_done_and_how(fake: FakeMigrator) -> None:
    one, two = migration("7", "add_email"), migration("8", "index_email")
    steps = (
        Step(one, Direction.UP, Script(one.up, Mode.TRANSACTION, statements=1)),
        Step(two, Direction.UP, Script(two.up, Mode.STATEMENTS, statements=3), done=2),
    )
    fake.answers["plan"] = Plan(steps, ("mind the gap",))

    assert lines(invoke("plan")) == [
        "warning: mind the gap",
        "would apply 7 add_email (1 statement, one transaction)",
        "would apply 8 index_email (3 statements, 2 of them done already, statement by statement)",
    ]
    assert json.loads(invoke("up", "--dry-run", "--json").stdout) == {
        "ok": True,
        **UNCONNECTED._asdict(),
        "steps": [
            {
                "version": "7",
                "name": "add_email",
                "direction": "up",
                "path": "m/7_add_email.sql",
                "mode": "transaction",
                "statements": 1,
                "done": 0,
            },
            {
                "version": "8",
                "name": "index_email",
                "direction": "up",
                "path": "m/8_index_email.sql",
                "mode": "statements",
                "statements": 3,
                "done": 2,
            },
        ],
        "warnings": ["mind the gap"],
    }


MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ENTRIES = (
    Entry("1", State.APPLIED, migration("1", "users"), row("1", "users", finished_at=MOMENT, applied_by="app@host x")),
    Entry("2", State.FAILED, migration("2", "mail"), row("2", "mail", started_at=MOMENT, error="no such type (42704)")),
    Entry("10", State.PENDING, migration("10", "add_a_longer_name")),
    Entry("11", State.UNKNOWN, None, row("11", "newer", finished_at=MOMENT)),
)


def test_the_status_is_a_table_with_aligned_columns(fake: FakeMigrator) -> None:
    fake.answers["status"] = ENTRIES

    assert lines(invoke("status")) == [
        "version  state    name               when                      by",
        "1        applied  users              2026-01-02 03:04:05+0000  app@host x",
        "2        failed   mail               2026-01-02 03:04:05+0000  -",
        "10       pending  add_a_longer_name  -                         -",
        "11       unknown  newer              2026-01-02 03:04:05+0000  -",
        "2 failed: no such type (42704)",
        "1 applied, 1 failed, 1 pending, 1 unknown",
    ]


def test_the_status_says_why_once_for_all_versions_that_share_a_reason(fake: FakeMigrator) -> None:
    reasons = {"1": "adopted from public.a", "2": "looked, it is there (skip)", "3": "adopted from public.a", "4": None}
    fake.answers["status"] = tuple(
        Entry(version, State.APPLIED, None, row(version, "x", reason=reason)) for version, reason in reasons.items()
    )

    assert lines(invoke("status"))[-3:] == [
        "1, 3: adopted from public.a",
        "2: looked, it is there (skip)",
        "4 applied",
    ]
    entries = json.loads(invoke("status", "--json").stdout)["entries"]
    assert [entry["reason"] for entry in entries] == list(reasons.values())


def test_the_status_leaves_out_its_last_columns_where_the_terminal_is_narrow(fake: FakeMigrator) -> None:
    fake.answers["status"] = ENTRIES

    for columns, heading in {
        "73": ["version", "state", "name", "when", "by"],
        "72": ["version", "state", "name", "when"],
        "61": ["version", "state", "name", "when"],
        "60": ["version", "state", "name"],
    }.items():
        said = lines(invoke("status", env={"COLUMNS": columns}))
        assert said[0].split() == heading
        assert max(map(len, said)) <= int(columns)
    assert lines(invoke("status", env={"COLUMNS": "32"}))[:4] == [
        "version  state    name",
        "1        applied  users",
        "2        failed   mail",
        "10       pending  add_a_longe...",
    ]


def test_the_status_of_a_pending_file_tells_nothing_of_an_attempt_at_another_file(fake: FakeMigrator) -> None:
    failed = {"state": RecordState.FAILED, "statements_done": 0, "finished_at": MOMENT, "applied_by": "x@host"}
    other = row("1", "another", error="no table", **failed)
    fake.answers["status"] = (Entry("1", State.PENDING, migration("1", "users"), other),)

    said = lines(invoke("status"))

    assert said[1].split() == ["1", "pending", "users", "-", "-"]
    assert "no table" not in "".join(said)


@pytest.mark.parametrize("name", ["n" * 100, "日本" * 25, "e\u0301" * 50, "क्षि" * 20, "x" * 56 + "日本語"])
def test_every_line_of_the_status_fits_the_terminal_by_its_width(fake: FakeMigrator, name: str) -> None:
    other = row("2", "users", finished_at=MOMENT, applied_by="somebody@host", error=f"it\tfailed: {name} {'why ' * 40}")
    fake.answers["status"] = (
        Entry("1", State.APPLIED, migration("1", name), row("1", name, finished_at=MOMENT, reason="word " * 40)),
        Entry("2", State.FAILED, migration("2", "users"), other._replace(checksum="00")),
    )
    heading, one, two, *said, total = lines(invoke("status"))

    assert max(map(cell_len, (heading, one, two, total))) <= 80
    assert cell_len(one[: one.index(name[:20])]) == two.index("users") == heading.index("name")
    assert said == [f"2 failed: it\\tfailed: {name} {'why ' * 40}", f"1: {'word ' * 40}"]
    # As in a terminal: nothing of the texts is lost.
    folded = reports._folded(said, 80)
    assert max(map(cell_len, folded)) <= 80
    assert "".join("".join(folded).split()) == "".join("".join(said).split())


def test_long_lists_of_versions_are_ranges_of_neighbours_in_the_directory(fake: FakeMigrator) -> None:
    stamps = [f"202601{day:02}" for day in range(1, 10)]
    fake.answers["status"] = tuple(
        Entry(
            stamp, State.APPLIED, None, row(stamp, "x", reason=None if stamp == stamps[4] else "adopted from public.a")
        )
        for stamp in stamps
    )
    fake.answers["check"] = BehindError([*stamps[:4], *stamps[6:8]], order=stamps)
    steps = [finished(str(version)) for version in range(1, 58)]
    fake.answers["up"] = MigrationFailedError(failure(), steps)
    fake.answers["redo"] = MigrationFailedError(
        failure(), [finished(each, Direction.DOWN) for each in "9876"] + steps[:2]
    )
    known = tuple(map(str, range(1, 213)))
    there = known[:3] + known[4:]
    fake.answers["adopt"] = Adoption("public.a", "public.b", there, (), (), (), dry_run=True, versions=known)

    assert f"{stamps[0]} to {stamps[3]}, {stamps[5]} to {stamps[8]}: adopted from public.a" in lines(invoke("status"))
    assert invoke("check").stderr == (
        f"error: 6 migration(s) pending: {stamps[0]} to {stamps[3]}, {stamps[6]}, {stamps[7]}\n"
    )
    assert json.loads(invoke("check", "--json").stdout)["error"]["versions"] == [*stamps[:4], *stamps[6:8]]
    assert "finished before it: 1 to 57; they stay" in invoke("up").stderr
    assert "finished before it: down 9 to 6, up 1, 2; they stay" in invoke("redo").stderr
    assert lines(invoke("adopt"))[0] == "would adopt, from public.a into public.b: 1 to 3, 5 to 212"


@pytest.mark.parametrize("verdict", Verdict)
def test_a_repair_takes_one_verdict_and_a_reason(fake: FakeMigrator, verdict: Verdict) -> None:
    fake.answers["repair"] = Entry("7", State.INTERRUPTED, None, row("7", "add_email", state=RecordState.RUNNING))

    said = invoke("repair", "7", f"--{verdict}", "--reason", "I looked")
    as_json = invoke("repair", "7", f"--{verdict}", "--reason", "I looked", "--json")

    assert fake.asked == [("repair", ("7", verdict, "I looked"), {})] * 2
    assert lines(said) == ["repaired 7 add_email: interrupted, 1 of 1 statements done"]
    assert json.loads(as_json.stdout)["entry"]["state"] == "interrupted"


@pytest.mark.parametrize(
    "arguments",
    [
        ["7", "--reason", "why"],
        ["7", "--again", "--skip", "--reason", "why"],
        ["7", "--applied"],
        ["--applied", "--reason", "why"],
    ],
)
def test_a_repair_without_a_version_or_one_verdict_or_a_reason_is_wrong_use(
    fake: FakeMigrator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", DSN)

    assert main(monkeypatch, "repair", *arguments) == 2
    assert capsys.readouterr().err
    assert fake.asked == []


@pytest.mark.usefixtures("fake")
def test_the_status_of_nothing_is_one_line() -> None:
    assert lines(invoke("status")) == ["no migrations"]


def test_the_status_as_json_has_both_sides(fake: FakeMigrator) -> None:
    fake.answers["status"] = ENTRIES[1:3]
    failed, pending = json.loads(invoke("status", "--json").stdout)["entries"]

    assert failed == {
        "version": "2",
        "state": "failed",
        "name": "mail",
        "path": "m/2_mail.sql",
        "when": "2026-01-02T03:04:05+00:00",
        "by": None,
        "error": "no such type (42704)",
        "reason": None,
        "statements_done": 1,
        "statements_total": 1,
    }
    assert (pending["state"], pending["when"], pending["statements_done"]) == ("pending", None, None)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("name", ["check", "wait"])
def test_a_schema_that_is_there_is_one_line(name: str) -> None:
    assert lines(invoke(name)) == ["everything is applied"]
    assert json.loads(invoke(name, "--json").stdout) == {"ok": True, **UNCONNECTED._asdict()}


def test_an_adoption_says_what_becomes_of_every_row(fake: FakeMigrator) -> None:
    adoption = Adoption("public.a", "public.b", ("2", "3"), ("1",), ("4",), ("3",), dry_run=True)
    fake.answers["adopt"] = adoption
    said = lines(invoke("adopt"))
    fake.answers["adopt"] = adoption._replace(dry_run=False)

    assert said == [
        "would adopt, from public.a into public.b: 2, 3",
        "among them without a file here: 3",
        "recorded already: 1",
        "left out, because they had failed: 4",
        "nothing has changed; --yes does it",
    ]
    assert lines(invoke("adopt", "--yes"))[0] == "adopted, from public.a into public.b: 2, 3"
    assert json.loads(invoke("adopt", "--yes", "--json").stdout) == {
        "ok": True,
        **UNCONNECTED._replace(table="public.b")._asdict(),
        "source": "public.a",
        "target": "public.b",
        "adopted": ["2", "3"],
        "already": ["1"],
        "skipped": ["4"],
        "unknown": ["3"],
        "dry_run": False,
        "versions": [],
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MigrationFailedError(failure()), 1),
        (UsageError("no"), 2),
        (ServerError("no"), 2),
        (ConnectionLostError("no"), 2),
        (BehindError(["7"]), 3),
        (HistoryError("no", ["7"]), 4),
        (ForeignTableError("no"), 4),
        (FilesError([Problem("7.sql", "is wrong", "fix it")]), 4),
        (ScriptError("no", 0), 4),
        (BudgetExceededError("no"), 5),
        (InterruptedBySignalError(signal.SIGINT), 130),
        (InterruptedBySignalError(signal.SIGTERM), 143),
    ],
)
def test_an_error_has_its_exit_code_and_stands_on_stderr(fake: FakeMigrator, error: Exception, code: int) -> None:
    fake.answers["up"] = error
    plain, as_json = invoke("up"), invoke("up", "--json")

    assert (plain.exit_code, plain.stdout) == (code, "")
    assert plain.stderr
    assert "Traceback" not in plain.output
    assert (as_json.exit_code, as_json.stderr) == (code, plain.stderr)
    document = json.loads(as_json.stdout)
    assert document["ok"] is False
    assert (document["error"]["type"], document["error"]["message"]) == (type(error).__name__, str(error))


def test_the_interruption_is_one_line(fake: FakeMigrator) -> None:
    fake.answers["up"] = InterruptedBySignalError(signal.SIGTERM)

    assert len(invoke("up").stderr.splitlines()) == 1
    assert json.loads(invoke("up", "--json").stdout)["error"]["signal"] == "SIGTERM"


def test_every_problem_of_the_files_is_a_line_and_they_are_counted(fake: FakeMigrator) -> None:
    fake.answers["plan"] = FilesError(
        [Problem("m/7.sql", "is wrong", "fix it"), Problem("m/8.sql", "is wrong too", "fix it", 3)]
    )

    assert invoke("plan").stderr.splitlines() == [
        "m/7.sql: is wrong; fix it",
        "m/8.sql:3: is wrong too; fix it",
        "2 problems",
    ]
    assert json.loads(invoke("plan", "--json").stdout)["error"]["problems"] == [
        {"path": "m/7.sql", "message": "is wrong", "cure": "fix it", "line": None},
        {"path": "m/8.sql", "message": "is wrong too", "cure": "fix it", "line": 3},
    ]


def test_every_disagreement_is_a_line(fake: FakeMigrator) -> None:
    fake.answers["check"] = HistoryError("7 was edited\n8 is late", ["7", "8"])

    assert invoke("check").stderr.splitlines() == ["error: 7 was edited", "error: 8 is late"]
    assert json.loads(invoke("check", "--json").stdout)["error"]["versions"] == ["7", "8"]


def test_a_failed_migration_is_shown_where_it_failed(fake: FakeMigrator) -> None:
    place = failure(
        sqlstate="42P01",
        detail="a detail",
        hint="a hint",
        context="a context",
        line=9,
        column=13,
        statement=2,
        statements=3,
        excerpt=((8, "SELECT 1;"), (9, "ALTER TABLE nope ADD x int;"), (10, ""), (11, "SELECT 2;")),
    )
    fake.answers["up"] = MigrationFailedError(place, [finished("5"), finished("6")])

    assert invoke("up").stderr.splitlines() == [
        "m/7_add_email.sql:9:13: up 7 add_email failed in statement 2 of 3",
        "",
        "   8 | SELECT 1;",
        ">  9 | ALTER TABLE nope ADD x int;",
        "     |             ^",
        "  10 |",
        "  11 | SELECT 2;",
        "",
        'SQLSTATE 42P01: relation "nope" does not exist',
        "detail: a detail",
        "hint: a hint",
        "context: a context",
        "",
        "finished before it: 5, 6; they stay",
        "fix the file and run `pgratchet up` again: the failed migration was rolled back",
    ]


class MuteError(Exception):
    def __str__(self) -> str:
        raise LookupError


def test_an_error_that_nobody_expects_is_told_with_all_errors_inside_of_it(fake: FakeMigrator) -> None:
    group = ExceptionGroup("inner", [ValueError("one"), MuteError()])
    group.exceptions[0].__cause__ = KeyError("cause")
    fake.answers["up"] = ExceptionGroup("outer", [group, ValueError("two")])
    result = invoke("up")

    assert result.exit_code == 6
    inside = ("outer", "ValueError: one", "KeyError: 'cause'", "MuteError", "ValueError: two")
    assert [text for text in inside if text not in result.stderr.splitlines()[0]] == []
    assert json.loads(invoke("up", "--json").stdout)["error"]["message"].endswith("ValueError: two")


def test_a_failed_migration_as_json_has_everything(fake: FakeMigrator) -> None:
    place = failure(sqlstate="42P01", line=9, column=13, excerpt=((9, "ALTER TABLE nope ADD x int;"),))
    fake.answers["up"] = MigrationFailedError(place, [finished("6")])
    document = json.loads(invoke("up", "--json").stdout)

    assert [step["version"] for step in document["finished"]] == ["6"]
    assert document["error"]["failure"] == json.loads(json.dumps(place._asdict()))


def test_a_failure_without_a_place_names_its_file(fake: FakeMigrator) -> None:
    fake.answers["down"] = MigrationFailedError(
        failure()._replace(direction=Direction.DOWN), [finished("8", Direction.DOWN)]
    )

    assert invoke("down").stderr.splitlines() == [
        "m/7_add_email.sql: down 7 add_email failed",
        'relation "nope" does not exist',
        "",
        "finished before it: down 8; they stay",
        "fix the file and run `pgratchet down` again: the failed migration was rolled back",
    ]


def test_statements_before_a_failed_one_are_said_to_stay_where_they_do() -> None:
    class Stepwise(Failure):
        mode = Mode.STATEMENTS

    report = troubles.report(MigrationFailedError(Stepwise(*failure())))

    assert report.lines[-1].endswith(": the statements before this one stay committed, and the run goes on after them")


def caret(text: str, column: int) -> list[str]:
    return list(excerpts.drawn([(1, text)], 1, column))


@pytest.mark.parametrize(
    ("text", "column", "below"),
    [
        ("SELECT nope", 8, "    |        ^"),
        ("\tSELECT\tnope", 9, "    | \t      \t^"),
        ("'日本', nope", 7, "    |         ^"),
        ("'e\u0301', nope", 7, "    |      ^"),
        ("nope", 1, "    | ^"),
        ("nope", 5, "    |     ^"),
    ],
)
def test_the_caret_stands_under_its_column(text: str, column: int, below: str) -> None:
    assert caret(text, column) == [f"> 1 | {text}", below]


def test_a_very_long_line_is_shown_around_the_caret() -> None:
    line, below = caret("x" * 10_000 + "nope" + "y" * 10_000, 10_001)

    assert len(line) < 200
    assert line[below.index("^") :].startswith("nopey")
    assert line.startswith("> 1 | ...x")
    assert line.endswith("y...")


def test_a_line_cannot_control_the_terminal() -> None:
    assert caret("SELECT '\x1b[2J', nope", 17) == [
        "> 1 | SELECT '\N{REPLACEMENT CHARACTER}[2J', nope",
        "    |                 ^",
    ]


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pgratchet", *arguments])
    with pytest.raises(SystemExit) as error:
        program.main()
    return int(error.value.code or 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["stauts"],
        ["up", "--budgte", "3"],
        ["down", "--steps", "0"],
        ["status", "now"],
        ["new"],
        ["--dsn", "x", "up"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(monkeypatch, *arguments) == 2
    plain = capsys.readouterr()
    assert main(monkeypatch, *arguments, "--json") == 2
    as_json = capsys.readouterr()

    assert plain.out == ""
    assert "Error: " in plain.err
    assert json.loads(as_json.out)["error"]["type"] == "UsageError"


def test_a_misspelt_command_is_recognised(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    main(monkeypatch, "stauts")

    assert "there is no command 'stauts'; did you mean 'status'?" in capsys.readouterr().err


def test_an_interrupt_before_there_is_any_work_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "app", interrupted)

    assert main(monkeypatch, "up") == 130
    assert capsys.readouterr().out == ""


SECRETS = ("h1dden", "h1d den", "h1d@den", "h1d/den", "h1d#den", "h1d?den", "h1d%den", "h1d'den", "h1d://den")


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "arguments",
    [
        ["{}"],
        ["up", "{}"],
        ["up", "--json", "{}", "{}"],
        ["up", "--budget", "{}"],
        ["up", "--to", "{}"],
        ["up", "--table", "{}"],
        ["up", "--dir", "{}"],
        ["down", "--steps", "{}"],
        ["adopt", "--source", "{}"],
        ["repair", "{}", "--applied", "--reason", "why"],
        ["status", "--dsn{}"],
    ],
)
def test_a_dsn_in_a_wrong_place_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], secret: str, arguments: list[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    url = f"postgresql://somebody:{secret}@nowhere/nothing"

    assert main(monkeypatch, *(argument.format(url) for argument in arguments)) == 2
    output = "".join(capsys.readouterr())
    assert "h1d" not in output
    assert "den" not in output.replace("hidden", "")


@pytest.mark.parametrize("secret", SECRETS)
def test_a_dsn_that_is_none_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], secret: str
) -> None:
    for dsn in (f"postgresql:/somebody:{secret}@nowhere", f"host=nowhere password={secret}", f"mysql://a:{secret}@b/c"):
        assert main(monkeypatch, "up", "--verbose", "--dsn", dsn) == 2
        output = "".join(capsys.readouterr())
        assert "postgresql://user:password@host" in output
        assert "h1d" not in output


def test_a_password_among_the_words_of_a_wrong_command_line_is_not_repeated() -> None:
    assert discreet("unexpected (host=h password=h1dden user=x)") == "unexpected (host=h password=... user=x)"


def test_logs_are_on_stderr_and_more_of_them_where_wanted(fake: FakeMigrator, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("pgratchet")

    async def up(*_: object) -> Sequence[Finished]:
        logger.info("some news")
        logger.debug("small news")
        return ()

    monkeypatch.setattr(fake, "up", up, raising=False)
    less, more = invoke("up", "--json"), invoke("up", "-v")

    assert json.loads(less.stdout) == {"ok": True, **UNCONNECTED._asdict(), "finished": []}
    assert less.stderr.endswith(" INFO some news\n")
    assert [line.partition(" ")[2] for line in more.stderr.splitlines()] == ["INFO some news", "DEBUG small news"]
    assert logger.handlers == []


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_a_signal_cancels_the_work_and_lets_it_clean_up(number: signal.Signals) -> None:
    cleaned = []
    before = signal.getsignal(number)

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await anyio.sleep(10)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
                cleaned.append(True)

    with pytest.raises(InterruptedBySignalError) as error:
        interruption.run(work)

    assert (error.value.signal, cleaned) == (number, [True])
    assert signal.getsignal(number) is before


def test_work_that_is_done_when_the_signal_comes_is_done() -> None:
    async def work() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return "done"

    assert interruption.run(work) == "done"


def test_an_error_of_the_work_comes_as_it_is() -> None:
    async def work() -> None:
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        interruption.run(work)


def test_an_interrupt_ends_the_work_also_if_the_loop_takes_no_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep(10)

    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("asyncio.unix_events._UnixSelectorEventLoop.add_signal_handler", refuse)
    with pytest.raises(InterruptedBySignalError) as error:
        interruption.run(work)

    assert error.value.signal is signal.SIGINT
