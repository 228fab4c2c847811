"""The rules: no files, no sockets, no clock."""
