"""Statuses as a transport shows them."""

from __future__ import annotations

from dataclasses import replace

from tailrace_common_api import Status, make_reference


def status_under(status: Status, base: str) -> Status:
    """Return ``status`` with its reference under the public base URL of a transport."""
    return replace(status, reference=make_reference(base, status.id))
