"""What a dispatcher has to know of a queue to ask it for two things at once."""

from __future__ import annotations

from tailrace_server_api import RecordQueue


class ConcurrentQueue(RecordQueue):
    """A queue that claims while it takes answers, and where neither waits for the other.

    Records are claimed there for the credit that answers give back while these are still being taken.
    """
