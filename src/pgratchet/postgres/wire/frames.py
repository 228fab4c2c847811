"""What goes around a script: everything that makes it one claimed, recorded transaction without a trace."""

import platform
from datetime import datetime
from typing import NamedTuple

from pgratchet.core.errors import ServerError
from pgratchet.core.printing import printable
from pgratchet.postgres.ledger.records import DURABLE, Claim, Records, Writer
from pgratchet.postgres.link import own
from pgratchet.postgres.link.limits import Limits
from pgratchet.postgres.link.roles import as_login
from pgratchet.postgres.link.session import APPLICATION, Connection, NotPrimaryError, settings_sql
from pgratchet.postgres.link.sql import EQ, LONGEST_NAME, become, identifier, literal, milliseconds
from pgratchet.postgres.wire.message import Frame

# RESET ALL passes over what is at its default, such as a search_path that is so until COMMIT only.
CLEAN = (
    "RESET SESSION AUTHORIZATION;RESET ROLE;RESET search_path;RESET ALL;"
    "CLOSE ALL;UNLISTEN *;DISCARD SEQUENCES;DISCARD TEMP;"
)
"""Takes back what a script may have left in its session, or in a pooler's."""

_OF_A_SESSION = "DEALLOCATE ALL;"

_OF_A_POOLER = (
    # The pooler itself keeps prepared statements there, for other clients: only those of SQL may be a script's.
    "DO $pgratchet$DECLARE n pg_catalog.text;BEGIN "
    "FOR n IN SELECT name FROM pg_catalog.pg_prepared_statements WHERE from_sql "
    "LOOP EXECUTE pg_catalog.format('DEALLOCATE %I', n);END LOOP;END$pgratchet$;"
)
_UNLOCK = "SELECT pg_catalog.pg_advisory_unlock_all();"

_OURS = "FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())"

# Whatever the session's DateStyle is, whose forms may name no offset, and its codec of timestamps.
_ISO = "pg_catalog.to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00')"
_STARTED = f"SELECT {_ISO.format('backend_start')} {_OURS}"

# As others see it: SET SESSION AUTHORIZATION changes session_user only.
_LOGIN = f"SELECT pg_catalog.pg_get_userbyid(usesysid)::pg_catalog.text {_OURS}"
_FACTS = f"""
SELECT pg_catalog.pg_backend_pid() AS pid,
       ({_LOGIN}) AS login,
       current_user::pg_catalog.text AS role,
       pg_catalog.current_setting('application_name') AS application,
       ({_STARTED}) AS started,
       (SELECT pg_catalog.bool_and(reset_val {EQ} CASE WHEN name {EQ} 'lock_timeout' THEN '1000' ELSE '0' END)
        FROM pg_catalog.pg_settings
        WHERE name {EQ} ANY ('{{{{lock_timeout,transaction_timeout}}}}'::pg_catalog.text[])) AS prepared,
       EXISTS (SELECT FROM pg_catalog.pg_language WHERE lanname {EQ} 'plpgsql') AS plpgsql,
       pg_catalog.pg_is_in_recovery() AS standby,
       pg_catalog.current_setting('transaction_read_only') {EQ} 'on' AS read_only,
       {_ISO.format("pg_catalog.clock_timestamp()")} AS now,
       {{held}} AS held
"""


class Facts(NamedTuple):
    """What a run needs to know of its session, read once, when it is its turn.

    A `prepared` session has our settings as its defaults: RESET ALL brings them back. `pooled`: each transaction
    may be another server process's.
    """

    pid: int
    pooled: bool
    login: str
    role: str
    application: str
    started: str
    prepared: bool
    plpgsql: bool
    standby: bool
    read_only: bool
    now: datetime
    held: bool

    def writer(self, tool_version: str) -> Writer:
        """Return what rows say about this session."""
        runner = f"{self.login}@{platform.node()} {self.application or APPLICATION}"
        return Writer(printable(runner), self.started, tool_version)


async def facts(connection: Connection, held: str | None, owner: str | None = None) -> Facts:
    """Return the facts of a session; `held` is the SQL condition under which it holds its lock, None without one."""
    row = await own.fetchrow(connection, _FACTS.format(held=held or "true"))
    values = dict(row) | {"now": datetime.fromisoformat(row["now"])}
    if values["started"] is None:
        async with as_login(connection, owner):
            values["started"] = await own.fetchval(connection, _STARTED)
    return Facts(**values, pooled=held is None and row["pid"] != connection.get_server_pid())


