"""Options of this transport, beyond what the settings of every transport have, and gRPC's own settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import grpc

from tailrace_common_api import MEBIBYTE, ClientSettings
from tailrace_impl_common import check_option_names, flag_option, is_loopback
from tailrace_server_api import TransportServerSettings

BEST_CHUNK_SIZE = MEBIBYTE // 2
"""Size of chunks that suits gRPC, in bytes."""

ChannelOptions = list[tuple[str, int]]

# Above the limits of this protocol, so that it is this protocol that refuses a message, with a typed error.
_MAX_RECEIVED_MESSAGE = 8 * MEBIBYTE
_FIRST_RECONNECT_BACKOFF, _LARGEST_RECONNECT_BACKOFF = 0.1, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcClientOptions:
    """Options of a client."""

    compression: bool = False
    """Whether to compress what is sent with gzip: worth it on slow networks only."""
    proxy: bool = True
    """Whether the environment's HTTP proxy is used for servers on other machines."""

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Self:
        """Read options by name.

        Raises:
            ConfigurationError: One is unknown, or its value is not one that it can have.
        """
        check_option_names(options, ("compression", "proxy"))
        defaults = cls()
        return cls(
            compression=flag_option(options, "compression", defaults.compression),
            proxy=flag_option(options, "proxy", defaults.proxy),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcServerOptions:
    """Options of a server."""

    compression: bool = False
    """Whether to compress what is sent with gzip, where a client accepts it."""

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Self:
        """Read options by name.

        Raises:
            ConfigurationError: One is unknown, or its value is not one that it can have.
        """
        check_option_names(options, ("compression",))
        return cls(compression=flag_option(options, "compression", cls().compression))


def channel_options(settings: ClientSettings, options: GrpcClientOptions, host: str) -> ChannelOptions:
    """Return what gRPC is told of a client's channel."""
    return [
        *_common_options(settings.keepalive_interval, settings.keepalive_timeout),
        # A connection of its own for each client: what one of them does to it does not touch another.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", _milliseconds(_FIRST_RECONNECT_BACKOFF)),
        ("grpc.max_reconnect_backoff_ms", _milliseconds(_LARGEST_RECONNECT_BACKOFF)),
        # Despite its name this is how long an attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", _milliseconds(settings.connect_timeout)),
        ("grpc.enable_http_proxy", int(options.proxy and not is_loopback(host))),
    ]


def server_options(settings: TransportServerSettings) -> ChannelOptions:
    """Return what gRPC is told of a server."""
    return [
        *_common_options(settings.keepalive_interval, settings.keepalive_timeout),
        # A second server on the same port is a mistake, and not a way to share load.
        ("grpc.so_reuseport", 0),
        # How often clients look whether the server is there is theirs to decide.
        ("grpc.http2.max_ping_strikes", 0),
    ]


def compression_of(options: GrpcClientOptions | GrpcServerOptions) -> grpc.Compression:
    """Return gRPC's name for what the options say of compression."""
    return grpc.Compression.Gzip if options.compression else grpc.Compression.NoCompression


def _common_options(interval: float, timeout: float) -> ChannelOptions:
    return [
        ("grpc.max_receive_message_length", _MAX_RECEIVED_MESSAGE),
        # What is sent is limited by the codec.
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", _milliseconds(interval)),
        ("grpc.keepalive_timeout_ms", _milliseconds(timeout)),
        # The ping behind the keep-alive has a timeout of its own, a minute by default, which would be waited for.
        ("grpc.http2.ping_timeout_ms", _milliseconds(timeout)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _milliseconds(seconds: float) -> int:
    return min(max(1, round(seconds * 1000)), 2**31 - 1)
