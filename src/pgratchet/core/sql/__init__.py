"""SQL text becomes statements, scripts and what is known of each."""
