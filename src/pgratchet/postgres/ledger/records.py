"""The SQL that writes the history: claims, records, counts and failures, each fenced."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from pgratchet.core.model import Direction, Entry, HistoryRow, Migration, Mode, RecordState, Step
from pgratchet.core.plan import halfway
from pgratchet.core.plan.halfway import Settled
from pgratchet.postgres.ledger.trust import Seal
from pgratchet.postgres.link.own import Guard, Guards
from pgratchet.postgres.link.sql import EQ, NE, Table, literal

DURABLE = (
    "SELECT pg_catalog.set_config('synchronous_commit', 'on', true) "
    f"WHERE pg_catalog.current_setting('synchronous_commit') {EQ} 'off';"
)
"""Has the transaction's COMMIT, and all its session's before it, survive a crash, whatever a role or a script has set.

Only `off` is weaker than that; `local` and up stay as somebody wants them.
"""

FLUSH = f"BEGIN;{DURABLE}SELECT pg_catalog.pg_logical_emit_message(true, 'pgratchet', '');COMMIT;"
"""Makes everything durable that any session has committed before: its COMMIT has something of its own to write."""


class Writer(NamedTuple):
    """A runner, as the rows that it makes name it."""

    applied_by: str
    backend_start: str
    tool_version: str


class Applied(NamedTuple):
    """A set of applied versions, in a form of which the server can tell whether it still is the history's."""

    total: int
    digest: str

    @classmethod
    def of(cls, versions: Sequence[bytes]) -> "Applied":
        """Return the form of versions in UTF-8 and in order."""
        return cls(len(versions), hashlib.sha256(b"\0".join(versions)).hexdigest())

    def holds(self, table: Table) -> str:
        """Return the condition that is true while exactly these versions are applied.

        Neither the collation nor the encoding of the database has a part in it, and no text of a server has a NUL.
        """
        version = "pg_catalog.convert_to(version, 'UTF8')"
        joined = f"pg_catalog.string_agg({version}, pg_catalog.decode('00', 'hex') ORDER BY {version})"
        digest = f"pg_catalog.encode(pg_catalog.sha256(COALESCE({joined}, '')), 'hex')"
        return (
            f"(SELECT pg_catalog.count(*) {EQ} {self.total} AND {digest} {EQ} {literal(self.digest)} "
            f"FROM {table.quoted} WHERE state {EQ} {literal(RecordState.APPLIED)})"
        )


class Claim(NamedTuple):
    """A step that a run is about to do, and the random token by which it knows its own row again.

    `before` are the applied versions that it is to be done after, None where nobody can have changed them since.
    """

    step: Step
    token: str
    before: Applied | None = None


