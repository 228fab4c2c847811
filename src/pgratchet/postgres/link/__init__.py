"""One session with the server: connecting, quoting, waiting, errors that pass."""
