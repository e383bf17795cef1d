"""How many calls and connections are let in."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import pytest

from tailrace_common_api import Overloaded
from tailrace_impl_grpc._peers import Peers
from tailrace_server_api import Telemetry


def test_calls_of_one_connection_are_bounded() -> None:
    peers = Peers(max_connections=10, max_requests=2, telemetry=Telemetry())
    peers.begin("a")
    peers.begin("a")
    with pytest.raises(Overloaded) as caught:
        peers.begin("a")
    assert caught.value.what == "requests on one connection"
    assert caught.value.retry_after > 0
    peers.begin("b")
    peers.end("a")
    peers.begin("a")


def test_connections_are_bounded_while_they_have_calls() -> None:
    peers = Peers(max_connections=2, max_requests=10, telemetry=Telemetry())
    peers.begin("a")
    peers.begin("b")
    with pytest.raises(Overloaded) as caught:
        peers.begin("c")
    assert caught.value.what == "connections"
    # A refusal is not counted, and those who are in may have more.
    peers.begin("a")
    peers.end("b")
    peers.begin("c")
    with pytest.raises(Overloaded):
        peers.begin("b")


def test_a_connection_is_counted_while_it_has_calls() -> None:
    seen: list[str] = []

    class Connections(Telemetry):
        @contextmanager
        def connection(self, transport: str) -> Generator[None, None, None]:
            seen.append(f"{transport} begins")
            yield
            seen.append(f"{transport} ends")

    peers = Peers(max_connections=1, max_requests=2, telemetry=Connections())
    peers.begin("one")
    peers.begin("one")
    with pytest.raises(Overloaded):
        peers.begin("two")
    peers.end("one")
    assert seen == ["grpc begins"]
    peers.end("one")
    assert seen == ["grpc begins", "grpc ends"]
