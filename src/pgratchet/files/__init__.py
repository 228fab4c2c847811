"""A directory of files becomes migrations."""
