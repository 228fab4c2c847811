"""Whether this image may run on this database: what is wrong between files and history, and what is only odd."""

from collections.abc import Collection, Sequence
from operator import attrgetter

from pgratchet.core.errors import HistoryError
from pgratchet.core.model import Entry, Migration, Ranking, State
from pgratchet.core.plan.halfway import is_begun
from pgratchet.core.printing import printable


def judge(
    entries: Sequence[Entry], rank: Ranking, *, allow_late: bool = False, strict: bool = False
) -> tuple[str, ...]:
    """Return the warnings that files and history give rise to.

    Raises HistoryError with all that is wrong: an edited migration; a late one, unless late ones are allowed; a
    version that has no file, where its floor lies above the newest file, or where `strict` (otherwise a warning:
    an older image has to start after a rollback, see sqlalchemy/alembic#691).
    """
    files = {entry.version: entry.migration for entry in entries if entry.migration}
    newest = max(files.values(), key=attrgetter("rank"), default=None)
    wrong: list[tuple[Entry, str]] = []
    warnings: list[str] = []
    for entry in entries:
        match entry.state:
            case _ if _is_below_floor(entry, files, newest, rank):
                wrong.append((entry, _below_floor(entry, newest)))
            case State.CHANGED:
                wrong.append((entry, _changed(entry)))
            case State.LATE if not allow_late:
                wrong.append((entry, _late(entry)))
            case State.UNKNOWN | State.RUNNING if strict and not entry.migration:
                wrong.append((entry, unknown(entry) + "; deploy the release that has it"))
            case State.UNKNOWN | State.RUNNING if not entry.migration:
                warnings.append(unknown(entry))
            case _:
                pass
    if wrong:
        raise HistoryError("\n".join(printable(text) for _, text in wrong), [entry.version for entry, _ in wrong])
    return tuple(warnings)


def label(entry: Entry) -> str:
    """Return how people call a version."""
    return f"{entry.version} {entry.name}"


def unknown(entry: Entry) -> str:
    """Return what there is to say of a version that only the database knows."""
    where = "half done" if entry.row and is_begun(entry.row) else "in the database"
    return f"{label(entry)} is {where}, but has no file here"


def _is_below_floor(entry: Entry, files: Collection[str], newest: Migration | None, rank: Ranking) -> bool:
    """Say whether the author of a migration without a file here has ruled out code as old as this one's files."""
    floor = entry.row.compatible_with if entry.row and not entry.migration else None
    if floor is None or floor in files:
        return False
    known = rank(floor)
    return newest is None or known is None or newest.rank < known


def _below_floor(entry: Entry, newest: Migration | None) -> str:
    floor = entry.row.compatible_with if entry.row else None
    here = "there are no files here" if newest is None else f"the newest file here is {newest.version}"
    return (
        f"{label(entry)} is in the database, and code that does not know version {floor} cannot live with it "
        f"(compatible-with={floor}), but {here}; deploy a release that has version {floor}, or revert "
        f"{entry.version} with the release that has it"
    )


def _changed(entry: Entry) -> str:
    when = entry.row.finished_at if entry.row else None
    moment = f" on {when:%Y-%m-%d %H:%M:%S%z}" if when else ""
    path = entry.migration.up.path if entry.migration else entry.name
    return (
        f"{path} was edited after it had been applied{moment}; restore the file and put the change into a new migration"
    )


def _late(entry: Entry) -> str:
    path = entry.migration.up.path if entry.migration else entry.name
    return f"{path} is pending, but later versions are applied; give it a number above them, or allow late migrations"
