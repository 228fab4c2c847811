"""The record of all runs: the history table, the SQL that writes it, the lock."""
