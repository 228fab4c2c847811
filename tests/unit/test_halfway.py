from typing import Any

import pytest

from pgratchet.core.errors import HistoryError, UsageError
from pgratchet.core.model import (
    Direction,
    Entry,
    HistoryRow,
    Kind,
    Migration,
    Options,
    RecordState,
    Source,
    State,
    Step,
    Verdict,
)
from pgratchet.core.plan.halfway import (
    Begun,
    Settled,
    cursor_of,
    doubt,
    doubtful,
    other_session,
    refuse_unrecoverable,
)
from pgratchet.core.plan.verdicts import settle
from pgratchet.core.sql.scripts import compile_script, digests, session_settings

HALFWAY = (RecordState.RUNNING, RecordState.REVERTING)
WHOLE = (Verdict.APPLIED, Verdict.NOT_APPLIED)


def migration(text: str = "SELECT 1") -> Migration:
    return Migration("7", (7,), "work", Kind.SQL, "sum", Source("m/7_work.sql", text, Options(no_transaction=True)))


def row(state: RecordState = RecordState.RUNNING, **changes: Any) -> HistoryRow:
    values: dict[str, Any] = dict.fromkeys(HistoryRow._fields)
    values |= {"version": "7", "name": "work", "state": state, "statements_done": 1, "statements_total": 3}
    values |= {"applied_by": "app@host", "backend_pid": 4711}
    return HistoryRow(**(values | changes))


def step(second: str, *, edited: str | None = None, there: str = "{4,2} ") -> Step:
    """Return a step whose second statement is in doubt."""
    begun = compile_script(migration(f"SELECT 1;\n{second}").up, Kind.SQL, Direction.UP)
    before, after = digests(begun)
    cursor = f"{before} >{after} {there}2026-03-01 12:30:15+00"
    script = compile_script(migration(f"SELECT 1;\n{edited or second}").up, Kind.SQL, Direction.UP)
    return Step(migration(), Direction.UP, script, 1, row(cursor=cursor))


@pytest.mark.parametrize(
    ("text", "begun", "unmarked", "counted"),
    [
        ("a x = 1; y>b some time", Begun("b", "some time"), "a x = 1; y", "b x = 1; y"),
        (" >b some time", Begun("b", "some time"), " ", "b "),
        ("a>b some time", Begun("b", "some time"), "a", "b"),
        ("a>b {} some time", Begun("b", "some time", ()), "a", "b"),
        ("a>b {4,2} some time", Begun("b", "some time", (4, 2)), "a", "b"),
    ],
)
def test_a_cursor_with_a_mark_says_which_statement_is_begun(
    text: str, begun: Begun, unmarked: str, counted: str
) -> None:
    assert doubt(row(cursor=text)) == begun
    cursor = cursor_of(row(cursor=text))
    assert cursor is not None
    assert (cursor.unmarked, cursor.counted) == (unmarked, counted)


@pytest.mark.parametrize(
    ("cursor", "finished", "session"),
    [
        ("", "", None),
        ("a", "a", None),
        ("a ", "a", ""),
        ("a role = x; y", "a", "role = x; y"),
        (" role = x>b some time", "", "role = x"),
        ("a>b some time", "a", None),
    ],
)
def test_a_cursor_holds_the_digest_of_the_finished_statements_and_the_state_of_their_session(
    cursor: str, finished: str, session: str | None
) -> None:
    found = cursor_of(row(cursor=cursor))
    assert found is not None
    assert found[:2] == (finished, session)


def test_the_error_about_a_lost_session_names_the_settings_that_it_had() -> None:
    error = other_session(step("VACUUM t"), "search_path = a", "")

    assert error.versions == ("7",)
    facts = (
        "m/7_work.sql:2: statement 2 of 2 (VACUUM t)",
        "the 1 statement(s) before it",
        "It had: search_path = a. The new one has: nothing of its own.",
        "`pgratchet repair 7 --applied`",
        "`pgratchet repair 7 --not-applied`",
    )
    assert [fact for fact in facts if fact not in str(error)] == []


@pytest.mark.parametrize("cursor", [None, "", "abc"])
def test_no_statement_is_in_doubt_where_the_cursor_has_no_mark(cursor: str | None) -> None:
    assert doubt(row(cursor=cursor)) is None
    assert doubt(None) is None
    refuse_unrecoverable([step("CALL work()")._replace(over=row(cursor=cursor))])


LOOKED_UP = (
    "CREATE INDEX CONCURRENTLY i ON t (n)",
    "CREATE INDEX CONCURRENTLY ON t (n)",
    "DROP INDEX CONCURRENTLY IF EXISTS i",
    "ALTER TABLE t DETACH PARTITION p CONCURRENTLY",
)


@pytest.mark.parametrize(("text", "there"), [("VACUUM t", ""), *((text, "{4,2} ") for text in LOOKED_UP)])
def test_a_recoverable_statement_in_doubt_needs_no_person(text: str, there: str) -> None:
    refuse_unrecoverable([step(text, there=there)])


@pytest.mark.parametrize(("text", "there"), [("CALL work()", "{} "), *((text, "") for text in LOOKED_UP)])
def test_an_unrecoverable_statement_in_doubt_needs_a_person(text: str, there: str) -> None:
    with pytest.raises(HistoryError, match="statement 2 of 2"):
        refuse_unrecoverable([step("VACUUM"), step(text, there=there)])


