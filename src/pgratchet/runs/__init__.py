"""One run, from the first look to the closing of its session."""
