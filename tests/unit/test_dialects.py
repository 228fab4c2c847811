"""Files of another tool's dialect parse as SQL, and are refused with the place and the tool."""

import time

import pytest

from pgratchet.core.errors import FilesError
from pgratchet.core.model import Direction, Kind, Problem, Source
from pgratchet.core.sql.scripts import compile_script

CREATE, DROP = "CREATE TABLE a (n int);\n", "DROP TABLE a;\n"

MARKED = {
    "-- migrate:up": "dbmate",
    "-- migrate:up transaction:false": "dbmate",
    "--migrate:down": "dbmate",
    "-- +goose Up": "goose",
    "-- +goose StatementBegin": "goose",
    "-- +goose NO TRANSACTION": "goose",
    "--+goose down": "goose",
    "-- +migrate Up": "sql-migrate",
    "-- +migrate Up notransaction": "sql-migrate",
    "-- +micrate Down": "micrate",
    "-- rambler up": "rambler",
    "---- create above / drop below ----": "tern",
    "---- tern: disable-tx ----": "tern",
    "--! Previous: -": "graphile-migrate",
    "--! Hash: sha1:0123": "graphile-migrate",
    "--!include functions/a.sql": "graphile-migrate",
    "--! no-transaction": "graphile-migrate",
    "-- Deploy flipr:appschema to pg": "sqitch",
    "-- Revert appschema from pg": "sqitch",
    "-- Verify appschema on pg": "sqitch",
    "--liquibase formatted sql": "Liquibase",
    "-- changeset nvoxland:1 runOnChange:true": "Liquibase",
    "--rollback DROP TABLE a;": "Liquibase",
    "-- atlas:txmode none": "Atlas",
    "-- checks.sql --": "Atlas",
    "-- transactional: false": "yoyo",
    "--> statement-breakpoint": "Drizzle",
    "-- Down Migration": "node-pg-migrate",
    "-- Down Migration: drop the table": "node-pg-migrate",
    "-- down migration (takes a minute)": "node-pg-migrate",
    "--- !Downs": "another half",
    "-- //@UNDO": "another half",
    "-- ==== DOWN ====": "another half",
    "-- down": "another half",
    "-- @rollback": "another half",
    "-- migrate down": "another half",
}

HARMLESS = [
    "-- moved here from goose, whose +goose Up marks are gone",
    "-- dbmate had this as migrate:up",
    "-- migrate:up was the first line of this file once",
    "-- Up Migration",
    "-- scale the counters down",
    "-- down to the last row",
    "-- down: one step of the ladder",
    "-- Down migrations are in the other file",
    "-- Deploy this to production first",
    "-- the hash: see the wiki",
    "-- no-transactions",
    "-- pgratchet",
    "-- squawk-ignore-next-statement ban-drop-table",
    "-- atlas:nolint destructive",
    "-- {{ not a template }}",
    "/* for those who know dbmate:\n-- migrate:up\n-- migrate:down\n*/",
    "SELECT '\n-- migrate:down\n';",
    'SELECT 1 AS "\n-- +goose Down\n";',
    "SELECT $$\n-- +migrate Down\n$$, '{{ name }} ${HOME}', '{1}'::int[];",
    "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $f$\n-- Down Migration\nSELECT '${x}' $f$;",
]

TEMPLATES = ["${SCHEMA}", "{{ .Schema }}", "{% if x %}", "#{schema}", "a_${SCHEMA}", "{schema}"]


def problems(text: str, direction: Direction = Direction.UP) -> tuple[Problem, ...]:
    try:
        compile_script(Source("m/001_a.sql", text), Kind.SQL, direction)
    except FilesError as error:
        return error.problems
    return ()


@pytest.mark.parametrize(("mark", "tool"), MARKED.items(), ids=MARKED)
def test_a_mark_of_another_tool_is_refused_with_its_line_and_the_tool(mark: str, tool: str) -> None:
    for text, line in ((f"{CREATE}{mark}\n{DROP}", 2), (f"\n  {mark.lower()}  \n{DROP}", 2), (f"{mark}\n{DROP}", 1)):
        (problem,) = problems(text)
        assert (problem.line, tool in problem.message) == (line, True)
        assert mark.lower().lstrip("- ") in problem.message.lower()


@pytest.mark.parametrize("text", HARMLESS)
def test_a_text_that_only_mentions_a_mark_is_none(text: str) -> None:
    assert problems(f"{text}\n{CREATE}") == ()
    assert problems(f"{CREATE}{text}\n{DROP}") == ()


def test_a_mark_within_a_statement_or_behind_one_is_refused() -> None:
    (problem,) = problems("CREATE TABLE a (\n-- migrate:down\nn int);")
    assert problem.line == 2
    (problem,) = problems("CREATE TABLE a (n int);--> statement-breakpoint\nCREATE TABLE b (n int);")
    assert "Drizzle" in problem.message


def test_a_first_line_of_sqlx_is_refused_and_the_same_comment_below_is_not() -> None:
    (problem,) = problems(f"-- no-transaction\n{CREATE}")
    assert "-- pgratchet: no-transaction" in problem.cure
    assert problems(f"{CREATE}-- no-transaction\n{DROP}") == ()


def test_a_heading_of_the_other_half_is_refused_only_before_a_statement() -> None:
    assert problems(f"-- Up\n{CREATE}-- Down\n-- {DROP}") == ()
    assert problems(f"-- Down Migration\n{DROP}", Direction.DOWN) == ()
    (problem,) = problems(f"-- Up Migration\n{CREATE}-- Down Migration\n{DROP}", Direction.DOWN)
    assert problem.line == 1


@pytest.mark.parametrize("placeholder", TEMPLATES)
def test_a_placeholder_outside_of_strings_is_refused(placeholder: str) -> None:
    (problem,) = problems(f"SELECT 1;\nCREATE TABLE {placeholder}.a (n int);")
    assert problem.line == 2
    assert "placeholder" in problem.message


@pytest.mark.parametrize("line", ["-- a\n", "-- down\n", "-- {{\n", "--" + " " * 50, "{", "-- migrate:up x\n"])
def test_marks_are_looked_for_in_linear_time(line: str) -> None:
    began = time.perf_counter()
    problems("SELECT '" + line * 20_000 + "';")
    problems(line * 20_000 + "SELECT 1")
    assert time.perf_counter() - began < 5
