"""Processes that own a private server, under another account too."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pgratchet import embedded
from tests.support import missing

OWNER = """
import json, os, subprocess, sys, threading, time
from pathlib import Path
from pgratchet import embedded
SLEEPER = "import time; time.sleep(5)"
with embedded.server(folder=Path(sys.argv[1]), tcp=len(sys.argv) > 2) as server:
    WHAT
    state = {"pid": server.pid, "dsn": server.dsn, "uid": os.getuid(), "owner": os.stat(server.data).st_uid}
    print(json.dumps(state), flush=True)
    sys.stdin.readline()
"""


def owner(
    folder: Path,
    what: str = "pass",
    *options: str,
    python: str = sys.executable,
    account: pwd.struct_passwd | None = None,
    **environment: str,
) -> subprocess.Popen[str]:
    """Start a process that owns a server: it executes `what`, reports its server, and ends at the next line of input.

    With the option `tcp` the server listens on a port, too.
    """
    return subprocess.Popen(
        [python, "-c", OWNER.replace("WHAT", what), str(folder), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
        start_new_session=True,
    )


def ordinary_owner(folder: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Start the same process as the user nobody, with its servers in `folder / "servers"`. Only root can do so."""
    package = folder / "pgratchet"
    source = Path(embedded.__file__).parent
    # Without the package's own __init__: it imports packages that this interpreter may lack.
    shutil.copytree(source / "core", package / "core")
    shutil.copy(source / "embedded.py", package)
    servers = folder / "servers"
    servers.mkdir()
    nobody = pwd.getpwnam("nobody")
    os.chown(servers, nobody.pw_uid, nobody.pw_gid)
    return owner(
        servers, "pass", *options, python=readable_python(), account=nobody, PYTHONPATH=str(folder), **environment
    )


def readable_python() -> str:
    """Return a Python that is new enough and that the user nobody can execute."""
    nobody = pwd.getpwnam("nobody")
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        command = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        with suppress(OSError):
            if subprocess.run(command, user=nobody.pw_uid, cwd="/", check=False).returncode == 0:
                return python
    return missing("the user nobody can execute no Python here")


def said(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def leave(process: subprocess.Popen[str]) -> float:
    """End the owner, and return the seconds that this took."""
    begun = time.monotonic()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=20) == 0
    return time.monotonic() - begun


def parent(pid: int) -> int:
    return int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(pid)]))
