"""One message: steps in, one simple-protocol text out, and the way back from a position in it to a place in a file.

The SQL around a script makes it one transaction that is claimed and recorded, and leaves nothing in the session.
"""

import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Literal, NamedTuple
from uuid import uuid4

from pgratchet.core.arguments import spelled
from pgratchet.core.errors import ServerError
from pgratchet.core.model import Direction, Kind, Lock, Mode, Segment, Step
from pgratchet.core.printing import printable
from pgratchet.core.sql.inert import is_inert
from pgratchet.core.sql.scripts import CHUNK, MOST_MARKERS, loads_another_library
from pgratchet.postgres.ledger.history import History
from pgratchet.postgres.ledger.records import DURABLE, Claim, Records, Writer
from pgratchet.postgres.ledger.trust import Inspection, inspected, inspection
from pgratchet.postgres.link import own
from pgratchet.postgres.link.roles import as_login
from pgratchet.postgres.link.session import APPLICATION, AT_WORK, Connection, NotPrimaryError, parameters_sql, refused
from pgratchet.postgres.link.sql import EQ, LONGEST_NAME, NE, Limits, array, become, identifier, literal, milliseconds
from pgratchet.postgres.wire.progress import Group

END = "\n;"
"""The end of each segment: after a comment at the end of a file, a semicolon alone would be a part of the comment."""

MOST_STEPS = 50
MOST_CHARACTERS = CHUNK
"""Limits of a message that several steps share."""

_TO_CLIENT = re.compile(r"\bSTD(?:IN|OUT)\b", re.IGNORECASE)
"""In each COPY that sends data to the client."""

# RESET ALL skips a setting that is at its default, such as a search_path that is at it until COMMIT only.
CLEAN = (
    "RESET SESSION AUTHORIZATION;RESET ROLE;RESET search_path;RESET ALL;"
    "CLOSE ALL;UNLISTEN *;DISCARD SEQUENCES;DISCARD TEMP;"
)
"""Removes everything that a script may have left in a session, its own or a pooler's."""

_OF_A_SESSION = "DEALLOCATE ALL;"

_OF_A_POOLER = (
    # The pooler itself keeps prepared statements there, for other clients: only PREPARE in a script sets from_sql.
    "DO $pgratchet$DECLARE n pg_catalog.text;BEGIN "
    "FOR n IN SELECT name FROM pg_catalog.pg_prepared_statements WHERE from_sql "
    "LOOP EXECUTE pg_catalog.format('DEALLOCATE %I', n);END LOOP;END$pgratchet$;"
)
_UNLOCK = "SELECT pg_catalog.pg_advisory_unlock_all();"

_OURS = "FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())"

# As a text in one form: the session's DateStyle may leave out the offset, and a factory may have set another codec.
_ISO = "pg_catalog.to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00')"
_STARTED = f"SELECT {_ISO.format('backend_start')} {_OURS}"

# Not session_user: SET SESSION AUTHORIZATION changes that, and other sessions still see the login role.
_LOGIN = f"SELECT pg_catalog.pg_get_userbyid(usesysid)::pg_catalog.text {_OURS}"
_EVENT_TRIGGERS = (
    f"EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtenabled {NE} 'D' AND evtevent {NE} 'login')"
)
"""The condition that DDL may run code of users."""

_DEFAULTS = (
    "ARRAY(SELECT pg_catalog.concat(s.setdatabase, ':', s.setrole, ':', s.xmin) FROM pg_catalog.pg_db_role_setting s "
    f"WHERE s.setdatabase {EQ} ANY (ARRAY[0, {{database}}]::pg_catalog.oid[]) "
    f"AND s.setrole {EQ} ANY (ARRAY[0, {{login}}]::pg_catalog.oid[]) ORDER BY 1)"
)
"""The settings that new sessions of a login get in a database, each in a form that changes with it."""

_DATABASE = f"(SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname {EQ} pg_catalog.current_database())"
_LOGIN_ID = "pg_catalog.quote_ident(session_user::pg_catalog.text)::pg_catalog.regrole::pg_catalog.oid"

