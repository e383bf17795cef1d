"""Tailrace over WebSocket: client, ASGI server, and the plain-HTTP reading door."""
