"""Live byte streams: upload while it is produced, follow while it grows."""

from tailrace import sync
from tailrace._connect import ClientArguments, connect

__all__ = ["ClientArguments", "connect", "sync"]
