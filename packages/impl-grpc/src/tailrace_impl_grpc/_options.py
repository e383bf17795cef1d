"""Options of this transport, beyond what the settings of every transport have, and gRPC's own settings."""

from __future__ import annotations

import enum
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

from tailrace_common_api import MEBIBYTE, ClientSettings, ConfigurationError
from tailrace_impl_common import check_option_names, flag_option, is_loopback
from tailrace_server_api import TransportServerSettings

BEST_CHUNK_SIZE = MEBIBYTE // 2
"""Size of chunks that suits gRPC, in bytes."""

ChannelOptions = list[tuple[str, int]]

MAX_RECEIVED_MESSAGE = 8 * MEBIBYTE
"""Largest message that is received at all, in bytes: above the limits of this protocol, so that it is this protocol
that refuses a message, with a typed error."""
# While gRPC waits with a connection, nothing can be asked through it: how long to wait is decided above it.
_FIRST_RECONNECT_BACKOFF, _LARGEST_RECONNECT_BACKOFF = 0.1, 0.25


class CallProtocols(enum.Enum):
    """Who makes calls, or takes them."""

    BUFFERED = "buffered"
    """This package, which receives every large message into its own buffer and sends it as it is."""
    LIBRARY = "grpcio"
    """The library grpcio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcClientOptions:
    """Options of a client."""

    compression: bool = False
    """Whether to compress what is sent with gzip: worth it on slow networks only."""
    proxy: bool = True
    """Whether the environment's HTTP proxy is used for servers on other machines."""
    protocol: CallProtocols = CallProtocols.BUFFERED
    """Who makes calls. Through a proxy it is always the library."""

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Self:
        """Read options by name.

        Raises:
            ConfigurationError: One is unknown, or its value is not one that it can have.
        """
        check_option_names(options, ("compression", "proxy", "protocol"))
        defaults = cls()
        return cls(
            compression=flag_option(options, "compression", defaults.compression),
            proxy=flag_option(options, "proxy", defaults.proxy),
            protocol=_protocol(options.get("protocol"), defaults.protocol),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcServerOptions:
    """Options of a server."""

    compression: bool = False
    """Whether to compress what is sent with gzip, where a client accepts it."""
    protocol: CallProtocols = CallProtocols.BUFFERED
    """Who takes calls."""

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Self:
        """Read options by name.

        Raises:
            ConfigurationError: One is unknown, or its value is not one that it can have.
        """
        check_option_names(options, ("compression", "protocol"))
        defaults = cls()
        return cls(
            compression=flag_option(options, "compression", defaults.compression),
            protocol=_protocol(options.get("protocol"), defaults.protocol),
        )


def _protocol(text: str | None, default: CallProtocols) -> CallProtocols:
    if text is None:
        return default
    try:
        return CallProtocols(text.lower())
    except ValueError:
        known = " or ".join(protocol.value for protocol in CallProtocols)
        raise ConfigurationError(field="protocol", problem=f"{text!a} is not {known}") from None


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
        # What the library would count of each connection, for a service that is not offered.
        ("grpc.enable_channelz", 0),
    ]


def channel_credentials(settings: ClientSettings) -> grpc.ChannelCredentials:
    """Return what a client's channel needs for TLS. Blocking: reads files.

    Raises:
        ConfigurationError: A file cannot be read or is not what it should be.
    """
    ca = None if settings.ca_file is None else _read_authorities("ca_file", settings.ca_file)
    certificate, key = _read_certificate(settings.certificate_file, settings.key_file)
    return grpc.ssl_channel_credentials(ca, key, certificate)


def server_credentials(settings: TransportServerSettings) -> grpc.ServerCredentials | None:
    """Return what a server needs for TLS; ``None`` for a server without it. Blocking: reads files.

    Raises:
        ConfigurationError: A file cannot be read or is not what it should be.
    """
    certificate, key = _read_certificate(settings.certificate_file, settings.key_file)
    if certificate is None or key is None:
        return None
    ca = None if settings.client_ca_file is None else _read_authorities("client_ca_file", settings.client_ca_file)
    return grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=ca is not None)


def client_context(settings: ClientSettings) -> ssl.SSLContext:
    """Return what this package's own client needs for TLS. Blocking: reads files.

    Raises:
        ConfigurationError: A file cannot be read or is not what it should be.
    """
    certificate, _ = _read_certificate(settings.certificate_file, settings.key_file)
    ca = None if settings.ca_file is None else _read_authorities("ca_file", settings.ca_file)
    context = ssl.create_default_context(cadata=None if ca is None else ca.decode("ascii"))
    context.set_alpn_protocols(["h2"])
    if certificate is not None and settings.certificate_file is not None:
        context.load_cert_chain(settings.certificate_file, settings.key_file, password=_no_password)
    return context


def server_context(settings: TransportServerSettings) -> ssl.SSLContext | None:
    """Return what this package's own server needs for TLS; ``None`` for a server without it. Blocking: reads files.

    Raises:
        ConfigurationError: A file cannot be read or is not what it should be.
    """
    certificate, _ = _read_certificate(settings.certificate_file, settings.key_file)
    if certificate is None or settings.certificate_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings.certificate_file, settings.key_file, password=_no_password)
    # gRPC is spoken over HTTP/2 alone, and its clients look for that.
    context.set_alpn_protocols(["h2"])
    if settings.client_ca_file is not None:
        authorities = _read_authorities("client_ca_file", settings.client_ca_file)
        context.load_verify_locations(cadata=authorities.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def compression_of(options: GrpcClientOptions | GrpcServerOptions) -> grpc.Compression:
    """Return gRPC's name for what the options say of compression."""
    return grpc.Compression.Gzip if options.compression else grpc.Compression.NoCompression


def _common_options(interval: float, timeout: float) -> ChannelOptions:
    return [
        ("grpc.max_receive_message_length", MAX_RECEIVED_MESSAGE),
        # What is sent is limited by the codec.
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", _milliseconds(interval)),
        ("grpc.keepalive_timeout_ms", _milliseconds(timeout)),
        # The ping behind the keep-alive has a timeout of its own, a minute by default, which would be waited for. It
        # holds for every ping, also while bytes flow; that of the keep-alive, which bytes that arrive would satisfy, is
        # never waited for by the library (1.85), only by TCP.
        ("grpc.http2.ping_timeout_ms", _milliseconds(timeout)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _read_certificate(certificate_file: str | None, key_file: str | None) -> tuple[bytes | None, bytes | None]:
    if certificate_file is None or key_file is None:
        return None, None
    certificate, key = _read("certificate_file", certificate_file), _read("key_file", key_file)
    try:
        # gRPC says of a bad pair only that nothing can connect.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate_file, key_file, password=_no_password)
    except (OSError, ValueError) as error:
        problem = f"{certificate_file!a} and {key_file!a} are no certificate and its key: {_shown(error)}"
        raise ConfigurationError(field="certificate_file", problem=problem) from None
    return certificate, key


def _no_password() -> str:
    """Answer for an encrypted key; the terminal would be asked otherwise."""
    raise ValueError("the key is encrypted")


def _read_authorities(field: str, path: str) -> bytes:
    data = _read(field, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, ValueError):
        problem = f"{path!a} has no certificates of authorities"
        raise ConfigurationError(field=field, problem=problem) from None
    return data


def _read(field: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(field=field, problem=f"{path!a}: {error.strerror or error}") from None


def _shown(error: Exception) -> str:
    return ascii(str(error))[1:-1]


def _milliseconds(seconds: float) -> int:
    return min(max(1, round(seconds * 1000)), 2**31 - 1)
