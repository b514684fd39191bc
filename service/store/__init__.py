"""What one replica remembers across restarts: one SQLite file, one module per table group."""
