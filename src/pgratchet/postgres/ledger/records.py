"""The SQL that writes the history: claims, records, counts and failures, each fenced."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from pgratchet.core.model import Direction, Entry, HistoryRow, Lock, Migration, Mode, RecordState, Step
from pgratchet.core.plan.halfway import MARKED, UNMARKED, Settled, cursor_after, cursor_at_beginning
from pgratchet.postgres.ledger.transitions import (
    CLAIM,
    FAIL,
    RECORD,
    REMOVE,
    RESUME,
    RESUME_REVERT,
    REVERT,
    SETTLE_APPLIED,
    SETTLE_NOT_APPLIED,
)
from pgratchet.postgres.link.own import Guard, Guards
from pgratchet.postgres.link.sql import EQ, NE, Table, literal

DURABLE = (
    "SELECT pg_catalog.set_config('synchronous_commit', 'on', true) "
    f"WHERE pg_catalog.current_setting('synchronous_commit') {EQ} 'off';"
)
"""Makes this COMMIT, and all earlier ones of its session, survive a crash, whatever a role or a script has set.

Only `off` is weaker than that; `local` and stronger values stay as they are.
"""

FLUSH = f"BEGIN;{DURABLE}SELECT pg_catalog.pg_logical_emit_message(true, 'pgratchet', '');COMMIT;"
"""Makes durable everything that any session has committed before: its COMMIT has a record of its own to write."""

STILL_HELD = "CASE WHEN pg_catalog.pg_advisory_unlock({key}) THEN pg_catalog.pg_try_advisory_lock({key}) ELSE false END"
"""The SQL condition that a backend which took the lock twice has not lost it since.

It gives the lock back once and takes it again, which is true only for its holder and leaves it held all along. To read
pg_locks takes as long as a small migration, and longer the more locks there are.
"""

_TRY_LOCK = "pg_catalog.pg_try_advisory_xact_lock({key})"
"""The SQL condition that takes the lock until the transaction ends; false where another session has it.

It is the same lock as a session's: runners with and without a pooler exclude each other.
"""

_NOW = "pg_catalog.clock_timestamp()"


class Writer(NamedTuple):
    """A runner, as the rows that it makes name it."""

    applied_by: str
    backend_start: str
    tool_version: str


class Applied(NamedTuple):
    """A set of applied versions, in a form that the server can compare with the history."""

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

    `before` are the versions applied before it; None if no other runner can have changed them since the plan. The
    session `may_be_outdated` unless the step before has evaluated nothing.
    """

    step: Step
    token: str
    before: Applied | None = None
    may_be_outdated: bool = True