_FACTS = f"""
SELECT pg_catalog.pg_backend_pid() AS pid,
       ({_LOGIN}) AS login,
       current_user::pg_catalog.text AS role,
       pg_catalog.current_setting('application_name') AS application,
       ({_STARTED}) AS started,
       (SELECT pg_catalog.bool_and(reset_val {EQ} CASE WHEN name {EQ} 'lock_timeout' THEN '1000' ELSE '0' END)
        FROM pg_catalog.pg_settings
        WHERE name {EQ} ANY ('{{{{lock_timeout,transaction_timeout}}}}'::pg_catalog.text[])) AS prepared,
       EXISTS (SELECT FROM pg_catalog.pg_language WHERE lanname {EQ} 'plpgsql'
               AND pg_catalog.has_language_privilege({{role}}, oid, 'USAGE')) AS plpgsql,
       {_EVENT_TRIGGERS} AS event_triggers,
       {_DATABASE} AS database,
       {_LOGIN_ID} AS login_id,
       {_DEFAULTS.format(database=_DATABASE, login=_LOGIN_ID)} AS defaults,
       pg_catalog.pg_is_in_recovery() AS standby,
       pg_catalog.current_setting('transaction_read_only') {EQ} 'on' AS read_only,
       {_ISO.format("pg_catalog.clock_timestamp()")} AS now,
       {{held}} AS held
"""


class Part(NamedTuple):
    """A segment in a message: `at` is its offset there, in characters; a `marked` one has a marker after it."""

    at: int
    claim: Claim
    segment: Segment
    marked: bool = False


class Message(NamedTuple):
    """A text that is sent at once, and its parts that come from files: none if all of it is ours.

    If it `reads`, its last statement is a COPY `AS_CSV`, the only one to the client.
    """

    text: str
    parts: tuple[Part, ...] = ()
    reads: bool = False


class Frame(NamedTuple):
    """The SQL before and after one script."""

    claim: Claim
    head: str
    tail: str


class Facts(NamedTuple):
    """The facts about a session that a run needs, read once, when its turn has come.

    A `prepared` session has our settings as its defaults: RESET ALL restores them. In a `pooled` one each transaction
    may run in another server process. `login` is the role that logs in, `role` the one that it works as; `readers` is
    the former if it needs a grant to read the history, as beside an owner. `plpgsql` is true if the role that the
    scripts run as may use it. `is_up_to_date` is the SQL condition that a new session would get the same settings from
    its database and its role, and find the same answer about event triggers. `writer` is how rows name this run. The
    server has `refused` some of our settings, by name. `found` is the history table before the run changes it.
    """

    pid: int
    pooled: bool
    login: str
    role: str
    readers: tuple[str, ...]
    application: str
    prepared: bool
    plpgsql: bool
    event_triggers: bool
    is_up_to_date: str
    now: datetime
    writer: Writer
    refused: frozenset[str]
    found: Inspection


async def facts(connection: Connection, history: History, held: str | None, tool_version: str) -> Facts:
    """Return the facts about a session; `held` is the SQL condition under which it holds its lock, None without one.

    Raises ServerError if nothing can be changed in it, or the lock is not held after all.
    """
    owner = history.owner
    name = f"{literal(owner)}::pg_catalog.name" if owner else "current_user"
    # An owner that does not exist is an error of its own, later.
    role = f"(SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname {EQ} {name})"
    session = _FACTS.format(held=held or "true", role=role)
    row = await own.ask(connection, f"SELECT * FROM ({session}) AS session, ({inspection(*history)}) AS history")
    if not row["held"]:
        raise ServerError(
            "the server does not hold the lock that it has just given: a pooler in transaction mode, or an engine "
            "without advisory locks; give a DSN that leads straight to the server, "
            f"{spelled('lock', 'transaction')} or {spelled('lock', 'none')}"
        )
    if row["standby"]:
        raise NotPrimaryError("the server is a standby: nothing can be applied here; give the DSN of the primary")
    if row["read_only"]:
        raise NotPrimaryError(
            "the session is read-only, because default_transaction_read_only is on: nothing can be applied here; "
            "take that setting away from the role, the database, the DSN or the server"
        )
    started: str | None = row["started"]
    if started is None:
        async with as_login(connection, owner):
            started = (await own.ask(connection, f"SELECT ({_STARTED}) AS started"))["started"]
    defaults = _DEFAULTS.format(database=row["database"], login=row["login_id"])
    same_triggers = _EVENT_TRIGGERS if row["event_triggers"] else f"NOT {_EVENT_TRIGGERS}"
    runner = f"{row['login']}@{platform.node()} {row['application'] or APPLICATION}"
    return Facts(
        pid=row["pid"],
        pooled=held is None and row["pid"] != connection.get_server_pid(),
        login=row["login"],
        role=row["role"],
        readers=() if owner is None else (row["login"],),
        application=row["application"],
        prepared=row["prepared"],
        plpgsql=row["plpgsql"],
        event_triggers=row["event_triggers"],
        is_up_to_date=f"{defaults} {EQ} {array(row['defaults'])} AND {same_triggers}",
        now=datetime.fromisoformat(row["now"]),
        writer=Writer(printable(runner), started, tool_version),
        refused=refused(connection),
        found=inspected(row, history.table),
    )


