"""What users would pick instead of Tailrace, each driven by its own client."""

from peers.peer import METHODS, Peer
from peers.registry import PEERS, missing

__all__ = ["METHODS", "PEERS", "Peer", "missing"]
