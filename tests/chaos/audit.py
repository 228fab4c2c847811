"""The conditions that a database has to meet after a trial; each violation is one sentence."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import anyio
import asyncpg

from tests.chaos.history import History
from tests.support import Connection, column, connected, states

KNOWN_ERRORS = (
    ("MigrationFailedError", r"canceling statement due to user request|57014|times in a row while the step ran"),
    ("ServerError", r"canceling statement due to user request"),
    ("BudgetExceededError", r""),
    ("InterruptedBySignalError", r""),
)
"""The errors with which a hurt replica may fail, each with a part of its text."""


GONE_SECONDS = 5.0

_LEFT = (
    "SELECT format('session %s of %s: %s', pid, usename, query) FROM pg_stat_activity "
    # A pooler keeps its sessions, which have to be idle then.
    "WHERE datname = current_database() AND application_name LIKE 'pgratchet%' "
    "AND (usename LIKE 'replica%' OR state <> 'idle') "
    "UNION ALL SELECT format('advisory lock of %s', l.pid) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
    "WHERE l.locktype = 'advisory' AND datname = current_database()"
)


class Report(NamedTuple):
    """The end of one life of a replica; a negative exit code is the signal that ended it."""

    replica: int
    life: int
    code: int
    finished: tuple[str, ...] = ()
    error: str = ""
    text: str = ""


async def audit(dsn: str, history: History, reports: Sequence[Report], log: str) -> list[str]:
    """Return the violations; `log` is the server's output of this trial."""
    async with connected(dsn) as connection:
        return [
            *judge_ledger(history, await connection.fetch("SELECT version, statement FROM ledger ORDER BY id")),
            *judge_rows(history, await connection.fetch("SELECT * FROM schema_migrations")),
            *await _judge_catalogue(connection, history),
            *judge_reports(history, reports),
            *judge_log(log),
        ]


async def undone(dsn: str, versions: Iterable[int], report: Report) -> list[str]:
    """Return the versions that are not applied although the replica has reported success; call it as that ends."""
    if report.code != 0:
        return []
    try:
        there = await states(dsn)
    except asyncpg.UndefinedTableError:
        there = {}
    return [
        f"replica {report.replica} has ended well, and version {version} is not applied"
        for version in versions
        if there.get(str(version)) != "applied"
    ]


async def abandoned(dsn: str) -> list[str]:
    """Return the sessions and locks that are left on the server some seconds after the last replica's end."""
    deadline = anyio.current_time() + GONE_SECONDS
    while True:
        wrong = [f"left on the server: {left}" for left in await column(dsn, _LEFT)]
        if not wrong or anyio.current_time() > deadline:
            return wrong
        await anyio.sleep(0.1)


def judge_ledger(history: History, rows: Iterable[Sequence[int]]) -> list[str]:
    """Check that every effect is there exactly once, and in order."""
    there = [(row[0], row[1]) for row in rows]
    count = Counter(there)
    wrong = [
        f"statement {statement} of version {version} took effect {count[version, statement]} times"
        for version, statement in history.effects
        if count[version, statement] != 1
    ]
    wrong += [f"an effect that nobody planned: {effect}" for effect in count if effect not in history.effects]
    first = list(dict.fromkeys(there))
    if first != sorted(first):
        wrong.append(f"the effects are out of order: {first}")
    return wrong


def judge_rows(history: History, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Check that each version has one row, applied and fully counted."""
    wrong = []
    by_version = {row["version"]: row for row in rows}
    for file in history.files:
        row = by_version.pop(str(file.version), None)
        if row is None:
            wrong.append(f"version {file.version} has no row")
        elif row["state"] != "applied" or row["statements_done"] != row["statements_total"]:
            done = f"{row['statements_done']} of {row['statements_total']}"
            wrong.append(f"version {file.version} is {row['state']}, with {done} statements: {row['error']}")
        elif file.statements not in (0, row["statements_total"]):
            wrong.append(f"version {file.version} has {file.statements} statements, not {row['statements_total']}")
    return wrong + [f"the history has a row of version {version}" for version in by_version]


def judge_reports(history: History, reports: Sequence[Report]) -> list[str]:
    """Check that no replica claims the work of another, and that each ended for a planned reason."""
    claimed = Counter(version for report in reports for version in report.finished)
    wrong = [f"version {version} was finished {times} times" for version, times in claimed.items() if times > 1]
    known = {str(file.version) for file in history.files}
    wrong += [f"version {version} was finished, and is none" for version in claimed if version not in known]
    return wrong + [f"unexpected end: {report}" for report in reports if not _is_known(history, report)]


def judge_log(log: str) -> list[str]:
    """Check that no deadlock was among pgratchet's sessions alone."""
    strangers = set(re.findall(r"\[(\d+)\] LOG:  connection authorized: .*application_name=stranger", log))
    wrong = []
    for found in re.finditer(r"ERROR:  deadlock detected\n((?:.*\n){1,6})", log):
        pids = set(re.findall(r"Process (\d+) waits", found[1]))
        if not pids & strangers:
            wrong.append(f"a deadlock between pgratchet's sessions {sorted(pids)}")
    return wrong


def _is_known(history: History, report: Report) -> bool:
    if report.code <= 0:
        return True
    if report.error == "HistoryError":
        return any(file.calls for file in history.files)
    return any(report.error == error and re.search(text, report.text) for error, text in KNOWN_ERRORS)


async def _judge_catalogue(connection: Connection, history: History) -> list[str]:
    rows = await connection.fetch(
        "SELECT c.relname, i.indisvalid AND i.indisready AS valid "
        "FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_class t ON t.oid = i.indrelid WHERE t.relname IN ('items', 'few') AND NOT i.indisprimary"
    )
    wrong = [f"the index {row['relname']} is invalid" for row in rows if not row["valid"]]
    there = {row["relname"] for row in rows}
    wrong += [f"the index {name} is missing" for name in history.indexes if name not in there]
    wrong += [f"nobody wanted the index {name}" for name in sorted(there - set(history.indexes))]
    for name in history.tables:
        if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", name):
            wrong.append(f"the table {name} is missing")
    return wrong