def test_the_error_about_a_statement_in_doubt_has_all_known_facts() -> None:
    error = doubtful(step(text := "CALL work()"), "The moon is full. ")
    assert error.versions == ("7",)
    facts = (
        f"m/7_work.sql:2: statement 2 of 2 ({text})",
        "2026-03-01 12:30:15+00",
        "app@host (server process 4711)",
        "1 statement(s) before it",
        "The moon is full. ",
        "`pgratchet repair 7 --skip`",
        "`pgratchet repair 7 --again`",
    )
    assert [fact for fact in facts if fact not in str(error)] == []


def test_a_long_statement_is_told_by_its_first_words() -> None:
    assert f"(CALL work('{'x' * 49}...)" in str(doubtful(step(f"CALL\n  work('{'x' * 900}')")))


@pytest.mark.parametrize("edited", ["VACUUM u", ";"])
def test_the_statement_in_doubt_must_not_be_edited(edited: str) -> None:
    with pytest.raises(HistoryError, match=r"statement 2 of .*another statement there now"):
        refuse_unrecoverable([step("VACUUM t", edited=edited)])


def test_settings_that_last_are_those_of_the_session() -> None:
    lasts = [
        "SET work_mem = '1MB'",
        "set session search_path = a",
        "SET SESSION AUTHORIZATION a",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET ROLE a",
        "RESET ROLE",
        "RESET ALL",
        "SELECT pg_catalog.set_config('search_path', '', false)",
        "SELECT set_config('a.b', $$c$$, false)",
    ]
    passes = [
        "SET LOCAL work_mem = '1MB'",
        "SET CONSTRAINTS ALL DEFERRED",
        "SELECT set_config",
        "SELECT pg_catalog.set_config",
        "SELECT set_config('a.b', nextval('s')::text, false)",
        "SELECT set_config('a.b', 'c', true)",
        "SELECT pg_catalog.now()",
        "SELECT 1",
        "VACUUM",
    ]
    script = compile_script(migration(";\n".join(passes + lasts + ["SET a.later = 1"])).up, Kind.SQL, Direction.UP)

    assert [script.text_of(segment) for segment in session_settings(script, len(passes + lasts))] == lasts


def entry(applied: HistoryRow | None) -> Entry:
    return Entry("7", State.RUNNING, migration(), applied)


@pytest.mark.parametrize("state", HALFWAY)
def test_a_statement_in_doubt_is_counted_or_not(state: RecordState) -> None:
    doubtful = entry(row(state, cursor="a x = 1>b some time"))

    assert settle(doubtful, Verdict.SKIP) == Settled(state, 2, "b x = 1")
    assert settle(doubtful, Verdict.AGAIN) == Settled(state, 1, "a x = 1")


@pytest.mark.parametrize("state", [*HALFWAY, RecordState.FAILED])
@pytest.mark.parametrize("cursor", [None, "", "a", "a>b some time"])
def test_a_half_done_migration_is_applied_or_not(state: RecordState, cursor: str | None) -> None:
    assert settle(entry(row(state, cursor=cursor)), Verdict.APPLIED) == Settled(RecordState.APPLIED, 3)
    assert settle(entry(row(state, cursor=cursor)), Verdict.NOT_APPLIED) == Settled(RecordState.PENDING)


def test_a_pending_migration_may_have_been_applied_by_hand_and_an_applied_one_undone() -> None:
    assert settle(entry(None), Verdict.APPLIED) == Settled(RecordState.APPLIED)
    assert settle(entry(row(RecordState.PENDING)), Verdict.APPLIED) == Settled(RecordState.APPLIED, 3)
    assert settle(entry(row(RecordState.APPLIED)), Verdict.NOT_APPLIED) == Settled(RecordState.PENDING)


@pytest.mark.parametrize(
    ("applied", "verdicts", "why"),
    [
        (None, [Verdict.NOT_APPLIED], "it is pending already"),
        (row(RecordState.PENDING), [Verdict.NOT_APPLIED], "it is pending already"),
        (row(RecordState.APPLIED), [Verdict.APPLIED], "recorded as applied already"),
        (None, [Verdict.AGAIN, Verdict.SKIP], "no statement of it is in doubt$"),
        (row(RecordState.APPLIED, cursor="a"), [Verdict.AGAIN, Verdict.SKIP], "no statement of it is in doubt"),
        (row(RecordState.FAILED, cursor="a"), [Verdict.AGAIN, Verdict.SKIP], "in doubt; the next run goes on behind"),
        (row(RecordState.RUNNING, cursor=""), [Verdict.AGAIN, Verdict.SKIP], "in doubt; the next run goes on behind"),
        (row(RecordState.RUNNING), [Verdict.AGAIN], "nearest verdict is 'not-applied'"),
        (row(RecordState.RUNNING), [Verdict.SKIP], "nearest verdict is 'applied'"),
    ],
)
def test_a_verdict_that_makes_no_sense_is_refused(
    applied: HistoryRow | None, verdicts: list[Verdict], why: str
) -> None:
    for verdict in verdicts:
        with pytest.raises(HistoryError, match=why) as caught:
            settle(entry(applied), verdict)
        assert caught.value.versions == ("7",)


@pytest.mark.parametrize("verdict", Verdict)
def test_a_verdict_on_a_missing_version_is_refused(verdict: Verdict) -> None:
    with pytest.raises(UsageError, match="there is no version 7"):
        settle(Entry("7", State.PENDING), verdict)