def refuse_useless(facts: Facts) -> None:
    """Raise ServerError where nothing can be changed, or the lock is not held after all."""
    if not facts.held:
        raise ServerError(
            "the server does not hold the lock that it has just given: a pooler in transaction mode, or an engine "
            'without advisory locks; give a DSN that leads straight to the server, or lock="transaction" or "none"'
        )
    if facts.standby:
        raise NotPrimaryError("the server is a standby: nothing can be applied here; give the DSN of the primary")
    if facts.read_only:
        raise NotPrimaryError(
            "the session is read-only, because default_transaction_read_only is on: nothing can be applied here; "
            "take that setting away from the role, the database, the DSN or the server"
        )


class Framing(NamedTuple):
    """How the steps of one run are framed."""

    records: Records
    writer: Writer
    limits: Limits
    facts: Facts
    owner: str | None = None

    @property
    def marker(self) -> str | None:
        """What the server says behind each part of a message, None where it has no language to say it in."""
        return self.records.marker if self.facts.plpgsql else None

    @property
    def ourselves(self) -> str:
        """What gives the role and the search_path back that a script may have changed, until COMMIT.

        A trigger on the history sees the path that it would see under psql; our own statements need none.
        """
        role = identifier(self.owner) if self.owner else "DEFAULT"
        return f"SET LOCAL SESSION AUTHORIZATION DEFAULT;SET LOCAL role TO {role};SET LOCAL search_path TO DEFAULT;"

    @property
    def clean(self) -> str:
        """What takes back what a script left behind, and nothing of ours."""
        if self.facts.pooled:
            return _UNLOCK + (_OF_A_POOLER if self.facts.plpgsql else "") + CLEAN
        name = f"SET application_name = {literal(self.facts.application)};"
        settings = "" if self.facts.prepared else f"{settings_sql()};{name}"
        return _OF_A_SESSION + CLEAN + settings + (become(self.owner) if self.owner else "")

    @property
    def reset(self) -> str:
        """The same as a transaction of its own.

        Joined to the next step's it would be undone together with that, and BEGIN ISOLATION LEVEL would come too
        late there.
        """
        return f"BEGIN;{self.clean}COMMIT;"

    def frame(self, claim: Claim, *, durable: bool) -> Frame:
        """Return head and tail of a transaction of its own; where not `durable`, a later COMMIT makes it so."""
        version = claim.step.migration.version
        begin = claim.step.script.begin
        head = (
            f"/* pgratchet {version} */ BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;"
            + (f"{begin}\n;{self._before_a_snapshot}" if begin else "")
            + ("" if durable else "SET LOCAL synchronous_commit = off;")
            + self.opening(claim)
        )
        return Frame(claim, head, self.closing(claim, durable=durable) + "COMMIT;" + self.reset)

    @property
    def _before_a_snapshot(self) -> str:
        """What comes before the first query of a transaction that keeps its snapshot, where each takes its own lock.

        That snapshot is older than the lock, and would not show what the last holder has done; while the history is
        locked against writers nobody does anything. LOCK TABLE itself takes none.
        """
        if self.records.take_lock is None:
            return ""
        role = become(self.owner, local=True) if self.owner and self.facts.pooled else ""
        return f"{role}LOCK TABLE {self.records.table.quoted} IN SHARE ROW EXCLUSIVE MODE;"

    def opening(self, claim: Claim) -> str:
        """Return what comes between BEGIN and a script."""
        limits = self.limits.of(claim.step.script.source.options)
        return (
            # What else a session of ours has from its start.
            (settings_sql(local=True) + ";" if self.facts.pooled else "")
            + (become(self.owner, local=True) if self.owner and self.facts.pooled else "")
            + f"SET LOCAL lock_timeout = {milliseconds(limits.lock_timeout)};"
            f"SET LOCAL statement_timeout = {milliseconds(limits.statement_timeout)};"
            f"SET LOCAL application_name = {literal(self.application(claim))};" + self.records.claim(claim, self.writer)
        )

    def closing(self, claim: Claim, *, durable: bool = True) -> str:
        """Return what comes between a script and COMMIT."""
        constraints = "SET CONSTRAINTS ALL IMMEDIATE;"
        return constraints + self.ourselves + (DURABLE if durable else "") + self.records.record(claim)

    def recording(self, sql: str) -> str:
        """Return statements of ours as a transaction of their own, in a session without traces."""
        return f"BEGIN;{self.ourselves}{DURABLE}{sql}COMMIT;{self.reset}"

    def application(self, claim: Claim) -> str:
        """Return how the session is called meanwhile: whoever waits reads here what runs, and since when."""
        migration = claim.step.migration
        name = (
            f"pgratchet since {self.facts.now:%H:%M:%SZ}: {claim.step.direction} {migration.version} {migration.name}"
        )
        return printable(name).encode()[:LONGEST_NAME].decode(errors="ignore")