class Framing(NamedTuple):
    """The SQL around the steps of one run, in one session.

    `marker` is the notice after each part of a message, None if the scripts may not use PL/pgSQL. `boundary` lets the
    server say that a script begins, or has ended; it is empty then. `ourselves` restores, until COMMIT, the role and
    the search_path, which a script may have changed. `clean` removes everything that a script may have left in the
    session, and nothing of ours; `reset` does the same as a transaction of its own.
    """

    records: Records
    limits: Limits
    facts: Facts
    owner: str | None
    marker: str | None
    boundary: str
    ourselves: str
    clean: str
    reset: str
    local_settings: str

    @classmethod
    def of(cls, records: Records, limits: Limits, facts: Facts, owner: str | None) -> "Framing":
        """Return the framing of a run in a session; a run as `owner` owns the history."""
        # A trigger on the history sees the path that it would see under psql; our own statements need none.
        path = "SET LOCAL search_path TO DEFAULT;"
        role = identifier(owner) if owner else "DEFAULT"
        settings = local_settings = ""
        if facts.pooled:
            # A session of ours has them from its start.
            local_settings = f"{parameters_sql(facts.refused, local=True)};" + (
                become(owner, local=True) if owner else ""
            )
            clean = _UNLOCK + (_OF_A_POOLER if facts.plpgsql else "") + CLEAN
        else:
            if not facts.prepared:
                settings = f"{parameters_sql(facts.refused, name=facts.application)};"
            clean = _OF_A_SESSION + CLEAN + settings + (become(owner) if owner else "")
        return cls(
            records,
            limits,
            facts,
            owner,
            marker=records.guards.sign if facts.plpgsql else None,
            boundary=mark(boundary(records.guards.sign)) if facts.plpgsql else "",
            ourselves=f"SET LOCAL SESSION AUTHORIZATION DEFAULT;SET LOCAL role TO {role};{path}",
            clean=clean,
            # Joined to the next step's transaction it would be undone together with that, and BEGIN ISOLATION LEVEL
            # would come too late there.
            reset=f"BEGIN;{clean}COMMIT;",
            local_settings=local_settings,
        )

    def without_plpgsql(self) -> "Framing":
        """Return the framing for a session in which no PL/pgSQL runs any more."""
        return self.of(self.records, self.limits, self.facts._replace(plpgsql=False), self.owner)

    def messages(self, group: Group) -> Iterator[Message]:
        """Return the messages that run the steps of a group, each step in a transaction of its own.

        All but the last commit asynchronously: the last COMMIT makes all of them durable.
        """
        frames = []
        for claim in group:
            # Those that share the message of another step are DDL that evaluates nothing.
            told, durable, begin = claim is group[0], claim is group[-1], claim.step.script.begin
            # Other layouts have versions of any text, which must not end the comment.
            version = printable(claim.step.migration.version).replace("*", "")
            head = (
                f"/* pgratchet {version} */ BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;"
                + (f"{begin}\n;{self._before_a_snapshot}" if begin else "")
                + ("" if durable else "SET LOCAL synchronous_commit = off;")
                + self.opening(claim)
            )
            tail = f"{self.closing(claim, durable=durable, told=told)}COMMIT;{self.reset}"
            frames.append(Frame(claim, head, tail))
        messages = compose(frames, self.marker)
        if len(group) == 1 or _TO_CLIENT.search(group[0].step.script.source.text):
            yield from messages
            return
        # The rows say how long each step took; to read them in a message of their own costs round trips.
        reading = History(self.records.table).reading(claim.step.migration.version for claim in group)
        for message in messages:
            yield message._replace(text=message.text + reading, reads=True)

    @property
    def _before_a_snapshot(self) -> str:
        """The SQL before the first query of a transaction that keeps its snapshot, if each takes its own lock.

        That snapshot is older than the lock, and would not show the work of the last holder. While the history is
        locked against writers there is no such work. LOCK TABLE itself takes no snapshot.
        """
        if self.records.lock is Lock.SESSION:
            return ""
        role = become(self.owner, local=True) if self.owner and self.facts.pooled else ""
        return f"{role}LOCK TABLE {self.records.table.quoted} IN SHARE ROW EXCLUSIVE MODE;"

    def opening(self, claim: Claim) -> str:
        """Return the SQL between BEGIN and a script. It ends with a boundary."""
        settings = self.local_settings + self.settings(claim, "SET LOCAL")
        return settings + self.records.claim(claim, self.facts.writer) + self.boundary

    def closing(self, claim: Claim, *, durable: bool = True, told: bool = True) -> str:
        """Return the SQL between a script and COMMIT, with a boundary if the end of the script is to be `told`."""
        constraints = f"SET CONSTRAINTS ALL IMMEDIATE;{self.boundary if told else ''}"
        return constraints + self.ourselves + (DURABLE if durable else "") + self.records.record(claim)

    def settings(self, claim: Claim, scope: Literal["SET", "SET LOCAL"]) -> str:
        """Return the SQL that sets a step's limits and the name of its session: the step, and the start of the turn."""
        migration, limits = claim.step.migration, self.limits.of(claim.step.script.source.options)
        name = f"{AT_WORK}{self.facts.now:%H:%M:%SZ}: {claim.step.direction} {migration.version} {migration.name}"
        shown = printable(name).encode()[:LONGEST_NAME].decode(errors="ignore")
        return (
            self.setting(scope, "lock_timeout", milliseconds(limits.lock_timeout))
            + self.setting(scope, "statement_timeout", milliseconds(limits.statement_timeout))
            + self.setting(scope, "application_name", literal(shown))
        )

    def setting(self, scope: Literal["SET", "SET LOCAL"], name: str, value: object) -> str:
        """Return the SQL that sets a parameter of ours; empty if the server refuses that."""
        return "" if name in self.facts.refused else f"{scope} {name} = {value};"

    def recording(self, sql: str) -> str:
        """Return statements of ours as a transaction of their own, in a session without traces of a script."""
        return f"BEGIN;{self.ourselves}{DURABLE}{sql}COMMIT;{self.reset}"


