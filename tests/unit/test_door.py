"""Arguments are checked when users give them; an error uses the name that users know."""

import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from pgratchet import Gate, Migrator, UsageError, Verdict, gate, migrated, new
from pgratchet.cli import settings
from pgratchet.cli.options import Writing
from pgratchet.cli.program import app

pytestmark = pytest.mark.anyio

DSN = "postgresql://somebody@127.0.0.1:1/nothing"
PARAMETERS = frozenset(inspect.signature(Migrator).parameters)
SECRET = "h1dden"  # noqa: S105 - it has to look like one
WITH_SECRET = f"postgresql://somebody:{SECRET}@127.0.0.1:1/nothing"

A_NUMBER = "must be a number of seconds, from 0 to"
A_LIST = "must be a list of strings, also for one of them"
A_SWITCH = "must be true or false"
A_STRING = "must be a string"
A_PATH = "must be a path, as a string or a Path"
A_VERSION = "is no version: versions are numbers"
A_COUNT = "must be a whole number, 1 or more"
A_LOCK = "must be one of session, transaction, none"

NUMBERS = [-1, -0.001, float("nan"), float("inf"), float("-inf"), 10**5000, True, "5", b"5", [5], {}]
LISTS = ["app", "", b"app", None, 5, {"app": 1}, iter(["app"])]
SWITCHES: list[Any] = [0, 1, None, "false", "", []]
BAD: dict[tuple[str, str], list[Any]] = {
    ("budget", A_NUMBER): NUMBERS,
    ("connect_budget", A_NUMBER): NUMBERS,
    ("lock_timeout", A_NUMBER): NUMBERS,
    ("statement_timeout", A_NUMBER): NUMBERS,
    ("readers", A_LIST): LISTS,
    ("trusted_owners", A_LIST): LISTS,
    ("one of readers", A_STRING): [{"readers": ["app", 5]}, {"readers": (None,)}, {"readers": [["app"]]}],
    ("one of trusted_owners", A_STRING): [{"trusted_owners": [b"app"]}],
    ("one of readers", "at least one"): [{"readers": [""]}],
    ("allow_late", A_SWITCH): SWITCHES,
    ("strict", A_SWITCH): SWITCHES,
    ("allow_empty", A_SWITCH): SWITCHES,
    ("table", A_STRING): [None, 5, b"public.a", Path("a")],
    ("table", "write schema.name"): ["", "a.b.c", "."],
    ("wait_for", "must be one of server, database"): ["", "role", "DATABASE", None, 5, True, ["database"]],
    ("lock", A_LOCK): ["", "advisory", "SESSION", 5, True, b"session", ["session"]],
    ("journal", A_PATH): [5, True, b"journal", ["journal"]],
    ("journal", "is empty"): [""],
    ("migrations", A_PATH): [None, 5, b"migrations", ["migrations"], {}],
    ("migrations", "is empty"): [""],
    ("owner", A_STRING): [5, True, b"app", ["app"]],
    ("owner", "at least one"): [""],
    ("owner", "takes for no role"): ["none"],
    ("listener", "must be a function that takes an event"): [5, "print", [print], object()],
    ("layout", "must be a Layout"): ["own", 5, None, object()],
    ("dsn", "is empty; write postgresql://"): ["", "  ", "\n"],
    ("dsn", A_STRING): [5, b"postgresql://a/b", ["postgresql://a/b"], Path("a")],
    ("dsn", "cannot be parsed"): ["a", "host=a", "http://a/b", "postgresql:a"],
    ("direct_dsn", "is empty; write postgresql://"): [""],
    ("direct_dsn", A_STRING): [5, b"postgresql://a/b"],
    ("direct_dsn", "cannot be parsed"): ["a"],
    ("connect", "must be an async function"): [5, "connect", [print]],
    ("give either dsn or connect", ""): [{"dsn": DSN, "connect": print}, {"dsn": None}, {"dsn": "", "connect": print}],
}
"""Wrong values, by the name of the argument, and the words of the refusal."""


def bad_arguments() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for (name, words), values in BAD.items():
        for value in values:
            yield name, words, {name: value} if name in PARAMETERS else value


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        work()
    return str(caught.value)