class Records(NamedTuple):
    """The SQL of one history table, for the runs that `lock` keeps apart.

    Where no session holds the lock from step to step, each transaction checks whether it may still run its step.

    `check` begins every transaction that writes: it raises if another session may have attached a trigger. It is empty
    if the transaction itself has locked and inspected the table. `check_claim` does the same before a claim, which a
    session that is out of date must not make. The columns that are `absent` are not written.
    """

    table: Table
    lock: Lock
    guards: Guards
    check: str = ""
    check_claim: str = ""
    absent: frozenset[str] = frozenset()

    def claim(self, claim: Claim, writer: Writer) -> str:
        """Return the SQL that claims a version: the first statements of its transaction.

        It raises where another runner has the lock, or the applied versions are not those of the plan.

        The primary key makes the claim a second lock: of two runners the second one waits here for the other's COMMIT,
        and then fails with 23505, or on the fence where it goes down or on.
        """
        step = claim.step
        turn = self.check_claim if claim.may_be_outdated else self.check
        if self.lock is Lock.TRANSACTION:
            turn = self.guards.unless({Guard.BUSY: _TRY_LOCK.format(key=self.table.lock_key)}) + turn
        if claim.before is not None:
            # A statement of its own: the snapshot of the statement that takes the lock is older than the lock.
            turn += self.guards.unless({Guard.MOVED: claim.before.holds(self.table)})
        going_up = step.direction is Direction.UP
        row = _row(claim, writer)
        if step.over is None and going_up:
            return f"{turn}{self._insert(row | {'state': CLAIM.value}, replaces=step.replaces)};"
        kept = {"version", "name", "kind"}
        if step.over is None:
            transition, condition = REVERT, REVERT.condition
        else:
            # Of two runs that saw the same runner die only one finds its token still there. The cursor, because the
            # row as read may be older than the last count or mark of that runner (model/, variant STALE).
            transition, condition = (RESUME if going_up else RESUME_REVERT), _as_read(step.over)
            kept.add("cursor")
        if not going_up:
            # On the way up, the file may have been fixed behind the finished statements.
            kept |= {"checksum", "compatible_with"}
        values = {name: value for name, value in row.items() if name not in kept} | {
            "state": transition.value,
            "statements_done": literal(step.done),
            "error": "NULL",
        }
        where = f"version {EQ} {row['version']} AND {condition}"
        return turn + self._fenced(self._update(values, where), f"token {EQ} {row['token']}")

    def record(self, claim: Claim) -> str:
        """Return the SQL that records a claimed step: the last statement before COMMIT. It raises if it cannot.

        It requires the lock, and that this very transaction has written the row (its xmin): a script that committed,
        rolled back, unlocked or touched the row fails here. Statement by statement it requires that all are counted.
        """
        step = claim.step
        check, proof = "", f"xmin {EQ} pg_catalog.pg_current_xact_id()::pg_catalog.xid"
        if step.script.mode is Mode.STATEMENTS:
            check, proof = self.check, f"statements_done {EQ} {step.script.statements}"
        where = f"{_own(claim)} AND {proof} AND "
        if step.direction is Direction.DOWN:
            return check + self._fenced(f"DELETE FROM {self.table.quoted} WHERE {where}{REMOVE.condition}", "true")
        values = {
            "state": RECORD.value,
            "statements_done": "statements_total",
            "finished_at": _NOW,
            "error": "NULL",
        }
        update = self._update(values, where + RECORD.condition)
        return check + self._fenced(update, f"state {EQ} {RECORD.value}")

    def tally(self, claim: Claim, done: int, digest: str) -> str:
        """Return the SQL that counts statement number `done`. It raises unless the one before it is counted."""
        values = {"statements_done": literal(done), "cursor": cursor_after(digest)}
        update = self._update(values, f"{_own(claim)} AND statements_done {EQ} {done - 1}")
        return self.check + self._fenced(update, f"statements_done {EQ} {done}")

    def note(self, claim: Claim, digest: str) -> str:
        """Return the SQL that corrects the recorded note of the session, where a transaction's end has changed it."""
        noted = cursor_after(digest)
        return f"{self.check}{self._update({'cursor': noted}, f'{_own(claim)} AND cursor {NE} ({noted})')};"

    def begin(self, claim: Claim, done: int, before: str, after: str) -> str:
        """Return the SQL that marks the statement behind the first `done` as begun outside a transaction.

        It raises for a runner that has lost its row or its lock, which then stops before it does anything.
        """
        update = self._update(
            {"cursor": cursor_at_beginning(before, after)}, f"{_own(claim)} AND statements_done {EQ} {done}"
        )
        return self.check + self._fenced(update, MARKED)

    def touch(self, claim: Claim) -> str:
        """Return the SQL that writes a claimed row as it is. It raises if something keeps that from being done."""
        return self._fenced(self._update({"error": "'pgratchet'"}, _own(claim)), f"error {EQ} 'pgratchet'")

    def doubt(self, claim: Claim, error: str) -> str:
        """Return the SQL that records the error of a step that may have taken effect.

        State and mark stay as they are: the next run has to judge.
        """
        return f"{self.check}{self._update({'error': literal(error)}, _own(claim))};"

    def fail(self, claim: Claim, writer: Writer, error: str) -> str:
        """Return the SQL that records a failure, to be sent in a transaction of its own.

        A step that was rolled back gets a new row. A row of ours that is still there says that something has been
        committed: it keeps its state, unless it counts statements and can be resumed.
        """
        values = {"error": literal(error)}
        going_up = claim.step.direction is Direction.UP
        if claim.step.script.mode is Mode.STATEMENTS:
            values["cursor"] = UNMARKED
            if going_up:
                values |= {"state": FAIL.value, "finished_at": _NOW}
            return f"{self.check}{self._update(values, _own(claim))};"
        if not going_up:
            version = f"version {EQ} {literal(claim.step.migration.version)}"
            return f"{self.check}{self._update(values, version)};"
        update = self._update(values, _own(claim))
        row = _row(claim, writer) | {"state": FAIL.value, "finished_at": _NOW}
        insert = self._insert(row | values, replaces=True)
        return f"{self.check}{update};{insert} ON CONFLICT (version) DO NOTHING;"

    def settle(self, entry: Entry, settled: Settled, writer: Writer, reason: str) -> str:
        """Return the SQL that records a person's verdict, on a row that has not changed since it was read."""
        migration, row = entry.migration, entry.row
        values = {
            "statements_done": literal(settled.statements_done),
            "cursor": literal(settled.cursor),
            "finished_at": _NOW,
            "applied_by": literal(writer.applied_by),
            "tool_version": literal(writer.tool_version),
            "error": "NULL",
            "reason": literal(reason),
        }
        # A verdict on one statement keeps the state.
        for transition in (SETTLE_APPLIED, SETTLE_NOT_APPLIED):
            if settled.state is transition.after:
                values["state"] = transition.value
        if migration is not None and settled.state is SETTLE_APPLIED.after:
            values |= _file(migration)
        proof = f"state {EQ} {literal(settled.state)}"
        if row is None:
            return self._fenced(self._insert(values, replaces=False), proof)
        return self._fenced(self._update(values, f"version {EQ} {literal(row.version)} AND {_as_read(row)}"), proof)

    def accept(self, row: HistoryRow, migration: Migration, reason: str) -> str:
        """Return the SQL that records a file as that of an applied version, on a row that has not changed since."""
        where = f"version {EQ} {literal(row.version)} AND {_as_read(row)} AND checksum {EQ} {literal(row.checksum)}"
        update = self._update(_file(migration) | {"reason": literal(reason)}, where)
        return self._fenced(update, f"checksum {EQ} {literal(migration.checksum)}")

    def _insert(self, row: dict[str, str], *, replaces: bool) -> str:
        """Return the SQL that inserts a row, in place of one that an earlier attempt has left if it `replaces` that.

        A row keeps the reason of the one that it replaces, if the table has reasons.
        """
        left_over = ""
        if replaces:
            row |= {"reason": "(SELECT reason FROM left_over)"}
            kept = "" if "reason" in self.absent else " RETURNING reason"
            delete = f"DELETE FROM {self.table.quoted} WHERE version {EQ} {row['version']} AND {CLAIM.condition}{kept}"
            left_over = f"WITH left_over AS ({delete}) "
        row = {name: value for name, value in row.items() if name not in self.absent}
        return f"{left_over}INSERT INTO {self.table.quoted} ({', '.join(row)}) VALUES ({', '.join(row.values())})"

    def _update(self, values: dict[str, str], where: str) -> str:
        settings = ", ".join(f"{name} = {value}" for name, value in values.items() if name not in self.absent)
        # A row whose columns are all absent is written all the same, as it is.
        return f"UPDATE {self.table.quoted} SET {settings or 'version = version'} WHERE {where}"

    def _fenced(self, act: str, proof: str) -> str:
        """Return SQL that writes exactly one row, under the lock, or raises.

        The row must be as `proof` says afterwards: a trigger can undo an UPDATE. The count keeps the planner from
        folding the cast into a constant.
        """
        held = STILL_HELD.format(key=self.table.lock_key) if self.lock is Lock.SESSION else "true"
        one = f"pg_catalog.count(*) FILTER (WHERE written) {EQ} 1 AND pg_catalog.count(*) {EQ} 1"
        fence = self.guards.unless({Guard.LOCK: held, Guard.ROW: one}, "FROM touched")
        return f"WITH touched AS ({act} RETURNING {proof} AS written) {fence}"


