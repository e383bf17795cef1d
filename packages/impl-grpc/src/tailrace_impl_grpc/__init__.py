"""Tailrace over gRPC: client and server."""
