"""One message to the server, and its result in terms of files."""
