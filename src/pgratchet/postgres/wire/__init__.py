"""One message to the server, and the words for what came of it."""
