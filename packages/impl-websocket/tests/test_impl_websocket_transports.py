"""Which transports are given lists of buffers."""

from __future__ import annotations

import asyncio
import sys

import pytest

from tailrace_impl_common import sends_lists


@pytest.mark.parametrize(
    ("version", "sends"),
    [
        ((3, 11, 0), False),
        ((3, 11, 99), False),
        # These send lists, and never say that it is enough.
        ((3, 12, 0), False),
        ((3, 12, 8), False),
        ((3, 12, 9), True),
        ((3, 13, 0), False),
        ((3, 13, 1), False),
        ((3, 13, 2), True),
        ((3, 14, 0), True),
    ],
)
def test_transports_of_the_standard_library_join_lists_or_forget_to_pause(
    version: tuple[int, ...], sends: bool
) -> None:
    assert sends_lists(like("asyncio.selector_events"), version) is sends
    assert sends_lists(like("asyncio.sslproto"), version) is sends
    assert sends_lists(like("uvloop.loop"), version)


def test_version_is_that_of_the_interpreter() -> None:
    transport = like("asyncio.selector_events")
    assert sends_lists(transport) is sends_lists(transport, sys.version_info[:3])


def like(module: str) -> asyncio.BaseTransport:
    """Return a transport of a module."""
    made = type("Transport", (asyncio.BaseTransport,), {"__module__": module})()
    assert isinstance(made, asyncio.BaseTransport)
    return made