def _row(claim: Claim, writer: Writer) -> dict[str, str]:
    """Return the values of a claimed row about its file and its runner, as SQL by column."""
    script = claim.step.script
    return _file(claim.step.migration) | {
        "statements_total": literal(script.statements),
        "cursor": literal("" if script.mode is Mode.STATEMENTS else None),
        "started_at": _NOW,
        "applied_by": literal(writer.applied_by),
        "backend_pid": "pg_catalog.pg_backend_pid()",
        "backend_start": literal(writer.backend_start),
        "token": literal(claim.token),
        "tool_version": literal(writer.tool_version),
    }


def _file(migration: Migration) -> dict[str, str]:
    return {
        "version": literal(migration.version),
        "name": literal(migration.name),
        "kind": literal(migration.kind),
        "checksum": literal(migration.checksum),
        "compatible_with": literal(migration.up.options.compatible_with),
    }


def _own(claim: Claim) -> str:
    return f"version {EQ} {literal(claim.step.migration.version)} AND token {EQ} {literal(claim.token)}"


def _as_read(row: HistoryRow) -> str:
    values = {"state": row.state, "token": row.token, "cursor": row.cursor}
    return " AND ".join(
        f"{name} IS NULL" if value is None else f"{name} {EQ} {literal(value)}" for name, value in values.items()
    )
