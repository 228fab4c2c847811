"""Everything that speaks to the server; the only place that imports asyncpg."""