@pytest.mark.parametrize(("name", "words", "given"), list(bad_arguments()), ids=lambda _: "")
def test_an_argument_that_cannot_be_right_is_refused_by_its_name(name: str, words: str, given: dict[str, Any]) -> None:
    said = refusal(lambda: Migrator(**({} if "connect" in given else {"dsn": DSN}) | given))

    assert said.startswith(name)
    assert words in said


def test_every_argument_is_tried() -> None:
    tried = {word for name, _ in BAD for word in name.split()} | {"connect"}

    assert tried >= PARAMETERS


@pytest.mark.parametrize("name", sorted(PARAMETERS - set(settings.DSNS)))
@pytest.mark.parametrize("form", ["{}", "{} "])
def test_a_secret_in_the_wrong_place_is_not_repeated(name: str, form: str) -> None:
    said = refusal(lambda: Migrator(**cast("Any", {"dsn": DSN, name: form.format(WITH_SECRET)})))

    assert SECRET not in said


@pytest.mark.parametrize("name", ["budget", "connect_budget", "lock_timeout", "statement_timeout"])
@pytest.mark.parametrize("value", [None, 0, 0.5, 5])
def test_a_limit_may_be_none(name: str, value: float | None) -> None:
    Migrator(DSN, **cast("Any", {name: value}))


def test_a_statement_runs_under_the_same_limits_without_a_limit_and_with_a_limit_of_zero() -> None:
    def limits(**given: Any) -> object:
        return Migrator(DSN, **given)._settings.limits

    assert limits(lock_timeout=None, statement_timeout=None) == limits(lock_timeout=0, statement_timeout=0)
    assert limits() != limits(lock_timeout=None)


@pytest.mark.parametrize(
    "roles", [["app"], ("app",), {"app"}, {"app": 1}.keys()], ids=lambda value: type(value).__name__
)
def test_several_roles_come_in_any_collection(roles: Any) -> None:
    made = Migrator(DSN, readers=roles, trusted_owners=roles)._settings

    assert (made.readers, made.history.trusted) == (("app",), ("app",))


VERSIONS: list[Any] = ["", "a", "-1", -1, True, 1.0, b"1", [1], object()]
COUNTS: list[Any] = [0, -1, True, "2", 2.0, b"2", []]


def wrong_calls() -> Iterator[tuple[str, str, Callable[[Migrator], Any]]]:
    for value in VERSIONS:
        for verb in (Migrator.up, Migrator.down, Migrator.plan, Migrator.rehearse):
            yield "to", A_VERSION, partial(verb, to=value)
        yield "version", A_VERSION, partial(Migrator.repair, version=value, verdict=Verdict.APPLIED, reason="why")
    yield "version", A_VERSION, partial(Migrator.repair, version=cast("Any", None), verdict=Verdict.SKIP, reason="why")
    for value in COUNTS:
        yield "steps", A_COUNT, partial(Migrator.down, steps=value)
        yield "steps", A_COUNT, partial(Migrator.redo, steps=value)
    yield "steps", A_COUNT, partial(Migrator.redo, steps=cast("Any", None))
    yield "give either to", "or steps", partial(Migrator.down, to=0, steps=1)
    for value in (None, 5, b"why"):
        yield "reason", A_STRING, partial(Migrator.repair, version=1, verdict=Verdict.SKIP, reason=cast("Any", value))
    for value in (None, 5, b"a"):
        yield "source", A_STRING, partial(Migrator.adopt, source=cast("Any", value))
    yield "source", "write schema.name", partial(Migrator.adopt, source="a.b.c")
    for value in SWITCHES:
        yield "dry_run", A_SWITCH, partial(Migrator.adopt, dry_run=cast("Any", value))
        yield "skip_failed", A_SWITCH, partial(Migrator.adopt, skip_failed=cast("Any", value))


@pytest.mark.parametrize(("name", "words", "call"), list(wrong_calls()), ids=lambda _: "")
async def test_a_method_refuses_what_cannot_be_right_before_it_reads_or_connects(
    tmp_path: Path, name: str, words: str, call: Callable[[Migrator], Any]
) -> None:
    events: list[object] = []
    migrator = Migrator(DSN, tmp_path / "not there", listener=events.append)
    with pytest.raises(UsageError) as caught:
        await call(migrator)

    assert str(caught.value).startswith(name)
    assert words in str(caught.value)
    assert events == []


