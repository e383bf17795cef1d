"""Options of this transport, beyond what the settings of every transport have."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from tailrace_common_api import ConfigurationError
from tailrace_impl_common import check_option_names, flag_option
from tailrace_impl_websocket._origins import parse_origins


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketClientOptions:
    """Options of a client."""

    compression: bool = False
    """Whether to offer per-message deflate: worth it on slow networks only."""

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Self:
        """Read options by name.

        Raises:
            ConfigurationError: One is unknown, or its value is not one that it can have.
        """
        check_option_names(options, ("compression",))
        defaults = cls()
        return cls(compression=flag_option(options, "compression", defaults.compression))


class FrameProtocols(enum.Enum):
    """Who reads and writes the frames of a server's connections."""

    BUFFERED = "buffered"
    """This package, which receives every payload into its own buffer and sends it as it is."""
    SANSIO = "websockets-sansio"
    """The library websockets under uvicorn's own class; it knows per-message deflate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketServerOptions:
    """Options of a server."""

    compression: bool = False
    """Whether to accept per-message deflate where a client offers it; costs 34 KiB per connection, and needs
    :attr:`FrameProtocols.SANSIO`, which is then used."""
    protocol: FrameProtocols = FrameProtocols.BUFFERED
    """Who reads and writes frames."""
    prefix: str | None = None
    """Path below which everything is served, such as ``/tailrace``; ``None`` for the path of the public base."""
    origins: tuple[str, ...] = ()
    """Origins of the pages that may use the server beside its own, with commas or spaces between them; ``*``: all."""

    def __post_init__(self) -> None:
        if self.prefix is not None and not _is_prefix(self.prefix):
            raise ConfigurationError(field="prefix", problem=f"{self.prefix!a} is not a path that starts with a slash")

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Self:
        """Read options by name.

        Raises:
            ConfigurationError: One is unknown, or its value is not one that it can have.
        """
        check_option_names(options, ("compression", "protocol", "prefix", "origins"))
        defaults = cls()
        return cls(
            compression=flag_option(options, "compression", defaults.compression),
            protocol=_protocol(options.get("protocol"), defaults.protocol),
            prefix=_prefix(options.get("prefix")),
            origins=parse_origins(options.get("origins", "")),
        )


def _protocol(text: str | None, default: FrameProtocols) -> FrameProtocols:
    if text is None:
        return default
    try:
        return FrameProtocols(text.lower())
    except ValueError:
        known = " or ".join(protocol.value for protocol in FrameProtocols)
        raise ConfigurationError(field="protocol", problem=f"{text!a} is not {known}") from None


def _prefix(text: str | None) -> str | None:
    """Return a prefix without its last slash: ``/`` stands for none."""
    return None if text is None else text.rstrip("/")


def _is_prefix(text: str) -> bool:
    return text == "" or (text.startswith("/") and not text.endswith("/") and text.isascii() and text.isprintable())
