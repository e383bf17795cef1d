"""The Tailrace server: resource manager, filesystem and SQLite storage, memory variants."""