@pytest.mark.parametrize(
    ("name", "words", "given"),
    [
        ("folder", A_PATH, {"folder": None}),
        ("folder", "is empty", {"folder": ""}),
        ("description", A_STRING, {"description": 5}),
        ("kind", "must be one of sql, python", {"kind": "perl"}),
        ("kind", "must be one of sql, python", {"kind": True}),
    ],
)
def test_new_refuses_what_cannot_be_right(tmp_path: Path, name: str, words: str, given: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"folder": tmp_path / "m", "description": "add users"} | given
    said = refusal(lambda: new(**arguments))

    assert said.startswith(name)
    assert words in said
    assert list(tmp_path.iterdir()) == []


@asynccontextmanager
async def lifespan(_: object) -> AsyncIterator[None]:
    yield


async def bare(_: object) -> AsyncIterator[None]:
    yield


async def coroutine(_: object) -> None:
    raise AssertionError


def generator(_: object) -> Iterator[None]:
    yield


MIGRATOR = Migrator(DSN)
NO_LIFESPAN = "inner must be a function that takes the application"
HOOKS: list[tuple[str, dict[str, Any]]] = [
    *((NO_LIFESPAN, {"inner": value}) for value in ("wait", "apply", 5, [lifespan], b"wait")),
    *(("inner must be an async generator that is decorated", {"inner": each}) for each in (bare, coroutine, generator)),
    ("inner is a context manager that was made already", {"inner": lifespan(None)}),
    ("mode is 'skip'; it must be one of apply, wait, check", {"mode": "skip"}),
    *(("mode is of the type", {"mode": value}) for value in (5, ["wait"], lifespan)),
    ("mode is None; it must be one of apply, wait, check", {"mode": None}),
    ("on_slow is 'serve'; it must be one of wait, serve-not-ready", {"on_slow": "serve"}),
    *((f"slow_after {A_NUMBER}", {"slow_after": value}) for value in (*NUMBERS, None)),
    *(("on_failure must be a function that takes an error", {"on_failure": value}) for value in (5, "exit", [print])),
    *(("migrator must be a Migrator", {"migrator": value}) for value in (None, DSN, lifespan)),
]
PROBE = "must be the path of a request, which begins with /"
GATES: list[tuple[str, dict[str, Any]]] = [
    *(("app must be an ASGI application", {"app": value}) for value in (None, 5, MIGRATOR)),
    *(("migrator must be a Migrator", {"migrator": value}) for value in (None, DSN, coroutine)),
    *((f"live {A_LIST}", {"live": value}) for value in ("/livez", b"/livez", None, 5)),
    (f"one of live {A_STRING}", {"live": [5]}),
    (f"one of live {PROBE}", {"live": ["livez"]}),
    *((f"ready {A_STRING}", {"ready": value}) for value in (5, True, ["/readyz"])),
    *((f"ready {PROBE}", {"ready": value}) for value in ("", "readyz")),
    *(
        ("retry_after must be a whole number, 0 or more", {"retry_after": value})
        for value in (-1, 1.5, "5", True, None)
    ),
]


@pytest.mark.parametrize(("words", "given"), HOOKS, ids=lambda _: "")
def test_the_hook_refuses_what_cannot_be_right_before_it_is_entered(words: str, given: dict[str, Any]) -> None:
    assert refusal(lambda: migrated(**({"migrator": MIGRATOR} | given))).startswith(words)


@pytest.mark.parametrize("mode", ["apply", "wait", "check"])
def test_a_mode_in_the_place_of_a_lifespan_applies_nothing(mode: Any) -> None:
    said = refusal(lambda: migrated(MIGRATOR, mode))

    assert said.startswith(NO_LIFESPAN)
    assert "mode=" in said
    with pytest.raises(TypeError):
        migrated(MIGRATOR, lifespan, mode)  # type: ignore[call-arg]  # that is the mistake


def test_the_hook_takes_all_that_makes_a_context_manager() -> None:
    for inner in (lifespan, lambda _: nullcontext(), partial(lifespan), migrated(MIGRATOR)):
        migrated(MIGRATOR, inner)


