"""SQL text becomes statements and scripts; each statement is classified."""
