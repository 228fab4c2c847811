"""What is recorded: the history table, the SQL that writes it, the lock."""
