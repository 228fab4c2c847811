"""What is noted of a script's session beside each count and mark, for a later run to compare with what it finds.

It is evaluated as the script's own session sees it, before our own statements take its role and names away.
"""

from pgratchet.core.plan.halfway import MARK, SESSION, TARGET
from pgratchet.core.sql.bare import Bare
from pgratchet.core.sql.classification import Nature
from pgratchet.postgres.link.session import LATER_SETTINGS, SETTINGS
from pgratchet.postgres.link.sql import CONCAT, EQ, NE, literal

# Of settings those whose names have no dot: of the others the server lists only some, depending on what it has
# loaded. The translation leaves out what stands in a cursor for something else.
_SESSION = """
SELECT pg_catalog.translate(
    COALESCE(pg_catalog.string_agg(f.fact, '; ' ORDER BY f.fact COLLATE pg_catalog."C"), ''), '{mark}', '')
FROM (SELECT 'role = ' {CONCAT} pg_catalog.current_setting('role')
      WHERE pg_catalog.current_setting('role') {NE} 'none'
      UNION ALL
      SELECT 'session_authorization = ' {CONCAT} session_user::pg_catalog.text
      WHERE session_user::pg_catalog.text {NE} {login}
      UNION ALL
      SELECT name {CONCAT} ' = ' {CONCAT} setting FROM pg_catalog.pg_settings
      WHERE source {EQ} 'session' AND pg_catalog.strpos(name, '.') {EQ} 0 AND name {NE} ALL ({ours})
      UNION ALL
      SELECT o.type {CONCAT} ' ' {CONCAT} o.identity
      FROM pg_catalog.pg_depend d, pg_catalog.pg_identify_object(d.classid, d.objid, d.objsubid) o
      WHERE d.refclassid {EQ} 'pg_catalog.pg_namespace'::pg_catalog.regclass::pg_catalog.oid
      AND d.refobjid {EQ} pg_catalog.pg_my_temp_schema()) AS f(fact)
"""


def session(login: str) -> str:
    """Return a query for what has been made of a session that logged in like that: empty where it is as it was.

    What is a default of the role or the database is nobody's doing here.
    """
    names = ",".join(("application_name", *SETTINGS, *LATER_SETTINGS))
    ours = f"{literal(f'{{{names}}}')}::pg_catalog.text[]"
    return _SESSION.format(login=literal(login), ours=ours, mark=MARK, CONCAT=CONCAT, EQ=EQ, NE=NE)


def take(login: str) -> str:
    """Return SQL that has the session noted, for the statements of `Records` that write it down."""
    return f"SELECT pg_catalog.set_config({literal(SESSION)}, ({session(login)}), false);"


def take_again(login: str) -> str:
    """Return SQL that has the session noted as it is behind a COMMIT, which may have ended some of what was noted."""
    nothing = f"pg_catalog.current_setting({literal(SESSION)}, true) {EQ} ''"
    # To look at all settings takes longer than a small statement.
    now = f"CASE WHEN {nothing} THEN '' ELSE ({session(login)}) END"
    return f"SELECT pg_catalog.set_config({literal(SESSION)}, {now}, false);"


def target(about: Bare) -> str:
    """Return an SQL expression: the oids by which to find out what became of a statement that is not begun yet.

    An index that is to be dropped; a partition and its parent; the indexes of a table that is to get another. 0
    for what is not there.
    """
    match about.nature:
        case Nature.DROP:
            return f"ARRAY[{_oid(about.name)}]"
        case Nature.DETACH:
            return f"ARRAY[{_oid(about.name)}, {_oid(about.table)}]"
        case Nature.BUILD:
            return f"ARRAY(SELECT indexrelid FROM pg_catalog.pg_index WHERE indrelid {EQ} {_oid(about.table)})"
        case _:
            return "'{}'::pg_catalog.oid[]"


def aim(about: Bare, there: tuple[int, ...] | None) -> str:
    """Return SQL that has the target of a statement noted until COMMIT, or what was `there` when it was first begun."""
    oids = target(about) if there is None else literal(f"{{{','.join(map(str, there))}}}")
    return f"SELECT pg_catalog.set_config({literal(TARGET)}, {oids}::pg_catalog.text, true);"


def _oid(name: str | None) -> str:
    return f"COALESCE(pg_catalog.to_regclass({literal(name)})::pg_catalog.oid, 0)"
