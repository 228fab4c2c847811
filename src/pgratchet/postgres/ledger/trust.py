"""The roles whose code runs when a session reads a table or writes to it, and the refusal of those not trusted."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from pgratchet.postgres.ledger.columns import COLUMNS, REQUIRED
from pgratchet.postgres.link import own
from pgratchet.postgres.link.own import Connection, Guard, Guards
from pgratchet.postgres.link.sql import EQ, GT, NE, Table, array, literal

_USED = "('{pg_catalog.pg_proc,pg_catalog.pg_operator,pg_catalog.pg_type}'::pg_catalog.regclass[]::pg_catalog.oid[])"

HISTORIES = f"""ARRAY(
    SELECT pg_catalog.concat(n.nspname, '.', c.relname)
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
    WHERE NOT c.relispartition AND c.relpersistence {NE} 't'
    AND c.relkind::pg_catalog.text {EQ} ANY ('{{r,p}}'::pg_catalog.text[]) AND c.oid {EQ} ANY (
        SELECT a.attrelid FROM pg_catalog.pg_attribute a
        WHERE a.attname {EQ} ANY ('{{{",".join(REQUIRED)}}}'::pg_catalog.name[]) AND NOT a.attisdropped
        GROUP BY a.attrelid HAVING pg_catalog.count(*) {EQ} {len(REQUIRED)}
    ) ORDER BY 1
)"""
"""The tables of this database that have the columns of a history."""

_TRIGGER = "pg_catalog.concat(t.oid, ':', t.xmin)"
"""A trigger as it is now: to replace it, or to switch it on, writes its row anew."""

# A membership that does not let its member act as the role does not count: since PostgreSQL 16 the creator of a role
# has such a membership. Before that the columns are not there.
_ACTING = (
    f"(COALESCE(pg_catalog.to_jsonb(m) OPERATOR(pg_catalog.->>) 'set_option', 'true') {EQ} 'true' "
    f"OR COALESCE(pg_catalog.to_jsonb(m) OPERATOR(pg_catalog.->>) 'inherit_option', 'true') {EQ} 'true')"
)


# A role is trusted if it could do as much without the table: the roles that the run works as, or is really a member of,
# the owners of the schema and of the database, the roles that may become one of these; superusers; those that are named
# as trusted. Not by pg_has_role(), which says that a superuser is a member of every role.
def inspection(table: Table, owner: str | None, trusted: Sequence[str]) -> str:
    """Return the query whose row `inspected` takes: the facts about a table before `owner` writes to it.

    None is the current role.
    """
    return f"""
