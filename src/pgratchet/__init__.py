"""PostgreSQL migrations for asyncio services."""
