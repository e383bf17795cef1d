"""What callers show in the metadata of a call, and what hostile ones put there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tailrace_common_api import ClientSettings, ConfigurationError
from tailrace_impl_common import _clear_text
from tailrace_impl_grpc import GrpcServer, connect
from tailrace_impl_grpc._call_status import CallStatus
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb
from tailrace_impl_grpc._proto.v1 import tailrace_pb2_grpc as services
from tailrace_impl_server import TokenFile, create_manager
from tailrace_server_api import Operation, TransportServerSettings

METHOD = "/tailrace.v1.Resources/List"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4
Entries = list[tuple[bytes, bytes]]


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json")


@pytest.fixture
def secret(tokens: TokenFile) -> str:
    return tokens.add("lister", [Operation.LIST])


@pytest.fixture
async def guarded(no_task_is_left: None, tokens: TokenFile, secret: str) -> AsyncIterator[str]:
    """The address of a server that needs a token."""
    async with create_manager(None, {"tokens": str(tokens.path)}) as managed:
        server = GrpcServer()
        await server.start(managed.manager, TransportServerSettings())
        yield server.urls["grpc"].removeprefix("grpc://")
        await server.close(5.0)


async def _outcome(address: str, *metadata: tuple[str, str | bytes]) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            await services.ResourcesStub(channel).List(pb.ListRequest(limit=1), metadata=metadata)  # type: ignore[misc]  # of both kinds of stubs
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


async def _services(address: str, *metadata: tuple[str, str | bytes]) -> set[str] | grpc.StatusCode:
    """Return what reflection tells, or with what it ends."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub
        call = stub(channel).ServerReflectionInfo(metadata=metadata)
        status = CallStatus(call)
        # The answer may come before the message is out.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        try:
            answer = await call.read()
        except grpc.aio.AioRpcError:
            return (await status.known()).code()
        call.cancel()
        return {service.name for service in answer.list_services_response.service}


async def test_reflection_needs_what_other_calls_need(guarded: str, secret: str) -> None:
    for entries in ([], [("authorization", "Bearer x")]):
        assert await _services(guarded, *entries) is grpc.StatusCode.UNAUTHENTICATED
    told = await _services(guarded, ("authorization", f"Bearer {secret}"))
    assert isinstance(told, set)
    assert {"tailrace.v1.Resources", "grpc.reflection.v1alpha.ServerReflection"} < told


async def test_health_needs_nothing(guarded: str) -> None:
    async with grpc.aio.insecure_channel(guarded) as channel:
        stub: Any = health_pb2_grpc.HealthStub
        answer = await stub(channel).Check(health_pb2.HealthCheckRequest(service="tailrace.v1.Resources"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer   {}  "])
async def test_the_scheme_is_of_any_case(guarded: str, secret: str, form: str) -> None:
    assert await _outcome(guarded, ("authorization", form.format(secret))) is grpc.StatusCode.OK


@pytest.mark.parametrize("form", ["", "{}", "Bearer", "Bearer ", "Basic {}", "Bearer {},x", "Bearer {} {}", "Bearer{}"])
async def test_what_is_no_bearer_token_is_not_let_in(guarded: str, secret: str, form: str) -> None:
    entry = ("authorization", form.format(secret, secret))
    assert await _outcome(guarded, entry) is grpc.StatusCode.UNAUTHENTICATED


async def test_binary_entries_are_no_tokens(guarded: str, secret: str) -> None:
    entry = ("authorization-bin", f"Bearer {secret}".encode())
    assert await _outcome(guarded, entry) is grpc.StatusCode.UNAUTHENTICATED


async def test_of_several_entries_none_counts(guarded: str, secret: str) -> None:
    right, wrong = ("authorization", f"Bearer {secret}"), ("authorization", "Bearer x")
    for entries in ((right, wrong), (wrong, right), (right, right)):
        assert await _outcome(guarded, *entries) is grpc.StatusCode.UNAUTHENTICATED


async def test_huge_tokens_are_refused_and_harm_nobody(guarded: str, secret: str) -> None:
    for size in (60_000, 200_000):
        code = await _outcome(guarded, ("authorization", "Bearer " + "x" * size))
        assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED)
        assert await _outcome(guarded, ("authorization", f"Bearer {secret}")) is grpc.StatusCode.OK


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _text(value: bytes) -> bytes:
    """A text of HPACK, not compressed; of less than 255 bytes."""
    length = bytes((len(value),)) if len(value) < 127 else bytes((127, len(value) - 127))
    return length + value


async def _is_answered(address: str, *entries: tuple[bytes, bytes]) -> bool:
    """Call with headers as no library would send them; return whether there was an answer beside an error."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    headers: Entries = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", METHOD.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *entries,
    ]
    # Literals that are never indexed: nothing of them is shortened.
    block = b"".join(b"\x10" + _text(key) + _text(value) for key, value in headers)
    request = pb.ListRequest(limit=1).SerializeToString()
    message = b"\0" + len(request).to_bytes(4, "big") + request
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0))
    writer.write(_frame(HEADERS, END_HEADERS, 1, block) + _frame(DATA, END_STREAM, 1, message))
    answered = False
    try:
        while True:
            header = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(header[:3], "big"))
            kind, flags, stream = header[3], header[4], int.from_bytes(header[5:], "big")
            answered |= kind == DATA
            if kind == GOAWAY or (stream == 1 and (kind == RST_STREAM or flags & END_STREAM)):
                return answered
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return answered
    finally:
        writer.close()


async def test_headers_that_no_library_sends_let_nobody_in(
    guarded: str, secret: str, caplog: pytest.LogCaptureFixture
) -> None:
    right = f"Bearer {secret}".encode()
    caplog.set_level(logging.DEBUG, "tailrace_impl_grpc")
    # The same way of asking works with a good one.
    assert await _is_answered(guarded, (b"authorization", right))
    hostile: list[Entries] = [
        [],
        [(b"Authorization", right)],
        [(b"AUTHORIZATION", right)],
        [(b"authorization", "Bearer é".encode())],
        [(b"authorization", b"Bearer \xff\xfe")],
        [(b"authorization", right + b"\xff")],
        [(b"authorization", b"Bearer \0")],
        [(b"authorization", b"Bearer a\r\nauthorization: " + right)],
        [(b"authorization", right), (b"authorization", b"Bearer x")],
        [(b"authorization-bin", right)],
        [(b"authorization ", right)],
        [(b"", right)],
    ]
    for entries in hostile:
        assert not await _is_answered(guarded, *entries), entries
        assert await _outcome(guarded, ("authorization", f"Bearer {secret}")) is grpc.StatusCode.OK
    assert "metadata of a call is not UTF-8" in caplog.text
    assert secret not in caplog.text


@pytest.mark.parametrize("token", ["é", "a\nb", "\0", ""])
def test_clients_have_no_token_that_cannot_be_sent(token: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        connect("grpc://localhost:1", ClientSettings(token=token))
    assert refused.value.field == "token"


async def test_who_shows_a_token_in_clear_text_is_warned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_clear_text, "_warned", set())
    settings = ClientSettings(token="secret-text")
    for url in ("grpc://localhost:1", "grpcs://files.example:1", "grpc://127.0.0.1:1"):
        await connect(url, settings).close()
    await connect("grpc://files.example:1").close()
    assert caplog.records == []
    await connect("grpc://files.example:1", settings).close()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "files.example" in record.getMessage()
    assert "secret-text" not in record.getMessage()