def share(steps: Iterable[Step], *, event_triggers: bool) -> Iterator[Group]:
    """Yield the steps in order, claimed; neighbours are a group if they may share a message.

    The transactions of a message share now(). A step that may read it, or write rows, therefore begins a message; with
    event triggers any DDL may.
    """
    group: list[Claim] = []
    size = 0
    for step in steps:
        length = len(step.script.source.text)
        may_share = (
            step.direction is Direction.UP and step.migration.kind is Kind.SQL and step.script.mode is Mode.TRANSACTION
        )
        is_full = len(group) == MOST_STEPS or size + length > MOST_CHARACTERS
        if group and (is_full or not may_share or event_triggers or not is_inert(step.script)):
            yield tuple(group)
            group, size = [], 0
        # Only the first of a message may evaluate anything.
        group.append(Claim(step, uuid4().hex, may_be_outdated=len(group) < 2))  # noqa: PLR2004 - the first, and the next
        size += length
        if not may_share or loads_another_library(step.script):
            yield tuple(group)
            group, size = [], 0
    if group:
        yield tuple(group)


def compose(frames: Sequence[Frame], marker: str | None) -> Iterator[Message]:
    """Yield the messages that run the framed scripts in order: one, or several for one large script.

    The server says `marker` after each segment of a script that has several, if a marker is given.
    """
    pieces: list[str] = []
    parts: list[Part] = []
    length = 0
    for claim, head, tail in frames:
        script = claim.step.script
        marked = marker is not None and 1 < len(script.segments) <= MOST_MARKERS + 1
        end = END + mark(marker) if marked and marker else END
        pieces.append(head)
        length += len(head)
        for segment in script.segments:
            size = segment.end - segment.start
            if parts and length + size > 4 * CHUNK:
                yield Message("".join(pieces), tuple(parts))
                pieces, parts, length = [], [], 0
            parts.append(Part(length, claim, segment, marked))
            pieces += (script.source.text[segment.start : segment.end], end)
            length += size + len(end)
        pieces.append(tail)
        length += len(tail)
    yield Message("".join(pieces), tuple(parts))


def mark(marker: str) -> str:
    """Return the statement that lets the server say `marker`: everything before it is done.

    All of a run have the same text, of which pg_stat_statements keeps one entry. INFO, because pg_dump's
    client_min_messages stops NOTICE.
    """
    return f"DO $pgratchet$BEGIN RAISE INFO '{marker}';END$pgratchet$;"


def boundary(marker: str) -> str:
    """Return the notice between our own statements and a script, given that between the parts of scripts."""
    return f"{marker} ours"


def part_at(message: Message, position: int) -> Part | None:
    """Return the part that holds the character at `position` (from 1) of a message, None if no part does.

    A statement that ends too early is noticed at the semicolon that was put after it.
    """
    offset = position - 1
    for part in message.parts:
        if part.at <= offset < part.at + part.segment.end - part.segment.start + len(END):
            return part
    return None
