"""Where bytes wait that were written and have not been handed to the connection."""

from __future__ import annotations

from abc import ABC, abstractmethod

from tailrace_impl_common._buffers import Buffer

PIECE_SIZE = 256 * 1024
"""Most bytes that are put in or taken out at a time."""


class WaitingBytes(ABC):
    """Bytes on their way from a writer to a connection, in order; bounded.

    One call at a time. What works on files says so before, so that it can be called where that may block.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes that :meth:`take` will still return."""

    @abstractmethod
    def open(self) -> None:
        """Make room; may block.

        Raises:
            OSError: There is none.
        """

    @abstractmethod
    def fits(self, length: int) -> bool:
        """Return whether so many bytes, at most :data:`PIECE_SIZE`, may be added. What is empty takes any."""

    @abstractmethod
    def add(self, data: Buffer) -> None:
        """Put bytes behind those that wait; they may change afterwards.

        Raises:
            OSError: They cannot be kept.
        """

    @abstractmethod
    def take(self) -> bytes:
        """Return the next bytes; none when there are none.

        Raises:
            OSError: They cannot be read.
        """

    def add_blocks(self, length: int) -> bool:
        """Return whether adding so many bytes works on a file."""
        return False

    @property
    def take_blocks(self) -> bool:
        """Whether :meth:`take` works on a file."""
        return False

    @abstractmethod
    def announced(self, size: int) -> None:
        """Let go of what was kept below this offset of the resource; may block.

        Raises:
            OSError: That failed.
        """

    @property
    def keeps_taken(self) -> bool:
        """Whether what was taken is kept until :meth:`announced`."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; idempotent, may block."""
