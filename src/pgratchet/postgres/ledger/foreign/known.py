"""How other tools' history tables are told apart."""

KNOWN_TABLES = (
    ("golang-migrate", {"version", "dirty"}),
    ("Ecto", {"version", "inserted_at"}),
    ("a home-made runner", {"version", "description", "filename", "executed_at", "success", "error_message"}),
    ("dbmate or Rails", {"version"}),
    ("Alembic", {"version_num"}),
    ("Diesel", {"version", "run_on"}),
    ("Django", {"id", "app", "name", "applied"}),
    ("Drizzle", {"id", "hash", "created_at"}),
    ("goose", {"id", "version_id", "is_applied", "tstamp"}),
    ("node-pg-migrate", {"id", "name", "run_on"}),
    ("refinery", {"version", "name", "applied_on", "checksum"}),
    ("sql-migrate", {"id", "applied_at"}),
    ("sqlx", {"version", "description", "installed_on", "success", "checksum", "execution_time"}),
    ("Supabase", {"version", "statements", "name"}),
    ("yoyo", {"migration_hash", "migration_id", "applied_at_utc"}),
    (
        "Flyway",
        {"installed_rank", "version", "description", "type", "script", "checksum"}
        | {"installed_by", "installed_on", "execution_time", "success"},
    ),
    (
        "Prisma",
        {"id", "checksum", "finished_at", "migration_name", "logs", "rolled_back_at", "started_at"}
        | {"applied_steps_count"},
    ),
)
"""Tools, each with all columns of its table, which often has the name of ours."""
