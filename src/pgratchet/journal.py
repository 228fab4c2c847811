"""A local diary of what was done, one JSON object a line: for people; nothing ever reads it to decide."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pgratchet.core.model import Finished

_log = logging.getLogger("pgratchet")


def append(path: Path, finished: Sequence[Finished]) -> None:
    """Add a line for each finished step; a file that cannot be written is a warning."""
    if not finished:
        return
    import json  # noqa: PLC0415 - most starts finish nothing

    now = datetime.now(UTC).isoformat(timespec="seconds")
    lines = "".join(json.dumps({"at": now} | step._asdict()) + "\n" for step in finished)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(lines)
    except OSError as error:
        _log.warning("the journal %s cannot be written: %s", path, error.strerror)
