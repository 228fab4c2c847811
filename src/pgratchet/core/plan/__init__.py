"""Two lists, files and history, become steps."""
