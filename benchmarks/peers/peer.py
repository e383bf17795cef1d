"""What the suite asks of a peer."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Protocol, Self

METHODS: Final = ("upload", "download", "plain_download", "follow", "lines", "latencies")
"""What a peer may be measured at; none does all of it. A plain download is one that nobody verifies."""


class Peer(Protocol):
    """Another product: its server in processes of its own, driven by its own client in a process of its own.

    Entered, it runs on a scratch folder and a free port of the loopback interface; left, nothing of it is running. A
    method that is not in :attr:`supports` does nothing and returns None. Times are measured within the client's
    process, around the work alone, and every method proves what was moved before it returns.
    """

    @property
    def name(self) -> str:
        """What the product is called in a table, unique among the peers."""

    @property
    def does_less(self) -> str:
        """What it does not do that Tailrace does, for the table."""

    @property
    def supports(self) -> frozenset[str]:
        """Those of :data:`METHODS` that it has."""

    @property
    def same_work(self) -> frozenset[str]:
        """Those of :attr:`supports` at which it does what Tailrace does, or something else that costs more.

        That is: what is sent has a hash that the other side checks; and what is uploaded is stored, and synced to disk
        before whoever sends it hears so.
        """

    @property
    def server_pids(self) -> list[int]:
        """Ids of the processes of the server, as they are now."""

    @property
    def client_pids(self) -> list[int]:
        """Ids of the processes of the client, as they are now; none where each operation starts its own."""

    async def __aenter__(self) -> Self:
        """Start server and client; raise `RuntimeError` when one ends before it is ready."""

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End both."""

    async def upload(self, size: int) -> tuple[float, str] | None:
        """Send ``size`` bytes (whole MiB) in pieces of 1 MiB; return seconds until they are stored, and a handle."""

    async def download(self, handle: str, size: int, *, verify: bool = True) -> float | None:
        """Receive what an upload stored; return the seconds.

        The length is always compared. With ``verify`` every byte is checked within the time by whoever receives it, as
        by our clients: by the hash that the product has, else by the XXH3-128 of what was sent, or by comparison.
        """

    async def compare(self, handle: str, size: int) -> None:
        """Compare every byte of what an upload stored with what was sent; raise where one differs."""

    async def follow(self, size: int) -> float | None:
        """Upload while a second connection follows live; return seconds until the follower has everything."""

    async def lines(self, count: int) -> float | None:
        """Send lines of 100 bytes one by one; return seconds until all are stored."""

    async def latencies(self, count: int, pause: float) -> list[float] | None:
        """Send ``count`` lines of 100 bytes, ``pause`` seconds apart; return seconds from each write to its reader."""

    async def delete(self, handle: str) -> None:
        """Remove what an upload stored, so that a run needs no more disk than one round."""
