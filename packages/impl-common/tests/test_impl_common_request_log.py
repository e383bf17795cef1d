"""What the log says of requests that fail."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable

import pytest

from tailrace_common_api import (
    ConnectionLost,
    Deleted,
    InternalError,
    InvalidReference,
    NotFound,
    Overloaded,
    StorageFailure,
    TailraceError,
    Unauthenticated,
    error_classes,
)
from tailrace_impl_common import (
    Endpoint,
    MessageStream,
    answer_request,
    counted_refusals,
    current_caller,
    serve_conversation,
    set_caller,
)
from tailrace_impl_common._request_log import level_of
from tailrace_impl_common.messages import ClientMessage, Delete, ServerMessage, Watch
from tailrace_server_api import ResourceManager, Telemetry

ID = "0" * 32


class Refusals(Telemetry):
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def refused(self, transport: str, code: str) -> None:
        self.seen.append((transport, code))


class Silent(MessageStream[ServerMessage, ClientMessage]):
    async def send(self, message: ServerMessage) -> None:
        raise AssertionError(message)

    async def receive(self) -> ClientMessage | None:
        return None


def broken(error: Exception) -> ResourceManager:
    """Return a manager of which everything raises ``error``."""

    async def fail(*_: object, **__: object) -> None:
        raise error

    async def fail_later(*_: object, **__: object) -> AsyncGenerator[None, None]:
        for each in (error,):
            raise each
        yield

    methods = dict.fromkeys(ResourceManager.__abstractmethods__, fail) | {"statuses": fail_later}
    manager: ResourceManager = type("Broken", (ResourceManager,), methods)()
    return manager


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint(transport="grpc", base="grpc://h", chunk_size=1024, telemetry=Refusals())


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (NotFound(id=ID), logging.INFO),
        (InvalidReference(reference="\x1b[31m\n"), logging.INFO),
        (StorageFailure("the disk is gone"), logging.WARNING),
        (Deleted(id=ID), logging.DEBUG),
    ],
)
async def test_a_request_that_fails_is_logged_once_at_its_level(
    caplog: pytest.LogCaptureFixture, endpoint: Endpoint, error: TailraceError, level: int
) -> None:
    for request in (Delete(id=ID), Watch(id=ID)):
        caplog.clear()
        served: Awaitable[object] = (
            serve_conversation(request, Silent(), service=broken(error), endpoint=endpoint)
            if isinstance(request, Watch)
            else answer_request(request, service=broken(error), endpoint=endpoint)
        )
        with pytest.raises(type(error)):
            await served
        (record,) = caplog.records
        assert record.levelno == level
        assert record.getMessage().startswith(f"{type(request).__name__} failed: ")
        assert record.getMessage().isprintable()
        assert (vars(record)["code"], vars(record)["resource"]) == (error.code, ID)
        assert record.exc_info is None


async def test_a_defect_is_logged_once_with_where_it_was(caplog: pytest.LogCaptureFixture, endpoint: Endpoint) -> None:
    with pytest.raises(InternalError):
        await answer_request(Delete(id=ID), service=broken(ZeroDivisionError("secret")), endpoint=endpoint)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


def test_every_error_has_a_level() -> None:
    levels = {error: level_of(error.__new__(error)) for error in error_classes()}
    assert {error for error, level in levels.items() if level == logging.WARNING} >= {StorageFailure, InternalError}
    assert levels[ConnectionLost] == logging.DEBUG
    assert levels[Overloaded] == logging.INFO
    assert max(levels.values()) == logging.WARNING


def test_refusals_are_counted_and_logged_with_the_peer(caplog: pytest.LogCaptureFixture, endpoint: Endpoint) -> None:
    with pytest.raises(Unauthenticated), counted_refusals(endpoint, "192.0.2.1:5"):
        raise Unauthenticated("no \n token")
    with counted_refusals(endpoint, "192.0.2.1:5"):
        pass
    assert isinstance(endpoint.telemetry, Refusals)
    assert endpoint.telemetry.seen == [("grpc", "unauthenticated")]
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert (vars(record)["peer"], vars(record)["code"]) == ("192.0.2.1:5", "unauthenticated")


async def test_the_caller_belongs_to_the_task_and_those_that_it_starts() -> None:
    async def request(principal: str) -> list[str]:
        set_caller(peer="192.0.2.1:5", principal=principal)
        await asyncio.sleep(0)

        async def below() -> str:
            return current_caller()["principal"]

        return [current_caller()["principal"], await asyncio.create_task(below())]

    asked = await asyncio.gather(*(request(name) for name in ("ann", "bob")))
    assert asked == [["ann", "ann"], ["bob", "bob"]]
    assert dict(current_caller()) == {}
