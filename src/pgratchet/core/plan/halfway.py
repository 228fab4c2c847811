"""Half-done versions: the cursor in their history row, taking over, and the cases that only a person can decide.

A file that runs statement by statement has a cursor in its row, from which a later run resumes. Its text has the form
`DIGEST[ SESSION][>DIGEST[ {OIDS}] TIME]`:

- the digest of the finished statements, empty before the first;
- the role, settings and temporary objects that these have left in their session;
- from the beginning of a statement outside a transaction until it is counted: the digest that includes it, the oids of
  the objects that it is about, and the time of its beginning.
"""

from collections.abc import Iterable
from typing import NamedTuple

from pgratchet.core.errors import HistoryError
from pgratchet.core.model import Direction, Entry, HistoryRow, Mode, RecordState, Script, Step
from pgratchet.core.printing import line_of, printable

MARK = ">"
"""Separates the digest of the finished statements from the digest that includes the statement in progress."""

SESSION = "pgratchet.session"
"""The setting that holds the latest note of the session."""

TARGET = "pgratchet.target"
"""The setting that holds, in a transaction that begins a statement, the oids of the objects that it is about."""

UNMARKED = f"pg_catalog.split_part(cursor, '{MARK}', 1)"
"""SQL: the cursor of a row without the statement in progress."""

MARKED = f"pg_catalog.strpos(cursor, '{MARK}') OPERATOR(pg_catalog.>) 0"
"""SQL: the condition that a row has a statement in progress."""

HALF_DONE = (RecordState.RUNNING, RecordState.REVERTING)
"""The states of the rows of versions that a run has begun and not finished."""

FIRST_CHARACTERS = 60
"""How much of a statement a message quotes."""

_NOW = "pg_catalog.to_char(pg_catalog.clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS+00')"


class Begun(NamedTuple):
    """A statement in doubt: it was begun outside a transaction and never counted, so it may have taken effect.

    `digest` stands for it and the statements before it; `there` are the oids of the objects that it is about, None
    where they are not known.
    """

    digest: str
    at: str
    there: tuple[int, ...] | None = None


class Cursor(NamedTuple):
    """The finished statements of a row, and the one in progress; `session` is None where that is not recorded."""

    digest: str
    session: str | None = None
    begun: Begun | None = None

    @property
    def unmarked(self) -> str:
        """The text for a statement in progress that did not take effect."""
        return self.digest if self.session is None else f"{self.digest} {self.session}"

    @property
    def counted(self) -> str:
        """The text for a statement in progress that took effect."""
        return self._replace(digest=self.begun.digest if self.begun else self.digest).unmarked


class Settled(NamedTuple):
    """The new values of a version's row after a person's verdict."""

    state: RecordState
    statements_done: int = 0
    cursor: str | None = None


def cursor_of(row: HistoryRow | None) -> Cursor | None:
    """Return the cursor of a row; None for a row that counts no statements."""
    if row is None or row.cursor is None:
        return None
    finished, mark, progress = row.cursor.partition(MARK)
    digest, blank, session = finished.partition(" ")
    begun = None
    if mark:
        including, _, at = progress.partition(" ")
        begun = Begun(including, at)
        if at.startswith("{"):
            oids, _, at = at[1:].partition("} ")
            begun = Begun(including, at, tuple(int(oid) for oid in oids.split(",") if oid))
    return Cursor(digest, session if blank else None, begun)


def doubt(row: HistoryRow | None) -> Begun | None:
    """Return the statement of a row that is in doubt."""
    at = cursor_of(row)
    return at and at.begun


def cursor_after(digest: str) -> str:
    """Return the SQL of a cursor behind the statements of a digest, with the latest note of the session."""
    return f"pg_catalog.concat('{digest} ', pg_catalog.current_setting('{SESSION}'))"


def cursor_at_beginning(before: str, after: str) -> str:
    """Return the SQL of a cursor that says that the statement between two digests is about to run."""
    target = f"pg_catalog.current_setting('{TARGET}')"
    return f"pg_catalog.concat({cursor_after(before)}, '{MARK}{after} ', {target}, ' ', {_NOW})"


def is_begun(row: HistoryRow) -> bool:
    """Say whether an unfinished run may have left a part of the version in the database."""
    if row.state is RecordState.FAILED:
        return row.statements_done > 0
    return row.state in HALF_DONE


def goes_on(entry: Entry, direction: Direction) -> bool:
    """Say whether a run in this direction takes the version over once its own runner is gone."""
    row = entry.row
    if row is None or entry.migration is None or row.cursor is None:
        return False
    return row.state is (RecordState.RUNNING if direction is Direction.UP else RecordState.REVERTING)


def resumed(entry: Entry, direction: Direction, script: Script) -> tuple[int, HistoryRow | None]:
    """Return the number of finished statements, and the row to take over; 0 and None for a version to begin afresh.

    Raises HistoryError where the finished statements differ from those of the file.
    """
    row = entry.row
    if row is None:
        return 0, None
    failed = row.state is RecordState.FAILED and row.statements_done > 0 and direction is Direction.UP
    if not (failed or goes_on(entry, direction)):
        return 0, None
    at = cursor_of(row)
    if script.mode is Mode.TRANSACTION or _digest(script, row.statements_done) != (at and at.digest):
        message = (
            f"{script.source.path}: its first {row.statements_done} statement(s) are committed since an earlier run, "
            "but have changed in the file, or would share a transaction now; restore them as they were, and fix only "
            "the statements after them"
        )
        raise HistoryError(printable(message), [entry.version])
    return row.statements_done, row


