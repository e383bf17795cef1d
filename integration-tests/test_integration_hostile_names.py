"""Names, labels, ids and headers that want to be more than that."""

from __future__ import annotations

import logging

import pytest
from cells import WEBSOCKET_CELLS, Cell, Transport
from httpx import AsyncClient
from manifest import proves
from server_process import DEADLINE
from servers import LocalServer

from tailrace_common_api import InvalidArgument, InvalidReference, Metadata, NotFound, TailraceError
from tailrace_impl_common import ConnectedClient
from tailrace_impl_common.messages import Delete, GetStatus

HOSTILE_IDS = [
    "../../etc/passwd",
    "..",
    "a/../../b",
    "%2e%2e%2f",
    "\\\\host\\share",
    "a\nb",
    "\x1b[31mred",
    "a\0b",
    "\u202e",
]
HOSTILE_TEXTS = ["a\nforged=1", "a\r\nSet-Cookie: x=1", "\x1b]0;owned\x07", "a\0b", "\x9b31m", "a\u2028b"]


def _is_one_line(text: str) -> bool:
    return text.isprintable()


@proves("ACC-3")
@pytest.mark.parametrize("hostile", HOSTILE_IDS, ids=ascii)
async def test_hostile_ids_reach_neither_a_path_nor_a_log_line(
    cell: Cell, server: LocalServer, client: ConnectedClient, hostile: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="tailrace")
    for request in (GetStatus(id=hostile), Delete(id=hostile)):
        with pytest.raises((InvalidReference, NotFound, InvalidArgument)) as refused:
            await client.connection.call(request)
        assert _is_one_line(refused.value.message)
    assert all(_is_one_line(record.getMessage()) for record in caplog.records if record.name.startswith("tailrace"))
    assert (await client.list_page()).statuses == ()


@proves("ACC-3")
@pytest.mark.parametrize("hostile", HOSTILE_TEXTS, ids=ascii)
async def test_hostile_texts_are_refused_in_words_that_can_be_printed(
    cell: Cell, client: ConnectedClient, hostile: str
) -> None:
    for options in (
        {"name": hostile},
        {"name": "a", "labels": {"key": hostile}},
        {"name": "a", "labels": {hostile: ""}},
    ):
        with pytest.raises(InvalidArgument) as refused:
            Metadata(**options)
        assert _is_one_line(refused.value.message)
    with pytest.raises(TailraceError) as key:
        async with client.upload("a", idempotency_key=hostile):
            pass
    assert _is_one_line(key.value.message)


@proves("ACC-3")
async def test_a_name_like_a_path_is_only_a_name(cell: Cell, server: LocalServer, client: ConnectedClient) -> None:
    for name in ("../../escaped", "/etc/passwd", "..", "a/b", "$(touch x)", "`id`", "; rm -rf /"):
        async with client.upload(name) as upload:
            await upload.write(b"x")
        assert (await client.status(upload.id)).metadata.name == name
        assert name not in upload.reference
    if server.data is not None:
        assert not (server.data.parent / "escaped").exists()


@proves("ACC-3")
@pytest.mark.cells(WEBSOCKET_CELLS)
async def test_hostile_headers_and_paths_are_answered_in_one_line(
    cell: Cell, server: LocalServer, client: ConnectedClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="tailrace")
    headers = {"User-Agent": "${jndi:x} %0aforged", "Authorization": "Bearer %0d%0a", "traceparent": "%1b[2J"}
    base = server.url(Transport.WEBSOCKET, "http")
    async with client.upload('a"; filename="../../evil.sh') as upload:
        await upload.write(b"x")
    async with AsyncClient(base_url=base, trust_env=False, timeout=DEADLINE) as http:
        for path in ("/r/..%2f..%2fetc%2fpasswd", "/r/%1b%5b31m", "/r/a%0d%0aSet-Cookie:x", "/r/%00", "/%0aforged"):
            answer = await http.get(path, headers=headers)
            assert answer.status_code in (400, 404)
            assert _is_one_line(answer.json()["message"])
            assert "set-cookie" not in answer.headers
        # What no header may have does not get as far as the application.
        assert (await http.get("/healthz", headers={"User-Agent": "\x1b[31mred"})).status_code == 400
        disposition = (await http.get(f"/r/{upload.id}", headers=headers)).headers["content-disposition"]
        assert disposition.count('"') == 2
        assert "/" not in disposition
    assert all(_is_one_line(record.getMessage()) for record in caplog.records if record.name.startswith("tailrace"))
