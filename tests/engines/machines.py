"""Programs that stand for machines: each with all that it starts, and gone at once when it is lost."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pgratchet import embedded
from tests.support import missing


class Machine:
    """A program in a process namespace of its own, with a folder that belongs to its account.

    It ends with this process.
    """

    def __init__(self, folder: Path, command: Sequence[str | Path], **environment: str) -> None:
        folder.mkdir()
        self.folder = folder
        self._account = embedded._account()
        self._command = [str(word) for word in command]
        self._environment = {
            **embedded._environment(sys.executable),
            "HOME": str(folder),
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        embedded._give(folder, self._account)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        embedded._give(self.folder, self._account)

    def start(self) -> None:
        """Start the program. Call this in the main thread: the kernel ends it with the thread that has started it."""
        # A process that has changed its user is not ended with its parent: the first one of the namespace stays root.
        user = (f"--reuid={self._account['user']}", f"--regid={self._account['group']}", "--clear-groups")
        inside = ("sh", "-c", '"$@"; exit', "sh", "setpriv", *user, "--", *self._command)
        command = ("setpriv", "--pdeathsig=KILL", "unshare", "--pid", "--mount-proc", "--fork", "--kill-child", *inside)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd="/", env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def run(self, *command: str) -> str:
        """Run another program with the machine's account and environment; return what it prints."""
        output: str = subprocess.check_output(command, cwd="/", env=self._environment, text=True, **self._account)
        return output

    def lose(self) -> None:
        """End all of its processes at once, as a loss of power does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


@contextmanager
def rack(*programs: str) -> Iterator[Path]:
    """Yield a folder for machines that run these programs."""
    if sys.platform != "linux" or os.geteuid() != 0:
        missing("needs Linux, and root, who alone can make namespaces")
    for program in programs:
        if not shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"):
            missing(f"{program} is not installed: make engines installs it")
    folder = Path(tempfile.mkdtemp(prefix="pgratchet-engines-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def binaries(*programs: str) -> Path:
    """Return the newest installed folder of PostgreSQL's own programs that has these."""
    found = (each for each in embedded.candidates() if all((each / program).exists() for program in programs))
    return next(found, None) or missing(
        f"no PostgreSQL with {', '.join(programs)} is installed (Debian and Ubuntu: apt-get install postgresql)"
    )
