"""What a server's conversations need to know of the transport that carries them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tailrace_impl_common._send_budget import SendBudget
from tailrace_impl_common._shared_chunk import SharedChunk
from tailrace_server_api import Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One listening transport of a server."""

    transport: str
    """Name in telemetry: ``grpc``, ``websocket``, ``http`` or ``inprocess``."""
    base: str
    """Public base URL, for references."""
    chunk_size: int
    """Largest chunk to send to a reader that does not say what suits it, in bytes."""
    telemetry: Telemetry = field(default_factory=Telemetry)
    """What is counted with."""
    budget: SendBudget = field(default_factory=SendBudget)
    """Bytes on their way to readers."""
    shared: SharedChunk = field(default_factory=SharedChunk)
    """The chunk that the next reader may need, too."""
