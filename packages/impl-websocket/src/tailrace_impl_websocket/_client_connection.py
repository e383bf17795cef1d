"""The client's end of a WebSocket: the library's, which here sends large messages with fewer copies."""

from __future__ import annotations

import secrets

from websockets.asyncio.client import ClientConnection

from tailrace_common_api import KIBIBYTE
from tailrace_impl_common.messages import Buffer
from tailrace_impl_websocket._frame_layout import BINARY, MASKED, apply_mask, frame_header

_MASK_SIZE = 4
_LARGE = 16 * KIBIBYTE
"""Payloads from this size on are masked from where they are; smaller ones are joined, which takes fewer writes."""


class LargeFrameConnection(ClientConnection):
    """Masks a payload once, from where it is to where it is sent.

    The library joins a message before it masks it, and copies what it has masked twice: into a frame, and out of it.
    """

    async def send_parts(self, header: bytes, payload: Buffer) -> None:
        """Send a binary message in two parts; waits for the transport, as :meth:`send` does.

        Raises:
            ConnectionClosed: The connection ended.
        """
        if len(payload) < _LARGE or self.protocol.extensions or len(header) % _MASK_SIZE:
            await self.send(b"".join((header, payload)))
            return
        async with self.send_context():
            mask = secrets.token_bytes(_MASK_SIZE)
            first = bytearray(frame_header(BINARY, len(header) + len(payload)))
            first[1] |= MASKED
            # The header is as long as a few masks, so that the payload begins with the first byte of one.
            first += mask + apply_mask(header, mask)
            self.protocol.writes += (bytes(first), apply_mask(payload, mask))
