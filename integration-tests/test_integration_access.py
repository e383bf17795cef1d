"""Who is let in, and what they may do."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from cells import WEBSOCKET_CELLS, WIRED_CELLS, Cell, Transport
from certificates import Certificates
from conversations import Conversation, eventually
from grpc_health.v1 import health_pb2, health_pb2_grpc
from httpx import AsyncClient
from manifest import proves
from server_process import DEADLINE
from servers import LocalServer, NewServer
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tailrace_common_api import (
    ClientSettings,
    ConfigurationError,
    ConnectionLost,
    ContextNotFound,
    ListFilter,
    Metadata,
    NotFound,
    PermissionDenied,
    TailraceError,
    TokenRejected,
    Unauthenticated,
)
from tailrace_impl_common import EMPTY_HEAD, ConnectedClient
from tailrace_impl_common.messages import ReopenUpload
from tailrace_impl_server import TokenFile
from tailrace_server_api import ALL_OPERATIONS, Credentials, Operation

EVERYTHING = sorted(ALL_OPERATIONS, key=lambda operation: operation.value)
SUBPROTOCOL = "tailrace.v1"
GRPC_CELLS = frozenset(cell for cell in WIRED_CELLS if cell.transport is Transport.GRPC)
Call = Callable[[ConnectedClient, str], Any]


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json")


@pytest.fixture
def admin(tokens: TokenFile) -> str:
    """A token that may do everything."""
    return tokens.add("admin", EVERYTHING)


@pytest.fixture
async def guarded(new_server: NewServer, tokens: TokenFile, admin: str) -> LocalServer:
    return await new_server(tokens=str(tokens.path))


async def _upload(client: ConnectedClient, **options: Any) -> str:
    async with client.upload("a.log", **options) as upload:
        await upload.write(b"secret\n")
    return upload.id


async def _opened(client: ConnectedClient, key: str) -> str:
    upload = client.upload("a.log", idempotency_key=key)
    await upload.open()
    return upload.id


async def _first_status(client: ConnectedClient, id: str) -> object:
    async with aclosing(client.open(id).statuses()) as statuses:
        return await anext(statuses)


async def _first_event(client: ConnectedClient, id: str) -> object:
    async with aclosing(client.context_events(id)) as events:
        return await anext(events)


OF_RESOURCES: dict[str, tuple[Operation, Call]] = {
    "read": (Operation.READ, lambda client, which: client.open(which).read()),
    "status": (Operation.READ, lambda client, which: client.status(which)),
    "watch": (Operation.READ, _first_status),
    "heads": (Operation.READ, lambda client, which: client.open(which).heads([0])),
    "delete": (Operation.DELETE, lambda client, which: client.delete(which)),
}
OF_CONTEXTS: dict[str, tuple[Operation, Call]] = {
    "show": (Operation.CONTEXTS, lambda client, which: client.get_context(which)),
    "events": (Operation.CONTEXTS, _first_event),
    "close": (Operation.CONTEXTS, lambda client, which: client.close_context(which)),
}
OF_NOTHING: dict[str, tuple[Operation, Call]] = {
    "upload": (Operation.UPLOAD, lambda client, which: _upload(client)),
    "list": (Operation.LIST, lambda client, which: client.list_page()),
    "create context": (Operation.CONTEXTS, lambda client, which: client.create_context({})),
}
EVERY_CALL = {**OF_RESOURCES, **OF_CONTEXTS, **OF_NOTHING}


@proves("ACC-1")
@pytest.mark.parametrize("wrong", ["none", "unknown", "other secret", "no token"])
async def test_nothing_is_answered_without_a_valid_token(
    cell: Cell, guarded: LocalServer, admin: str, wrong: str
) -> None:
    made = await _upload(guarded.connect(cell.transport, token=admin))
    token = {
        "none": None,
        "unknown": "tr_" + "0" * 16 + admin[19:],
        "other secret": admin[:-1] + ("A" if admin[-1] != "A" else "B"),
        "no token": "Basic",
    }[wrong]
    stranger = guarded.connect(cell.transport, token=token)
    texts = set()
    for _, call in EVERY_CALL.values():
        with pytest.raises(Unauthenticated) as refused:
            await call(stranger, made)
        texts.add(refused.value.message)
    # Nothing tells what would have been right.
    assert texts == {"a valid bearer token is needed"}
    assert await guarded.connect(cell.transport, token=admin).open(made).read() == b"secret\n"


@proves("ACC-1")
async def test_a_token_does_what_its_scopes_say_and_nothing_else(
    cell: Cell, guarded: LocalServer, tokens: TokenFile, admin: str
) -> None:
    owner = guarded.connect(cell.transport, token=admin)
    for allowed in (Operation.UPLOAD, Operation.READ, Operation.LIST, Operation.DELETE, Operation.CONTEXTS):
        made, context = await _upload(owner), (await owner.create_context({})).id
        await _upload(owner, context=context)
        secret = await asyncio.to_thread(tokens.add, f"only-{allowed.value}", [allowed])
        client = guarded.connect(cell.transport, token=secret)
        await eventually(lambda client=client: _known(client))  # type: ignore[misc]  # a default is not inferred
        for name, (operation, call) in EVERY_CALL.items():
            concerned = context if name in OF_CONTEXTS else made
            if operation is allowed:
                await call(client, concerned)
                continue
            with pytest.raises(PermissionDenied, match=operation.value):
                await call(client, concerned)
            if name in OF_RESOURCES:
                # It hears the same of what does not exist.
                with pytest.raises(PermissionDenied):
                    await call(client, "0" * 32)
        if allowed is not Operation.DELETE:
            assert await owner.open(made).read() == b"secret\n"


async def _known(client: ConnectedClient) -> bool:
    """Return whether the server has read the token of a client by now."""
    try:
        await client.status("0" * 32)
    except Unauthenticated:
        return False
    except (NotFound, PermissionDenied):
        pass
    return True


@proves("ACC-1", "RES-6")
async def test_a_token_of_one_context_sees_nothing_else(
    cell: Cell, guarded: LocalServer, tokens: TokenFile, admin: str
) -> None:
    owner = guarded.connect(cell.transport, token=admin)
    mine, other = (await owner.create_context({})).id, (await owner.create_context({})).id
    outside = [await _upload(owner), await _upload(owner, context=other)]
    within = await _upload(owner, context=mine)
    client = guarded.connect(
        cell.transport, token=await asyncio.to_thread(tokens.add, "bound", EVERYTHING, context=mine)
    )
    await eventually(lambda: _known(client))

    for each in outside:
        for reference in (each, (await owner.status(each)).reference, *(await owner.status(each)).alternatives):
            for _, call in OF_RESOURCES.values():
                with pytest.raises(NotFound) as refused:
                    await call(client, reference)
                with pytest.raises(NotFound) as unknown:
                    await call(client, "0" * 32)
                # Only the each, which it knows, tells the two apart.
                assert refused.value.message.replace(each, "0" * 32) == unknown.value.message
    for _, call in OF_CONTEXTS.values():
        with pytest.raises(ContextNotFound):
            await call(client, other)
    with pytest.raises(ContextNotFound):
        await _upload(client, context=other)
    with pytest.raises(PermissionDenied):
        await _upload(client)
    with pytest.raises(PermissionDenied):
        await client.create_context({})
    assert (await client.list_page(filter=ListFilter(context=other))).statuses == ()

    assert await client.open(within).read() == b"secret\n"
    own = await _upload(client, context=mine)
    assert [status.id for status in (await client.list_page()).statuses] == [within, own]
    await client.delete(own)
    assert {status.id for status in (await owner.list_page()).statuses} == {*outside, within}


@proves("ACC-1")
async def test_a_revoked_token_ends_new_requests_on_old_connections(
    cell: Cell, guarded: LocalServer, tokens: TokenFile, admin: str
) -> None:
    secret = await asyncio.to_thread(tokens.add, "guest", EVERYTHING)
    guest = guarded.connect(cell.transport, token=secret)
    await eventually(lambda: _known(guest))
    made = await _upload(guest)
    await asyncio.to_thread(tokens.revoke, "guest")

    async def refused() -> bool:
        try:
            await guest.status(made)
        except Unauthenticated:
            return True
        return False

    await eventually(refused)
    assert (await guarded.connect(cell.transport, token=admin).status(made)).size == 7


@proves("ACC-1")
async def test_idempotency_keys_belong_to_whoever_used_them(
    cell: Cell, guarded: LocalServer, tokens: TokenFile, admin: str
) -> None:
    guest = guarded.connect(cell.transport, token=await asyncio.to_thread(tokens.add, "guest", EVERYTHING))
    owner = guarded.connect(cell.transport, token=admin)
    await eventually(lambda: _known(guest))
    first, second = await _opened(owner, "nightly"), await _opened(guest, "nightly")
    assert first != second
    assert await _opened(owner, "nightly") == first


async def _refusal(client: ConnectedClient, made: str, token: str) -> TailraceError:
    stream = await client.connection.open(ReopenUpload(id=made, token=token))
    try:
        return await Conversation(stream).error()
    finally:
        await stream.close()


@proves("ACC-1")
async def test_old_upload_tokens_open_nothing(cell: Cell, server: LocalServer) -> None:
    client, manager = server.connect(cell.transport), server.manager
    first = await manager.create(Metadata(name="a"), idempotency_key="key")
    await first.release()
    other = await manager.create(Metadata(name="b"))
    await other.release()
    successor = await manager.create(Metadata(name="a"), idempotency_key="key")
    assert successor.id == first.id
    assert successor.token != first.token
    for wrong in (first.token, other.token, "", successor.token[:-1], "x" * 10_000):
        assert isinstance(await _refusal(client, first.id, wrong), TokenRejected)
    await successor.finish(size=0, head=EMPTY_HEAD)
    assert isinstance(await _refusal(client, first.id, first.token), TokenRejected)
    await client.delete(other.id)
    assert isinstance(await _refusal(client, other.id, other.token), NotFound)


@proves("ACC-1")
async def test_tokens_are_shown_nowhere(
    cell: Cell, guarded: LocalServer, admin: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = guarded.connect(cell.transport, token=admin)
    upload = client.upload("a")
    await upload.open()
    upload_token = upload.token
    assert len(upload_token) > 20
    wrong = admin[:-2] + "zz"
    with pytest.raises(Unauthenticated) as refused:
        await guarded.connect(cell.transport, token=wrong).status(upload.id)
    with pytest.raises(TailraceError):
        await client.open(upload.id).read(start=10, end=5)
    await upload.finish()
    text = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records if _is_ours(record))
    shown = [text, str(refused.value), repr(refused.value), repr(ClientSettings(token=admin)), repr(upload.reference)]
    assert text
    for secret in (admin, wrong, upload_token):
        assert all(secret not in each for each in shown)
    assert admin not in Path(guarded.data / "catalog.sqlite").read_bytes().decode("latin-1") if guarded.data else True


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.startswith("tailrace")


# What a transport has of its own


@proves("ACC-1")
@pytest.mark.cells(GRPC_CELLS)
async def test_health_of_grpc_needs_no_token(cell: Cell, guarded: LocalServer) -> None:
    async with grpc.aio.insecure_channel(guarded.url(Transport.GRPC).removeprefix("grpc://")) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]  # set at run time
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def _entry(token: str) -> str:
    return "tailrace.token." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


@proves("ACC-1")
@pytest.mark.cells(WEBSOCKET_CELLS)
@pytest.mark.parametrize("way", ["header", "subprotocol", "message"])
async def test_websockets_take_a_token_in_three_ways(cell: Cell, guarded: LocalServer, admin: str, way: str) -> None:
    url = guarded.url(Transport.WEBSOCKET) + "/v1/connect"
    for token, right in ((admin, True), (admin[:-2] + "zz", False)):
        subprotocols: list[Any] = [SUBPROTOCOL, *([_entry(token)] if way == "subprotocol" else [])]
        headers = {"Authorization": f"Bearer {token}"} if way == "header" else {}
        if way == "header" and not right:
            with pytest.raises(InvalidStatus) as denied:
                await connect_websocket(url, subprotocols=subprotocols, additional_headers=headers, proxy=None)
            assert denied.value.response.status_code == 401
            assert denied.value.response.headers["WWW-Authenticate"] == "Bearer"
            continue
        async with connect_websocket(
            url, subprotocols=subprotocols, additional_headers=headers, proxy=None
        ) as connection:
            assert connection.subprotocol == SUBPROTOCOL
            if way == "message":
                await connection.send(json.dumps({"type": "authenticate", "token": token}))
            message = json.loads(await connection.recv())
            if right:
                assert message["type"] == "hello"
                continue
            assert (message["type"], message["code"]) == ("error", "unauthenticated")
            with pytest.raises(ConnectionClosed) as closed:
                await connection.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008


@proves("ACC-1")
@pytest.mark.cells(WEBSOCKET_CELLS)
@pytest.mark.parametrize("first", ['{"type":"ping"}', '{"type":"list","request":1,"limit":5}', "{", b"\0" * 24])
async def test_nothing_is_processed_before_the_token(cell: Cell, guarded: LocalServer, first: str | bytes) -> None:
    url = guarded.url(Transport.WEBSOCKET) + "/v1/connect"
    subprotocols: list[Any] = [SUBPROTOCOL]
    async with connect_websocket(url, subprotocols=subprotocols, proxy=None) as connection:
        await connection.send(first)
        message = json.loads(await connection.recv())
        assert (message["type"], message["code"]) == ("error", "unauthenticated")
        with pytest.raises(ConnectionClosed):
            await connection.recv()


@proves("ACC-1")
@pytest.mark.cells(WEBSOCKET_CELLS)
async def test_who_shows_nothing_is_not_waited_for_for_ever(
    cell: Cell, guarded: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailrace_impl_websocket import _server_streams

    monkeypatch.setattr(_server_streams, "AUTHENTICATION_TIMEOUT", 0.01)
    url = guarded.url(Transport.WEBSOCKET) + "/v1/connect"
    subprotocols: list[Any] = [SUBPROTOCOL]
    async with connect_websocket(url, subprotocols=subprotocols, proxy=None) as connection:
        message = json.loads(await connection.recv())
        assert (message["type"], message["code"]) == ("error", "unauthenticated")


@proves("ACC-1")
@pytest.mark.cells(WEBSOCKET_CELLS)
async def test_http_takes_a_token(cell: Cell, guarded: LocalServer, tokens: TokenFile, admin: str) -> None:
    made = await _upload(guarded.connect(cell.transport, token=admin))
    base = guarded.url(Transport.WEBSOCKET, "http")
    async with AsyncClient(base_url=base, trust_env=False, timeout=DEADLINE) as http:
        for path in (f"/r/{made}", "/r/" + "0" * 32, "/metrics"):
            refused = await http.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert refused.json()["code"] == "unauthenticated"
        bearer = {"Authorization": f"Bearer {admin}"}
        assert (await http.get(f"/r/{made}", headers=bearer)).content == b"secret\n"
        assert (await http.get("/metrics", headers=bearer)).status_code == 200
        assert (await http.get("/healthz")).status_code == 200
        basic = {"Authorization": "Basic " + base64.b64encode(f"admin:{admin}".encode()).decode()}
        several = [("Authorization", f"Bearer {admin}"), ("Authorization", f"Bearer {admin[:-2]}zz")]
        for wrong in (basic, {"Authorization": admin}, several, several[::-1], [("Authorization", b"Bearer \xe9\xff")]):
            for path in (f"/r/{made}", "/metrics"):
                refused = await http.get(path, headers=wrong)  # type: ignore[arg-type]  # each is a form of headers
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        # A token in the address would be in every log on the way.
        assert (await http.get(f"/r/{made}", params={"token": admin})).status_code == 401
        reader = await asyncio.to_thread(tokens.add, "reader", [Operation.READ])
        bearer = {"Authorization": f"Bearer {reader}"}

        async def let_in() -> bool:
            return (await http.get(f"/r/{made}", headers=bearer)).status_code == 200

        await eventually(let_in)
        refused = await http.get("/metrics", headers=bearer)
        assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")


@proves("ACC-1")
@pytest.mark.cells(WEBSOCKET_CELLS)
async def test_only_pages_of_known_origins_are_let_in(cell: Cell, new_server: NewServer) -> None:
    server = await new_server(transport_settings={"options": {"origins": "https://app.example, http://localhost:8000"}})
    made = await _upload(server.connect(cell.transport))
    base, url = server.url(Transport.WEBSOCKET, "http"), server.url(Transport.WEBSOCKET) + "/v1/connect"
    subprotocols: list[Any] = [SUBPROTOCOL]
    async with AsyncClient(base_url=base, trust_env=False, timeout=DEADLINE) as http:
        for origin in ("https://app.example", "http://localhost:8000", base):
            async with connect_websocket(
                url, subprotocols=subprotocols, additional_headers={"Origin": origin}, proxy=None
            ) as connection:
                assert json.loads(await connection.recv())["type"] == "hello"
            answer = await http.get(f"/r/{made}", headers={"Origin": origin})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
            assert answer.headers["vary"] == "Origin"
            assert "x-tailrace-head" in answer.headers["access-control-expose-headers"]
            preflight = await http.options(
                f"/r/{made}", headers={"Origin": origin, "Access-Control-Request-Method": "GET"}
            )
            assert preflight.status_code == 204
            assert "authorization" in preflight.headers["access-control-allow-headers"]
        for origin in ("https://evil.example", "http://app.example", "https://app.example:444", "null", "", "file://"):
            with pytest.raises(InvalidStatus) as denied:
                await connect_websocket(
                    url, subprotocols=subprotocols, additional_headers={"Origin": origin}, proxy=None
                )
            assert denied.value.response.status_code == 403
            assert json.loads(denied.value.response.body or b"")["code"] == "permission_denied"
            answer = await http.get(f"/r/{made}", headers={"Origin": origin})
            assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
            assert "access-control-allow-origin" not in answer.headers
        # A foreign name that points here is of the same origin for the browser, and still foreign.
        rebound = {"Origin": "http://evil.example", "Host": "evil.example"}
        assert (await http.get(f"/r/{made}", headers=rebound)).status_code == 403


# TLS


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    folder = tmp_path / "certificates"
    folder.mkdir()
    return Certificates(folder)


def _secure_url(server: LocalServer, transport: Transport) -> str:
    return server.url(transport, "grpcs" if transport is Transport.GRPC else "wss")


@proves("ACC-2")
@pytest.mark.cells(WIRED_CELLS)
async def test_everything_goes_over_tls(cell: Cell, new_server: NewServer, certificates: Certificates) -> None:
    server = await new_server(transport_settings=certificates.issue("127.0.0.1"))
    url = _secure_url(server, cell.transport)
    client = server.connect(cell.transport, url=url, ca_file=certificates.ca_file)
    data = bytes(range(256)) * 20_000
    async with client.upload("a") as upload:
        await upload.write(data)
    assert upload.reference.startswith(url)
    assert await client.open(upload.reference).read() == data


@proves("ACC-2")
@pytest.mark.cells(WIRED_CELLS)
@pytest.mark.parametrize("wrong", ["authority", "host name", "expired", "plain client", "plain server"])
async def test_what_cannot_be_trusted_is_refused(
    cell: Cell, new_server: NewServer, certificates: Certificates, tmp_path: Path, wrong: str
) -> None:
    names = ("elsewhere.example",) if wrong == "host name" else ("127.0.0.1",)
    tls = certificates.issue(*names, expired=wrong == "expired")
    server = await new_server(transport_settings={} if wrong == "plain server" else tls)
    plain = server.url(cell.transport) if wrong == "plain server" else ""
    secure = plain.replace("grpc:", "grpcs:").replace("ws:", "wss:") or _secure_url(server, cell.transport)
    ca_file = certificates.ca_file
    if wrong == "authority":
        (tmp_path / "strangers").mkdir()
        ca_file = Certificates(tmp_path / "strangers").ca_file
    url = secure
    if wrong == "plain client":
        url = secure.replace("grpcs:", "grpc:").replace("wss:", "ws:")
    client = server.connect(cell.transport, url=url, ca_file=ca_file, token="not-for-strangers")
    # The time limit of the test is far above that of an attempt to connect.
    with pytest.raises(ConnectionLost) as refused:
        await client.status("0" * 32)
    assert "not-for-strangers" not in str(refused.value)


@proves("ACC-2")
@pytest.mark.cells(WIRED_CELLS)
async def test_certificates_of_clients_are_asked_for(
    cell: Cell, new_server: NewServer, certificates: Certificates, tmp_path: Path
) -> None:
    tls = {**certificates.issue("127.0.0.1"), "client_ca_file": certificates.ca_file}
    server = await new_server(transport_settings=tls)
    url = _secure_url(server, cell.transport)
    (tmp_path / "strangers").mkdir()
    stranger = Certificates(tmp_path / "strangers").issue("client.example")
    for shown in ({}, stranger):
        with pytest.raises(ConnectionLost):
            await server.connect(cell.transport, url=url, ca_file=certificates.ca_file, **shown).status("0" * 32)
    known = [
        server.connect(
            cell.transport,
            url=url,
            ca_file=certificates.ca_file,
            **certificates.issue(f"{name}.example", common_name=name),
        )
        for name in ("alice", "bob")
    ]
    ids = [await _opened(client, "mine") for client in known]
    # On gRPC the certificate says who somebody is.
    assert len(set(ids)) == (2 if cell.transport is Transport.GRPC else 1)


@proves("ACC-2")
@pytest.mark.cells(WIRED_CELLS)
async def test_bad_files_are_named(cell: Cell, new_server: NewServer, certificates: Certificates) -> None:
    good, other = certificates.issue("127.0.0.1"), certificates.issue("127.0.0.1")
    for field, settings in (
        ("certificate_file", {**good, "key_file": other["key_file"]}),
        ("certificate_file", {**good, "certificate_file": good["certificate_file"] + ".missing"}),
        ("client_ca_file", {**good, "client_ca_file": good["key_file"]}),
    ):
        with pytest.raises(ConfigurationError) as refused:
            await new_server(transport_settings=settings)
        assert refused.value.field == field
    server = await new_server(transport_settings=good)
    client = server.connect(cell.transport, url=_secure_url(server, cell.transport), ca_file=good["key_file"])
    with pytest.raises(ConfigurationError) as unusable:
        await client.status("0" * 32)
    assert unusable.value.field == "ca_file"


@proves("RES-6")
async def test_access_goes_with_the_caller_and_not_with_the_reference(
    cell: Cell, guarded: LocalServer, tokens: TokenFile, admin: str
) -> None:
    status = await guarded.connect(cell.transport, token=admin).status(
        await _upload(guarded.connect(cell.transport, token=admin))
    )
    lister = guarded.connect(cell.transport, token=await asyncio.to_thread(tokens.add, "lister", [Operation.LIST]))
    await eventually(lambda: _known(lister))
    for reference in (status.id, status.reference, *status.alternatives):
        with pytest.raises(PermissionDenied):
            await lister.open(reference).read()
    service = await guarded.manager.authenticate(Credentials(token=admin))
    assert (await service.list(ListFilter(), limit=5)).statuses[0].id == status.id