WITH RECURSIVE relation AS (
    SELECT c.oid, c.relkind FROM pg_catalog.pg_class c
    WHERE c.oid {EQ} pg_catalog.to_regclass({literal(table.quoted)})::pg_catalog.oid
), runner AS (
    SELECT r.oid FROM pg_catalog.pg_roles r
    WHERE r.rolname {EQ} session_user OR r.rolname {EQ} current_user OR r.rolname {EQ} {literal(owner)}::pg_catalog.text
), above AS (
    SELECT oid FROM runner
    UNION
    SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN above ON m.member {EQ} above.oid WHERE {_ACTING}
), below AS (
    SELECT oid FROM runner
    UNION
    SELECT n.nspowner FROM pg_catalog.pg_namespace n WHERE n.nspname {EQ} {literal(table.schema)}
    UNION
    SELECT d.datdba FROM pg_catalog.pg_database d WHERE d.datname {EQ} pg_catalog.current_database()
    UNION
    SELECT m.member FROM pg_catalog.pg_auth_members m JOIN below ON m.roleid {EQ} below.oid WHERE {_ACTING}
), trusted AS (
    SELECT oid FROM above
    UNION
    SELECT oid FROM below
    UNION
    SELECT r.oid FROM pg_catalog.pg_roles r
    WHERE r.rolsuper OR r.rolname {EQ} 'pg_database_owner' OR r.rolname {EQ} ANY ({array(trusted)})
), tree AS (
    SELECT oid FROM relation
    UNION
    SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent {EQ} tree.oid
), attached (class, id) AS (
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid, oid FROM tree
    UNION ALL
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid
    FROM pg_catalog.pg_index i JOIN tree ON i.indrelid {EQ} tree.oid
    UNION ALL
    SELECT 'pg_catalog.pg_trigger'::pg_catalog.regclass, t.oid
    FROM pg_catalog.pg_trigger t JOIN tree ON t.tgrelid {EQ} tree.oid WHERE NOT t.tgisinternal
    UNION ALL
    SELECT 'pg_catalog.pg_rewrite'::pg_catalog.regclass, r.oid
    FROM pg_catalog.pg_rewrite r JOIN tree ON r.ev_class {EQ} tree.oid
    UNION ALL
    SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass, a.oid
    FROM pg_catalog.pg_attrdef a JOIN tree ON a.adrelid {EQ} tree.oid
    UNION ALL
    SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, c.oid
    FROM pg_catalog.pg_constraint c JOIN tree ON c.conrelid {EQ} tree.oid
    UNION ALL
    SELECT 'pg_catalog.pg_policy'::pg_catalog.regclass, p.oid
    FROM pg_catalog.pg_policy p JOIN tree ON p.polrelid {EQ} tree.oid
), used (class, id) AS (
    SELECT d.refclassid, d.refobjid FROM pg_catalog.pg_depend d
    JOIN attached a ON d.classid {EQ} a.class AND d.objid {EQ} a.id WHERE d.refclassid {EQ} ANY {_USED}
    UNION
    SELECT d.refclassid, d.refobjid FROM pg_catalog.pg_depend d
    JOIN used u ON d.classid {EQ} u.class AND d.objid {EQ} u.id WHERE d.refclassid {EQ} ANY {_USED}
), owned (class, id, owner) AS (
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid, c.oid, c.relowner
    FROM pg_catalog.pg_class c JOIN tree ON c.oid {EQ} tree.oid
    UNION ALL
    -- A foreign key's action there fires triggers of that table, up to PostgreSQL 17 with our rights.
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, c.oid, c.relowner
    FROM pg_catalog.pg_constraint k JOIN tree ON k.confrelid {EQ} tree.oid
    JOIN pg_catalog.pg_class c ON c.oid {EQ} k.conrelid
    UNION ALL
    SELECT u.class, u.id, p.proowner FROM used u JOIN pg_catalog.pg_proc p
    ON u.class {EQ} 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid AND u.id {EQ} p.oid
    UNION ALL
    SELECT u.class, u.id, o.oprowner FROM used u JOIN pg_catalog.pg_operator o
    ON u.class {EQ} 'pg_catalog.pg_operator'::pg_catalog.regclass::pg_catalog.oid AND u.id {EQ} o.oid
    UNION ALL
    SELECT u.class, u.id, t.typowner FROM used u JOIN pg_catalog.pg_type t
    ON u.class {EQ} 'pg_catalog.pg_type'::pg_catalog.regclass::pg_catalog.oid AND u.id {EQ} t.oid
)
SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace n WHERE n.nspname {EQ} {literal(table.schema)}) AS schema,
       (SELECT relkind::pg_catalog.text FROM relation) AS kind,
       (SELECT oid::pg_catalog.int8 FROM relation) AS oid,
       ARRAY(SELECT oid::pg_catalog.int8 FROM tree) AS tree,
       ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute a, relation
             WHERE a.attrelid {EQ} relation.oid AND a.attnum {GT} 0 AND NOT a.attisdropped) AS columns,
       (SELECT pg_catalog.pg_has_role(
            COALESCE({literal(owner)}::pg_catalog.name, current_user), c.relowner, 'USAGE')
        FROM pg_catalog.pg_class c JOIN relation ON c.oid {EQ} relation.oid) AS alterable,
       ARRAY(SELECT {_TRIGGER} FROM pg_catalog.pg_trigger t JOIN tree ON t.tgrelid {EQ} tree.oid) AS triggers,
       ARRAY(SELECT r FROM pg_catalog.unnest('{{INSERT,UPDATE,DELETE}}'::pg_catalog.text[]) r, relation
             WHERE NOT pg_catalog.has_table_privilege(
                 COALESCE({literal(owner)}::pg_catalog.name, current_user), relation.oid, r)) AS missing,
       CASE WHEN EXISTS (SELECT FROM relation) THEN '{{}}' ELSE {HISTORIES} END AS others,
       ARRAY(SELECT ARRAY[pg_catalog.pg_describe_object(o.class, o.id, 0),
                          pg_catalog.pg_get_userbyid(o.owner)::pg_catalog.text]
             FROM owned o WHERE NOT EXISTS (SELECT FROM trusted t WHERE t.oid {EQ} o.owner) ORDER BY 1) AS strange
