#!/usr/bin/env python3
"""Apply this folder's migrations by hand: `pgratchet up` for this project, from wherever it is called."""

import os
import shlex
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

try:
    from pgratchet.cli import main
except ImportError as error:
    install = shlex.join([sys.executable, "-m", "pip", "install", str(HERE.parent)])
    sys.stderr.write(f"This Python has no {error.name}; install it with: {install}\n")
    sys.exit(2)

if __name__ == "__main__":
    # The pyproject.toml that counts is this project's, not that of the folder in which it is called.
    os.chdir(HERE.parent)
    sys.argv[1:] = ["up", f"--dir={HERE / 'versions'}", f"--journal={HERE / '.migration_history'}", *sys.argv[1:]]
    main()
