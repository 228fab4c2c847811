"""Running one step."""
