"""How other tools' history tables are told apart."""

KNOWN_TABLES = (
    ("golang-migrate", {"version", "dirty"}),
    ("Ecto", {"version", "inserted_at"}),
    ("a home-made runner", {"version", "description", "filename", "executed_at", "success", "error_message"}),
    ("dbmate or Rails", {"version"}),
)
"""Tools, each with all columns of its table, which often has the name of ours."""
