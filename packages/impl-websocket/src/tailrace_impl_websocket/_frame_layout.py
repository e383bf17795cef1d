"""Headers and masks of WebSocket frames (RFC 6455, sections 5.2 and 5.3)."""

from __future__ import annotations

import struct

try:
    from websockets.speedups import apply_mask as apply_mask
except ImportError:
    # Interpreters and platforms without the compiled one.
    from websockets.utils import apply_mask as apply_mask

CONTINUATION = 0x0
TEXT = 0x1
BINARY = 0x2
CLOSE = 0x8
PING = 0x9
PONG = 0xA
OPCODES = frozenset((CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))
FINAL = 0x80
"""Bit of the first byte: the last frame of its message."""
RESERVED = 0x70
"""Bits of the first byte that mean something to extensions only."""
CONTROL = 0x8
"""Bit of the opcode of a frame that may stand between those of a message."""
MASKED = 0x80
"""Bit of the second byte."""
MAX_CONTROL_SIZE = 125
"""Largest payload of a control frame, in bytes."""

_SHORT = struct.Struct(">BBH")
_LONG = struct.Struct(">BBQ")


def frame_header(opcode: int, size: int, masked: int = 0) -> bytes:
    """Return the header of a frame that is a whole message, with a payload of ``size`` bytes.

    ``masked`` is :data:`MASKED` for a frame whose mask follows, else 0.
    """
    if size < 126:
        return bytes((FINAL | opcode, masked | size))
    if size < 65536:
        return _SHORT.pack(FINAL | opcode, masked | 126, size)
    return _LONG.pack(FINAL | opcode, masked | 127, size)
