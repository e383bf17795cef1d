"""All peers, and which of them cannot run here."""

from __future__ import annotations

from typing import Final

from peers.casd import BuildboxCasd
from peers.driven_peer import DrivenPeer
from peers.durable_streams import DurableStreamsJavaScript, DurableStreamsPython
from peers.flight import (
    FlightCounting,
    FlightFollowing,
    FlightFollowingWithoutPool,
    FlightStoring,
    FlightWithoutPool,
)
from peers.grpc_tutorial import GrpcTutorial
from peers.nats_server import NatsObjectStore
from peers.nginx import Nginx
from peers.rclone import Rclone
from peers.rsync import Rsync
from peers.tus import TusJavaScript, TusPython

PEERS: Final[tuple[type[DrivenPeer], ...]] = (
    FlightFollowing,
    FlightFollowingWithoutPool,
    FlightStoring,
    FlightWithoutPool,
    FlightCounting,
    Nginx,
    GrpcTutorial,
    TusJavaScript,
    TusPython,
    DurableStreamsJavaScript,
    DurableStreamsPython,
    NatsObjectStore,
    BuildboxCasd,
    Rclone,
    Rsync,
)
"""Each is constructed with a scratch folder and then satisfies :class:`~peers.peer.Peer`."""


def missing() -> dict[str, str]:
    """Return, by the name of each peer that cannot run here, what is not installed."""
    reasons = {peer.name: peer.missing() for peer in PEERS}
    return {name: reason for name, reason in reasons.items() if reason}