def _digest(script: Script, done: int) -> str | None:
    """Return the digest of the first `done` statements of a script; None for a script with fewer statements."""
    # Not above: the modules that split SQL compile many patterns, and most starts find nothing half done.
    from pgratchet.core.sql.scripts import digests  # noqa: PLC0415

    return ["", *digests(script)][done] if done <= len(script.segments) else None


def taken_over(entries: Iterable[Entry], direction: Direction) -> list[HistoryRow]:
    """Return the rows of the half-done versions that this run continues. Call with the lock held.

    Raises HistoryError for half-done versions that it cannot continue: without the lock their runner may still be
    alive. A run up ignores versions without a file here: the image may be older than the database.
    """
    going_up = direction is Direction.UP
    rows, wrong = list[HistoryRow](), list[tuple[Entry, HistoryRow]]()
    for entry in entries:
        row = entry.row
        if row is None or not is_begun(row):
            continue
        if goes_on(entry, direction):
            rows.append(row)
        elif not (going_up and (entry.migration is None or row.state is RecordState.FAILED)):
            wrong.append((entry, row))
    if wrong:
        text = "\n".join(printable(_interrupted(entry, row)) for entry, row in wrong)
        raise HistoryError(text, [entry.version for entry, _ in wrong])
    return rows


def _interrupted(entry: Entry, row: HistoryRow) -> str:
    way = Direction.DOWN if row.state is RecordState.REVERTING else Direction.UP
    started = f"{row.started_at:%Y-%m-%d %H:%M:%S%z}" if row.started_at else "an unknown time"
    error = f" It ended with: {row.error}." if row.error else ""
    if row.cursor is None:
        cure = "It was to be one transaction, but has committed something: look at the database, then settle it with"
    elif entry.migration is None:
        cure = "It has no file here: finish it with the release that has it, or settle it with"
    else:
        cure = f"Finish it with `pgratchet {way}`, or settle it with"
    return (
        f"{way} {entry.version} {entry.name} was started at {started} by {row.applied_by} (server process "
        f"{row.backend_pid}) and not finished: {row.statements_done} of {row.statements_total} statements are "
        f"recorded as committed.{error} {cure} `pgratchet repair {entry.version}`"
    )


def refuse_unrecoverable(steps: Iterable[Step]) -> None:
    """Raise HistoryError, with all known facts, where only a person can say whether a statement in doubt took effect.

    Call with the lock held, once the runner that began the statement is gone.
    """
    for step in steps:
        begun = step.over and doubt(step.over)
        if not begun:
            continue
        from pgratchet.core.sql.bare import read  # noqa: PLC0415 - as in _digest

        if _digest(step.script, step.done + 1) != begun.digest:
            raise doubtful(step, "The file has another statement there now. ")
        bare = read(step.script.text_of(step.script.segments[step.done]))
        if not bare.is_recoverable or (bare.is_looked_up and begun.there is None):
            raise doubtful(step)


def doubtful(step: Step, found: str = "") -> HistoryError:
    """Return the error for a step with a statement in doubt; `found` is one more sentence for its message."""
    begun, row = doubt(step.over), step.over
    since = begun.at if begun else "an unknown time"
    who = f"{row.applied_by} (server process {row.backend_pid})" if row else "somebody"
    repair = f"pgratchet repair {step.migration.version}"
    message = (
        f"{_place(step)} was begun outside a transaction at {since} by {who}, and nobody knows whether it took "
        f"effect; {step.done} statement(s) before it are committed. {found}Look at the database, then run "
        f"`{repair} --skip` if it took effect, `{repair} --again` if it did not; --applied or --not-applied "
        "settle the whole migration"
    )
    return HistoryError(printable(message), [step.migration.version])


def has_lost_objects(row: HistoryRow) -> bool:
    """Say whether the finished statements have made temporary objects, which are gone with their session.

    Whether their settings can be made again is only known in a new session.
    """
    at = cursor_of(row)
    left = at.session if at else None
    # A setting is written with an equals sign.
    return any(" = " not in fact and "pg_temp" in fact for fact in (left or "").split("; "))


def other_session(step: Step, was: str, now: str) -> HistoryError:
    """Return the error for a next statement that needs a session which is gone and cannot be made again."""
    repair = f"pgratchet repair {step.migration.version}"
    message = (
        f"{_place(step)} comes next, but the {step.done} statement(s) before it have changed their session, which is "
        f"gone and cannot be made again. It had: {was or 'nothing of its own'}. The new one has: "
        f"{now or 'nothing of its own'}. Move this statement and all after it, with the settings and objects that they "
        f"need, into a new file and run `{repair} --applied`, or undo the committed statements and run "
        f"`{repair} --not-applied`"
    )
    return HistoryError(printable(message), [step.migration.version])


def _place(step: Step) -> str:
    script, path = step.script, step.script.source.path
    number = f"statement {step.done + 1} of {script.statements}"
    if step.done >= len(script.segments):
        return f"{path}: {number}"
    segment = script.segments[step.done]
    words = " ".join(script.text_of(segment).split())
    shown = words if len(words) <= FIRST_CHARACTERS else f"{words[:FIRST_CHARACTERS]}..."
    return f"{path}:{line_of(script.source.text, segment.start)}: {number} ({shown})"
