"""Live byte streams: upload while it is produced, follow while it grows."""
