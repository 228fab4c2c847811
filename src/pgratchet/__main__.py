"""The command line as `python -m pgratchet`."""

from pgratchet.cli import main

if __name__ == "__main__":
    main()