"""


_SUBSCRIPTIONS = (
    "FROM pg_catalog.pg_subscription_rel r JOIN pg_catalog.pg_subscription s "
    f"ON s.oid {EQ} r.srsubid WHERE r.srrelid {EQ} {{}} AND s.subenabled"
)


class Seal(NamedTuple):
    """A table as a run has inspected it: its oid, its partitions' oids too, and the triggers of all.

    The columns of a history that it lacks are `absent`. It is `alterable` if the run may add columns.

    A role with the right TRIGGER or REFERENCES can attach triggers to the table without being its owner, and they run
    with the rights of the writer. To attach any other code takes the rights of the owner.
    """

    table: Table
    oid: int
    tree: Sequence[int]
    triggers: Sequence[str]
    absent: frozenset[str]
    alterable: bool

    def check(self, guards: Guards, also: Mapping[Guard, str] = MappingProxyType({})) -> str:
        """Return SQL that raises if the table has changed, and keeps it from changing until the transaction ends.

        It raises where a condition in `also` is not true, too.
        """
        same = f"{literal(self.table.quoted)}::pg_catalog.regclass::pg_catalog.oid {EQ} {self.oid}"
        known = literal("{" + ",".join(self.triggers) + "}")
        new = (
            f"FROM pg_catalog.pg_trigger t WHERE t.tgrelid {EQ} ANY ('{{{','.join(map(str, self.tree))}}}'"
            f"::pg_catalog.oid[]) AND {_TRIGGER} {NE} ALL ({known}::pg_catalog.text[]) "
            # A trigger that a statement of the migration has made is not strange.
            f"AND t.xmin {NE} pg_catalog.pg_current_xact_id()::pg_catalog.xid"
        )
        # CREATE TRIGGER and ADD FOREIGN KEY wait for that lock, and the check's snapshot is newer than it.
        lock = f"LOCK TABLE {self.table.quoted} IN ROW EXCLUSIVE MODE;"
        return lock + guards.unless({Guard.TABLE: f"{same} AND pg_catalog.count(*) {EQ} 0", **also}, new)


class Inspection(NamedTuple):
    """A relation: its `kind` as pg_class has it, None if there is none; the rights to write to it that are `missing`.

    `strange` are the objects in it or attached to it that belong to a role which the run does not trust, each with its
    owner. It `has_heirs` if other tables inherit from it that are no partitions of it. `has_schema`: its schema exists.
    `others` are the tables of this database that have the columns of a history; empty if the relation exists.
    """

    has_schema: bool
    kind: str | None
    missing: Sequence[str]
    strange: Sequence[tuple[str, str]]
    has_heirs: bool
    seal: Seal | None
    others: Sequence[str]


async def inspect(
    connection: Connection, table: Table, owner: str | None, trusted: Sequence[str], before: str = ""
) -> Inspection:
    """Return a table as `inspection` finds it; the statements `before` run in the same transaction."""
    return inspected(await own.ask(connection, inspection(table, owner, trusted), before), table)


def inspected(row: Mapping[str, Any], table: Table) -> Inspection:
    """Return a table as `inspection` has found it."""
    seal = None
    if row["oid"] is not None:
        absent = frozenset(COLUMNS).difference(row["columns"])
        seal = Seal(table, row["oid"], row["tree"], row["triggers"], absent, row["alterable"])
    strange = [(thing, role) for thing, role in row["strange"]]
    has_heirs = row["kind"] == "r" and len(row["tree"]) > 1
    return Inspection(row["schema"], row["kind"], row["missing"], strange, has_heirs, seal, row["others"])


async def subscriptions(connection: Connection, table: Table) -> list[str]:
    """Return the names of the enabled subscriptions that write a table."""
    source = _SUBSCRIPTIONS.format("pg_catalog.to_regclass($1)::pg_catalog.oid")
    return [name for (name,) in await own.fetch(connection, f"SELECT s.subname {source}", table.quoted)]


async def attached(connection: Connection, table: Table) -> list[str]:
    """Return the triggers and rules of a table that run when it is written, in words."""
    oid = "pg_catalog.to_regclass($1)::pg_catalog.oid"
    rows = await own.fetch(
        connection,
        "SELECT pg_catalog.concat('the trigger ', t.tgname, ' (function ', t.tgfoid::pg_catalog.regproc, ')') "
        f"FROM pg_catalog.pg_trigger t WHERE t.tgrelid {EQ} {oid} AND NOT t.tgisinternal AND t.tgenabled {NE} 'D' "
        "UNION ALL SELECT pg_catalog.concat('the rule ', r.rulename) "
        f"FROM pg_catalog.pg_rewrite r WHERE r.ev_class {EQ} {oid} ORDER BY 1",
        table.quoted,
    )
    return [text for (text,) in rows]


async def has_active_policies(connection: Connection, table: Table) -> bool:
    """Return whether row level security decides which rows of a table the current role may read and write."""
    query = "SELECT pg_catalog.row_security_active(pg_catalog.to_regclass($1)::pg_catalog.oid)"
    ((active,),) = await own.fetch(connection, query, table.quoted)
    return bool(active)


def opening(table: Table) -> str:
    """Return the SQL by which row level security hides no row of a table, and refuses none."""
    return (
        f"CREATE POLICY pgratchet ON {table.quoted} USING (true), "
        f"or ALTER TABLE {table.quoted} DISABLE ROW LEVEL SECURITY"
    )


def readable(
    guards: Guards, table: Table, owner: str | None, *, anybodys: bool, found: Inspection | None = None
) -> str:
    """Return SQL that raises unless COPY of a table reads all rows of a history.

    It must have the required columns, none of them generated; no subscription may write it; row level security must
    hide no row from the current role; and unless it may be `anybodys`, its owner must be, at first sight, a role that a
    run trusts. At first sight: a search through all memberships, and through policies, is left to a second look, with
    what `inspect` has `found`.
    """
    oid = f"{literal(table.quoted)}::pg_catalog.regclass::pg_catalog.oid"
    conditions = {Guard.REPLICATED: f"NOT EXISTS (SELECT {_SUBSCRIPTIONS.format(oid)})"}
    if not anybodys:
        users = ", ".join(["session_user", "current_user", *([] if owner is None else [literal(owner)])])
        # A superuser is a member of every role, whichever role the owner is.
        conditions[Guard.OWNER] = (
            f"(SELECT pg_catalog.pg_get_userbyid(c.relowner) {EQ} ANY (ARRAY[{users}]::pg_catalog.name[]) "
            f"OR pg_catalog.current_setting('is_superuser') {EQ} 'off' "
            "AND pg_catalog.pg_has_role(c.relowner, 'USAGE') "
            f"FROM pg_catalog.pg_class c WHERE c.oid {EQ} {oid})"
        )
    conditions[Guard.POLICY] = f"NOT pg_catalog.row_security_active({oid})"
    if found is not None:
        conditions[Guard.POLICY] += f" OR {_shows_all(oid, safe=not found.strange)}"
    conditions[Guard.COLUMNS] = (
        f"(SELECT pg_catalog.count(*) {EQ} {len(REQUIRED)} FROM pg_catalog.pg_attribute a "
        f"WHERE a.attrelid {EQ} {oid} AND a.attname {EQ} ANY ('{{{','.join(REQUIRED)}}}'::pg_catalog.name[]) "
        f"AND NOT a.attisdropped AND a.attgenerated {EQ} '')"
    )
    return guards.unless(conditions)


def _shows_all(oid: str, *, safe: bool) -> str:
    """Return the SQL condition that the policies of a table show all rows to the current role.

    They do where a permissive policy says `true`, and no restrictive one anything else. Unless the table is `safe` to
    use, no policy at all may say anything else: the planner evaluates each.
    """
    everything = f"COALESCE(pg_catalog.pg_get_expr(p.polqual, p.polrelid), '') {EQ} 'true'"
    mine = f"EXISTS (SELECT FROM pg_catalog.unnest(p.polroles) r WHERE r {EQ} 0 OR pg_catalog.pg_has_role(r, 'USAGE'))"
    shown = f"pg_catalog.bool_or(p.polpermissive AND {everything} AND {mine})"
    hidden = f"pg_catalog.bool_or(NOT {everything}{f' AND NOT p.polpermissive AND {mine}' if safe else ''})"
    return (
        f"(SELECT {shown} AND NOT {hidden} FROM pg_catalog.pg_policy p WHERE p.polrelid {EQ} {oid} "
        f"AND p.polcmd::pg_catalog.text {EQ} ANY ('{{r,*}}'::pg_catalog.text[]))"
    )
