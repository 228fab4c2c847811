"""Other tools' history tables, one module each."""
