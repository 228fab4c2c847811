import pytest

from pgratchet.core.model import Direction, Kind, Script, Source
from pgratchet.core.sql.inert import is_inert
from pgratchet.core.sql.scripts import compile_script

INERT = r"""
CREATE TABLE t (id int PRIMARY KEY, d timestamptz DEFAULT now(), CHECK (a > (1)))
create table if not exists "A".b (x int) partition by range (x)
create unlogged table t () with (fillfactor = 70) tablespace x
create temp table t (like o including all) on commit drop
alter table t add column x int not null default 0, add y text default 'a'::text, add z numeric(10, 2) default -1.5
alter table if exists only s.t add constraint t_pkey primary key (id), add unique (a, b)
alter table t add constraint f foreign key (a) references s.o (id) on delete cascade deferrable initially deferred
alter table t add column o bigint references o (id) on delete set null, drop column if exists q cascade
alter table t add column größe int, add "today" timestamp(3) without time zone
alter table t add column tags text[] not null default '{}'
alter table t alter x set default now(), alter y drop default, alter z set not null
alter table t rename column a to b
alter table "T" rename to u
alter table t enable row level security, owner to o
create index on t (a, b desc nulls last)
create unique index if not exists i on s.t using btree (a) include (c) where deleted_at is null
create index i on t using gin (a gin_trgm_ops) where not active
comment on table t is 'from now on'
create type e as enum ('a', 'b')
create domain d as date default now()
alter type e add value if not exists 'x' after 'y'
create or replace function f() returns trigger language plpgsql as $$begin new.at = 'now'; return new; end$$
create function f(a date = now()) returns int as 'select 1; -- today' language sql
create function f() returns date begin atomic select now(); end
create view v as select now(), 'known'
create trigger x before insert on t for each row when (now() > 'epoch') execute function f()
create policy p on t using (at > now())
create schema if not exists s authorization o
create sequence s start with 7
alter sequence s owned by t.id
drop table t cascade
drop materialized view if exists v
alter view v owner to o
grant select on t to x
alter default privileges in schema s grant select on tables to x
set local search_path = x, y
reset all
""".strip().split("\n")

LIVELY = (
    r"""
insert into t values (1)
update t set a = 1
delete from t
merge into x using y on true when matched then delete
with x as (insert into t values (1) returning 1) select 1
select f()
table t
values (now())
do $$begin end$$
call p()
copy t from '/x'
execute x
explain analyze insert into t values (1)
truncate t
refresh materialized view v
create materialized view v as select 1
create table t as select 1
create table t (a, b) as table o
create table t as execute x
create table p partition of t for values from (now()) to ('infinity')
create table t (d date default 'now')
create table t (d date default ' TODAY ', e int)
create table t (d date default date 'tomorrow')
create table t (d date default E'n\x6fw')
create table t (d date default U&'n\006fw')
create table t (d date default 'n'
 'ow')
create table t (d date default $$yesterday$$)
create domain d as date default 'now'
create view v as select 'now'::timestamptz
create function f(a date = 'now') returns int language sql as 'select 1'
create function f() returns date begin atomic select date 'now'; end
create function f() returns date return date 'now'
create function f() returns int language plperl as 'x'
alter table t add at timestamptz default now()
alter table t add a int default (1)
alter table t add a int default 1 + f()
alter table t add a int default f(1)
alter table t add a date default 'now'
alter table t add a my_domain
alter table t add a s.my_domain default 1
alter table t add a "int"
alter table t add a serial
alter table t add a int generated always as identity
alter table t add a int generated always as (b) stored
alter table t add a int check (a > 0)
alter table t add constraint text check (a > 0)
alter table t add b int, add check (a > 0)
alter table t alter b set default 1, add check (a > 0)
alter table t alter b set default array[1, 2], add check (a > 0)
alter table t add exclude using gist (a with &&)
alter table t validate constraint c
alter table t alter a type text using f(a)
alter table t alter a type timestamptz
alter table t attach partition p for values in (1)
alter domain d add check (value > 0)
create index i on t (lower(a))
create index i on t ((a || b))
create index i on t (a) where f(a)
create index i on t (a) where a > 0
create index i on t (a) where t.f
create schema s create table t (d date default now()) create view v as select 1
create extension x
create event trigger e on ddl_command_end execute function f()
lock table t
'x'
""".strip()
    .replace("\n ", "\t")
    .split("\n")
)


def script(sql: str) -> Script:
    return compile_script(Source("m/1_x.sql", sql.replace("\t", "\n")), Kind.SQL, Direction.UP)


@pytest.mark.parametrize("sql", INERT)
def test_ddl_that_evaluates_nothing_is_inert(sql: str) -> None:
    assert is_inert(script(f"{sql};"))


@pytest.mark.parametrize("sql", LIVELY)
def test_a_statement_that_may_read_the_clock_or_write_rows_is_not_inert(sql: str) -> None:
    assert not is_inert(script(f"CREATE TABLE t ();{sql};"))


@pytest.mark.parametrize("count", [2, 1000])
def test_a_script_is_inert_if_each_of_its_statements_is(count: int) -> None:
    text = "CREATE TABLE t (id int);\n" * count

    assert is_inert(script(text))
    assert not is_inert(script(f"{text}INSERT INTO t VALUES (1);"))


@pytest.mark.parametrize("text", ["", "-- INSERT", "BEGIN; CREATE TABLE t (); COMMIT;"])
def test_comments_and_the_own_transaction_of_a_file_do_not_count(text: str) -> None:
    assert is_inert(script(text))