class Records(NamedTuple):
    """The SQL of one history table.

    `lock_held` is the condition under which a run still holds its lock. Where none is held from step to step,
    `take_lock` takes it for the length of a transaction, or is empty where there is none at all; then each
    transaction finds out for itself whether it still is that step's turn.

    `seal` is None where the transaction itself has locked and inspected the table. The columns that are `absent` are
    not written.
    """

    table: Table
    lock_held: str
    guards: Guards
    take_lock: str | None = None
    seal: Seal | None = None
    absent: frozenset[str] = frozenset()

    @property
    def _checked(self) -> str:
        """The SQL that begins every transaction that writes: it raises where somebody may have attached a trigger."""
        return self.seal.check(self.guards) if self.seal else ""

    def claim(self, claim: Claim, writer: Writer) -> str:
        """Return the SQL that claims a version: the first thing in its transaction.

        The primary key makes the claim a second lock: of two runners one waits here for the other's COMMIT,
        and then fails with 23505, or on the fence where it goes down or on.
        """
        return self._turn(claim) + self._claim(claim, writer)

    def _turn(self, claim: Claim) -> str:
        """Return the SQL that raises where somebody else has the lock, or the history is not as it was planned for."""
        if self.take_lock is None:
            return self._checked
        taken = self.guards.unless({Guard.BUSY: self.take_lock}) if self.take_lock else ""
        if claim.before is None:
            return taken + self._checked
        # A statement of its own: the snapshot of the one that takes the lock is older than the lock.
        return taken + self._checked + self.guards.unless({Guard.MOVED: claim.before.holds(self.table)})

    def _claim(self, claim: Claim, writer: Writer) -> str:
        step = claim.step
        if step.over is not None:
            # Of two that saw the same runner die only one finds its token still there. The cursor, because what was
            # read may be older than the last thing that the runner has counted or begun (model/, variant STALE).
            return self._take(claim, writer, _as_read(step.over), {})
        if step.direction is Direction.DOWN:
            return self._take(claim, writer, f"state {EQ} {literal(RecordState.APPLIED)}", _first_cursor(step))
        return self._insert(claim, writer, RecordState.RUNNING, None, replaces=step.replaces) + ";"

    def record(self, claim: Claim) -> str:
        """Return the SQL that records a claimed step: the last thing before COMMIT. It raises if it cannot.

        It cannot unless the row was written by this very transaction (its xmin) and the lock is still held:
        a script that committed, rolled back, unlocked or touched the row fails here instead of lying.
        """
        return self._finish(claim, f"xmin {EQ} pg_catalog.pg_current_xact_id()::pg_catalog.xid")

    def tally(self, claim: Claim, done: int, digest: str) -> str:
        """Return the SQL that counts statement number `done`. It raises unless the one before it is counted."""
        values = {"statements_done": literal(done), "cursor": halfway.cursor_after(digest)}
        update = self._update(values, f"{self._own(claim)} AND statements_done {EQ} {done - 1}")
        return self._checked + self._fenced(update, f"statements_done {EQ} {done}")

    def note(self, claim: Claim, digest: str) -> str:
        """Return the SQL that puts right what is recorded of the session, where a transaction's end has changed it."""
        noted = halfway.cursor_after(digest)
        return f"{self._checked}{self._update({'cursor': noted}, f'{self._own(claim)} AND cursor {NE} ({noted})')};"

    def begin(self, claim: Claim, done: int, before: str, after: str) -> str:
        """Return the SQL that says that the statement behind the first `done` is about to run bare.

        It raises for a runner that has lost its row or its lock: that one stops before it does anything.
        """
        values = {"cursor": halfway.cursor_at_beginning(before, after)}
        update = self._update(values, f"{self._own(claim)} AND statements_done {EQ} {done}")
        return self._checked + self._fenced(update, halfway.MARKED)

    def close(self, claim: Claim) -> str:
        """Return the SQL that records a script whose statements are all counted. It raises if they are not."""
        return self._checked + self._finish(claim, f"statements_done {EQ} {claim.step.script.statements}")

    def doubt(self, claim: Claim, error: str) -> str:
        """Return the SQL that says what happened to a step of which nobody knows how far it came.

        State and mark stay as they are: the next run has to judge.
        """
        return self._checked + self._update({"error": literal(error)}, self._own(claim)) + ";"

    def fail(self, claim: Claim, writer: Writer, error: str) -> str:
        """Return the SQL that records a failure, to be sent in a transaction of its own.

        What was rolled back gets a new row. A row of ours that is still there says that something has been
        committed: it keeps its state, unless it counts statements and can be gone on with.
        """
        values = {"error": literal(error)}
        up = claim.step.direction is Direction.UP
        if claim.step.script.mode is Mode.STATEMENTS:
            values["cursor"] = halfway.UNMARKED
            if up:
                values |= {"state": literal(RecordState.FAILED), "finished_at": "pg_catalog.clock_timestamp()"}
            return f"{self._checked}{self._update(values, self._own(claim))};"
        if not up:
            return f"{self._checked}{self._update(values, self._version(claim))};"
        update = self._update(values, self._own(claim))
        insert = self._insert(claim, writer, RecordState.FAILED, error, replaces=True)
        return f"{self._checked}{update};{insert} ON CONFLICT (version) DO NOTHING;"

    def settle(self, entry: Entry, settled: Settled, writer: Writer, reason: str) -> str:
        """Return the SQL that records a person's verdict, on a row that has not changed since it was read."""
        migration, row = entry.migration, entry.row
        values = {
            "state": literal(settled.state),
            "statements_done": literal(settled.statements_done),
            "cursor": literal(settled.cursor),
            "finished_at": "pg_catalog.clock_timestamp()",
            "applied_by": literal(writer.applied_by),
            "tool_version": literal(writer.tool_version),
            "error": "NULL",
            "reason": literal(reason),
        }
        if migration is not None and settled.state is RecordState.APPLIED:
            values |= self._file(migration)
        proof = f"state {EQ} {literal(settled.state)}"
        if row is None:
            return self._fenced(self._new(values), proof)
        return self._fenced(self._update(values, f"version {EQ} {literal(row.version)} AND {_as_read(row)}"), proof)

    def _insert(self, claim: Claim, writer: Writer, state: RecordState, error: str | None, *, replaces: bool) -> str:
        """Return the SQL that inserts a row, in the place of one that is left from before if it `replaces` that."""
        left = f"'{{{RecordState.FAILED},{RecordState.PENDING}}}'::pg_catalog.text[]"
        delete = f"DELETE FROM {self.table.quoted} WHERE {self._version(claim)} AND state {EQ} ANY ({left})"
        migration = claim.step.migration
        now = "pg_catalog.clock_timestamp()"
        # A row keeps the reason of the one that it replaces, if the table has any.
        kept = "RETURNING reason" if "reason" not in self.absent else ""
        insert = self._new(
            self._file(migration)
            | {
                "state": literal(state),
                "statements_total": literal(claim.step.script.statements),
                "started_at": now,
                "finished_at": "NULL" if error is None else now,
                "error": literal(error),
                "reason": "(SELECT reason FROM left_over)" if replaces else "NULL",
            }
            | (_first_cursor(claim.step) | self._writer(claim, writer))
        )
        return f"WITH left_over AS ({delete} {kept}) {insert}" if replaces else insert

    def _take(self, claim: Claim, writer: Writer, condition: str, more: dict[str, str]) -> str:
        """Take over the one row that is there already, as it should be."""
        step = claim.step
        values = (
            {
                "state": literal(RecordState.REVERTING if step.direction is Direction.DOWN else RecordState.RUNNING),
                "statements_done": literal(step.done),
                "statements_total": literal(step.script.statements),
                "started_at": "pg_catalog.clock_timestamp()",
                "error": "NULL",
            }
            | self._writer(claim, writer)
            | more
        )
        if step.direction is Direction.UP:
            # What comes after the finished statements may have been fixed since.
            values["checksum"] = literal(step.migration.checksum)
            values["compatible_with"] = literal(step.migration.up.options.compatible_with)
        update = self._update(values, f"{self._version(claim)} AND {condition}")
        return self._fenced(update, f"token {EQ} {literal(claim.token)}")

    def _file(self, migration: Migration) -> dict[str, str]:
        return {
            "version": literal(migration.version),
            "name": literal(migration.name),
            "kind": literal(migration.kind),
            "checksum": literal(migration.checksum),
            "compatible_with": literal(migration.up.options.compatible_with),
        }

    def _writer(self, claim: Claim, writer: Writer) -> dict[str, str]:
        return {
            "applied_by": literal(writer.applied_by),
            "backend_pid": "pg_catalog.pg_backend_pid()",
            "backend_start": literal(writer.backend_start),
            "token": literal(claim.token),
            "tool_version": literal(writer.tool_version),
        }

    def _finish(self, claim: Claim, condition: str) -> str:
        mine = f"{self._own(claim)} AND {condition}"
        if claim.step.direction is Direction.DOWN:
            return self._fenced(f"DELETE FROM {self.table.quoted} WHERE {mine}", "true")
        values = {
            "state": literal(RecordState.APPLIED),
            "statements_done": "statements_total",
            "finished_at": "pg_catalog.clock_timestamp()",
            "error": "NULL",
        }
        return self._fenced(self._update(values, mine), f"state {EQ} {literal(RecordState.APPLIED)}")

    def _update(self, values: dict[str, str], where: str) -> str:
        # A row of which nothing can be said is written all the same, as it is.
        written = self._written(values) or {"state": "state"}
        settings = ", ".join(f"{name} = {value}" for name, value in written.items())
        return f"UPDATE {self.table.quoted} SET {settings} WHERE {where}"

    def _new(self, values: dict[str, str]) -> str:
        written = self._written(values)
        return f"INSERT INTO {self.table.quoted} ({', '.join(written)}) VALUES ({', '.join(written.values())})"

    def _written(self, values: dict[str, str]) -> dict[str, str]:
        """Return the values of the columns that the table has."""
        return {name: value for name, value in values.items() if name not in self.absent}

    def _version(self, claim: Claim) -> str:
        return f"version {EQ} {literal(claim.step.migration.version)}"

    def _own(self, claim: Claim) -> str:
        return f"{self._version(claim)} AND token {EQ} {literal(claim.token)}"

    def _fenced(self, act: str, proof: str) -> str:
        """Return SQL that acts on exactly one row, under the lock, or raises.

        The row must be as `proof` says afterwards: a trigger can undo an UPDATE. The cast raises without plpgsql; the
        count keeps the planner from folding it into a constant.
        """
        one = f"pg_catalog.count(*) FILTER (WHERE written) {EQ} 1 AND pg_catalog.count(*) {EQ} 1"
        fence = self.guards.unless({Guard.LOCK: self.lock_held, Guard.ROW: one}, "FROM touched")
        return f"WITH touched AS ({act} RETURNING {proof} AS written) {fence}"


def _as_read(row: HistoryRow) -> str:
    values = {"state": row.state, "token": row.token, "cursor": row.cursor}
    return " AND ".join(
        f"{name} IS NULL" if value is None else f"{name} {EQ} {literal(value)}" for name, value in values.items()
    )


def _first_cursor(step: Step) -> dict[str, str]:
    return {"cursor": literal("" if step.script.mode is Mode.STATEMENTS else None)}
