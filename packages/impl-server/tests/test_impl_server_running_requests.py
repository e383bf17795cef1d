"""How many requests run, and who is refused."""

from contextlib import ExitStack, suppress

import pytest
from impl_server_manager_bench import LINES, Bench

from tailrace_common_api import Overloaded
from tailrace_impl_server._admission import RunningRequests
from tailrace_server_api import RequestTelemetry, Telemetry


class Counting(Telemetry):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def request(self, transport: str, operation: str) -> RequestTelemetry:
        self.told.append(f"request {transport} {operation}")
        telemetry = RequestTelemetry()
        telemetry.received = lambda count: self.told.append(f"received {count}")  # type: ignore[method-assign]  # stands in for the method
        return telemetry

    def refused(self, transport: str, code: str) -> None:
        self.told.append(f"refused {transport} {code}")


def test_requests_count_while_they_run() -> None:
    running = RunningRequests(2, Telemetry())
    with running.request("grpc", "Read"):
        running.admit()
        with suppress(ValueError), running.request("grpc", "Read"):
            assert running.count == 2
            with pytest.raises(Overloaded) as refused:
                running.admit()
            assert (refused.value.what, refused.value.retry_after > 0) == ("requests", True)
            raise ValueError("a defect")
        running.admit()
    assert running.count == 0


def test_who_was_let_in_before_others_began_is_refused_when_it_begins() -> None:
    telemetry = Counting()
    running = RunningRequests(1, telemetry)
    with ExitStack() as stack:
        first, second = running.request("grpc", "Read"), running.request("websocket", "Follow")
        stack.enter_context(first).received(5)
        with pytest.raises(Overloaded):
            stack.enter_context(second)
        assert running.count == 1
    assert running.count == 0
    assert telemetry.told == [
        "request grpc Read",
        "request websocket Follow",
        "received 5",
        "refused websocket overloaded",
    ]


async def test_a_request_that_runs_may_create(bench: Bench) -> None:
    manager = await bench.start(max_running_requests=1)
    with manager.telemetry.request("grpc", "OpenUpload"):
        with pytest.raises(Overloaded):
            manager.admit()
        await manager.create(LINES)
    manager.admit()
