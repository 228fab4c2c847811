"""Notes about a script's session, recorded beside each count and mark: a later run compares its own session with them.

They are taken before our own statements, while the script's role and names still hold.
"""

from pgratchet.core.plan.halfway import MARK, SESSION, TARGET
from pgratchet.core.sql.bare import Bare
from pgratchet.core.sql.statements import Nature
from pgratchet.postgres.link.session import LATER_PARAMETERS, PARAMETERS
from pgratchet.postgres.link.sql import CONCAT, EQ, NE, literal

# Only settings whose names have no dot: of the others the server lists those of the libraries that it has loaded.
# The translation leaves out the characters that separate the parts of a cursor.
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
    """Return a query for the changes that were made to a session of the role `login`, empty if there are none.

    A default of the role or of the database is no change.
    """
    names = ",".join(("application_name", *PARAMETERS, *LATER_PARAMETERS))
    ours = f"{literal(f'{{{names}}}')}::pg_catalog.text[]"
    return _SESSION.format(login=literal(login), ours=ours, mark=MARK, CONCAT=CONCAT, EQ=EQ, NE=NE)


def noting(login: str) -> str:
    """Return SQL that notes the session, for the statements of `Records` that write the note down."""
    return f"SELECT pg_catalog.set_config({literal(SESSION)}, ({session(login)}), false);"


def noting_again(login: str) -> str:
    """Return SQL that notes the session again after a COMMIT, which may have ended some of the noted changes."""
    nothing = f"pg_catalog.current_setting({literal(SESSION)}, true) {EQ} ''"
    # To read all settings takes longer than a small statement.
    now = f"CASE WHEN {nothing} THEN '' ELSE ({session(login)}) END"
    return f"SELECT pg_catalog.set_config({literal(SESSION)}, {now}, false);"


def target(about: Bare) -> str:
    """Return an SQL expression: the oids that show later whether a statement, which is not begun yet, took effect.

    The index to be dropped; the partition to be detached and its parent; the present indexes of a table that gets
    another. 0 stands for an object that is not there.
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
    """Return SQL that notes a statement's target until COMMIT: the oids that were `there`, if it was begun before."""
    oids = target(about) if there is None else literal(f"{{{','.join(map(str, there))}}}")
    return f"SELECT pg_catalog.set_config({literal(TARGET)}, {oids}::pg_catalog.text, true);"


def _oid(name: str | None) -> str:
    return f"COALESCE(pg_catalog.to_regclass({literal(name)})::pg_catalog.oid, 0)"
