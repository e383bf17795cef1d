"""Tailrace over WebSocket: client, ASGI server, and the plain-HTTP reading door."""

from tailrace_impl_websocket._application import create_application
from tailrace_impl_websocket._buffered_protocol import buffered_frame_protocol
from tailrace_impl_websocket._client import WebSocketConnection, connect
from tailrace_impl_websocket._error_table import ERROR_TABLE, WireStatus, wire_status
from tailrace_impl_websocket._options import FrameProtocols, WebSocketClientOptions, WebSocketServerOptions
from tailrace_impl_websocket._server import WebSocketServer

__all__ = [
    "ERROR_TABLE",
    "FrameProtocols",
    "WebSocketClientOptions",
    "WebSocketConnection",
    "WebSocketServer",
    "WebSocketServerOptions",
    "WireStatus",
    "buffered_frame_protocol",
    "connect",
    "create_application",
    "wire_status",
]
