"""Streaming the records of the standard library's logging into a resource."""

from tailrace._log_handler import ResourceHandler

__all__ = ["ResourceHandler"]
