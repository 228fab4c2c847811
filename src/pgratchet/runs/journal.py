"""A local diary of finished steps, one JSON object a line, for people; no code reads it."""

import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pgratchet.core.model import Finished
from pgratchet.core.printing import to_json

_log = logging.getLogger("pgratchet")


def append(path: Path, finished: Sequence[Finished]) -> None:
    """Add a line for each finished step; a file that cannot be written is a warning."""
    if not finished:
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lines = "".join(to_json({"at": now} | step._asdict()) + "\n" for step in finished)
    try:
        with open(path, "a", encoding="utf-8", opener=_open) as file:
            file.write(lines)
    except OSError as error:
        _log.warning("the journal %s cannot be written: %s", path, error.strerror)


def _open(path: str, flags: int) -> int:
    # Without O_NONBLOCK a named pipe without a reader would block a run that is done.
    return os.open(path, flags | os.O_NONBLOCK, 0o666)
