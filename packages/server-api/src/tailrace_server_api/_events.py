"""Hints that a resource changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

Listener = Callable[[Collection[str] | None], None]
"""Gets the ids of resources to look at again, or ``None``: look at every resource again."""


class EventBus(ABC):
    """Carries lossy hints between servers that share a storage.

    A hint may be lost, doubled or late; who needs the truth reads the storage, subscribes before reading, and reads
    again on a slow timer. Neither method blocks.
    """

    @abstractmethod
    async def start(self) -> None:
        """Connect the bus; called once, before anything else."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect; no listener is called after this returns. Idempotent."""

    @abstractmethod
    def publish(self, ids: Collection[str]) -> None:
        """Hint that these resources changed."""

    @abstractmethod
    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` on the event loop for every hint.

        Returns:
            A function that ends the subscription; idempotent.
        """