@pytest.mark.parametrize(("words", "given"), GATES, ids=lambda _: "")
def test_the_gate_refuses_what_cannot_be_right_before_it_serves(words: str, given: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"app": coroutine, "migrator": MIGRATOR} | given

    assert refusal(lambda: Gate(**arguments)).startswith(words)
    assert refusal(lambda: gate(**arguments)).startswith(words)


@pytest.fixture
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in settings.SETTINGS:
        monkeypatch.delenv(f"PGRATCHET_{name.upper()}", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)


WRONG_SETTINGS = [
    ("--dsn (PGRATCHET_DSN, DATABASE_URL)", "dsn", "host=a", "cannot be parsed"),
    ("--direct-dsn (PGRATCHET_DIRECT_DSN)", "direct_dsn", "host=a", "cannot be parsed"),
    ("--dir (PGRATCHET_DIR)", "dir", "m\n", "which has"),
    ("--table (PGRATCHET_TABLE)", "table", "a.b.c", "write schema.name"),
    ("--budget (PGRATCHET_BUDGET)", "budget", "nan", A_NUMBER),
    ("--budget (PGRATCHET_BUDGET)", "budget", "-1", A_NUMBER),
    ("--connect-budget (PGRATCHET_CONNECT_BUDGET)", "connect_budget", "-1", A_NUMBER),
    ("--lock-timeout (PGRATCHET_LOCK_TIMEOUT)", "lock_timeout", "1e10", A_NUMBER),
    ("--statement-timeout (PGRATCHET_STATEMENT_TIMEOUT)", "statement_timeout", "inf", A_NUMBER),
    ("one of --reader (PGRATCHET_READERS)", "readers", "x" * 64, "at most 63"),
    ("one of --trusted-owner (PGRATCHET_TRUSTED_OWNERS)", "trusted_owners", "x" * 64, "at most 63"),
    ("--journal (PGRATCHET_JOURNAL)", "journal", " j", "which has"),
    ("--owner (PGRATCHET_OWNER)", "owner", "none", "takes for no role"),
    ("--table (PGRATCHET_TABLE)", "table", WITH_SECRET, "holds a password"),
]


@pytest.mark.usefixtures("_project")
@pytest.mark.parametrize(("spelled", "name", "value", "words"), WRONG_SETTINGS)
def test_the_command_line_names_the_flag_and_its_variable(spelled: str, name: str, value: str, words: str) -> None:
    (flag,) = re.findall(r"--[a-z-]+", spelled)
    by_flag = CliRunner().invoke(app, ["up", *(() if name == "dsn" else ("--dsn", DSN)), flag, value])
    by_variable = CliRunner(env={"DATABASE_URL": DSN, f"PGRATCHET_{name.upper()}": value}).invoke(app, ["up"])

    for result in (by_flag, by_variable):
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {spelled} ")
        assert words in result.stderr
        assert SECRET not in result.output


@pytest.mark.usefixtures("_project")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dsn = 1", A_STRING),
        ("dsn = ''", "is empty"),
        ("dir = 1", A_PATH),
        ("budget = nan", A_NUMBER),
        ("lock_timeout = 'soon'", A_NUMBER),
        ("readers = 'web'", A_LIST),
        ("strict = 'yes'", A_SWITCH),
        ("lock = 'advisory'", A_LOCK),
        ("table = 'a.b.c'", "write schema.name"),
        (f"owner = '{WITH_SECRET}'", "holds a password"),
    ],
)
def test_the_project_file_names_the_setting(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.pgratchet]\n{line}\n")
    result = CliRunner().invoke(app, ["up"])

    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: '{line.partition(' ')[0]}' under [tool.pgratchet] in pyproject.toml ")
    assert words in result.stderr
    assert SECRET not in result.output


@pytest.mark.usefixtures("_project")
def test_a_setting_of_the_project_that_a_flag_overrides_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.pgratchet]\ntable = 'a.b.c'\n")

    assert settings.read({"table": "a.b"}) == {"table": "a.b"}


def test_every_setting_is_an_option_and_an_argument() -> None:
    options = Writing.__annotations__.keys() - {"json", "verbose"}

    assert set(settings.SETTINGS) == options == PARAMETERS - {"connect", "listener", "migrations"} | {"dir"}
