"""Tokens: the file, and callers who show one."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tailrace_common_api import ConfigurationError, Unauthenticated
from tailrace_impl_server import TokenAuthenticator, TokenFile, _token_file
from tailrace_server_api import Credentials, Operation

READ = [Operation.READ]
CONTEXT = "0pgcc09k4q89u71bf92d1q2jcaov0v2q"


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json")


def test_a_token_is_kept_as_a_salted_hash_that_only_its_owner_reads(file: TokenFile) -> None:
    first = file.add("ci", [Operation.UPLOAD, Operation.READ], context=CONTEXT, expires_in=60)
    second = file.add("guest", READ)
    assert first != second
    assert file.path.stat().st_mode & 0o777 == 0o600
    text = file.path.read_text()
    assert all(token.split("_", 2)[2] not in text for token in (first, second))
    ci, guest = sorted(file.entries().values(), key=lambda entry: entry.name)
    assert (ci.name, ci.context, ci.scopes) == ("ci", CONTEXT, frozenset({Operation.UPLOAD, Operation.READ}))
    assert ci.expires_at == ci.created_at + 60
    assert (guest.context, guest.expires_at) == (None, None)
    assert ci.salt != guest.salt
    file.revoke("ci")
    assert [entry.name for entry in file.entries().values()] == ["guest"]
    assert {path.name for path in file.path.parent.iterdir()} == {"tokens.json", "tokens.json.lock"}


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("name", {"name": "a b"}),
        ("name", {"name": "../x"}),
        ("name", {"name": "a\nb"}),
        ("name", {"name": "\x1b[31m"}),
        ("name", {"name": ""}),
        ("name", {"name": "x" * 65}),
        ("name", {"name": "there"}),
        ("scope", {"scopes": []}),
        ("context", {"context": "../x"}),
        ("expires", {"expires_in": 0}),
        ("expires", {"expires_in": float("nan")}),
    ],
)
def test_what_cannot_be_kept_is_refused_and_changes_nothing(
    file: TokenFile, field: str, change: dict[str, Any]
) -> None:
    file.add("there", READ)
    before = file.path.read_bytes()
    with pytest.raises(ConfigurationError) as refused:
        file.add(**{"name": "new", "scopes": READ, **change})
    assert refused.value.field == field
    assert file.path.read_bytes() == before


def test_nobody_can_be_revoked_who_is_not_there(file: TokenFile) -> None:
    file.add("there", READ)
    with pytest.raises(ConfigurationError, match="no token for"):
        file.revoke("elsewhere")


DAMAGES: list[Any] = [
    b"",
    b"{",
    b"[]",
    b"\xff",
    b"null",
    b'{"format": "other", "version": 1, "tokens": []}',
    b'{"format": "tailrace-tokens", "version": 2, "tokens": []}',
    b'{"format": "tailrace-tokens", "version": 1, "tokens": [{}]}',
    b'{"format": "tailrace-tokens", "version": 1, "tokens": 5}',
    b"[" * 100_000,
    ("name", "a\nb"),
    ("name", 5),
    ("salt", "00"),
    ("hash", "zz"),
    ("scopes", ["everything"]),
    ("context", 5),
    ("expires_at", "soon"),
    ("id", "../../etc"),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_file_is_refused_and_left_alone(file: TokenFile, damage: Any) -> None:
    file.add("ci", READ)
    if isinstance(damage, bytes):
        file.path.write_bytes(damage)
    else:
        content = json.loads(file.path.read_bytes())
        content["tokens"][0][damage[0]] = damage[1]
        file.path.write_text(json.dumps(content))
    before = file.path.read_bytes()
    for use in (file.entries, lambda: file.add("new", READ), lambda: file.revoke("ci")):
        with pytest.raises(ConfigurationError, match="damaged"):
            use()
    assert file.path.read_bytes() == before


def test_a_file_that_others_can_read_is_refused(file: TokenFile) -> None:
    file.add("ci", READ)
    file.path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="mode 0644"):
        file.entries()


def test_a_missing_file_is_refused(file: TokenFile) -> None:
    with pytest.raises(ConfigurationError, match=r"tokens\.json.*No such file"):
        file.entries()


def test_the_same_is_done_for_every_token(file: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    token = file.add("ci", READ)
    expired = file.add("old", READ, expires_in=1)
    entries = file.entries()
    now = max(entry.created_at for entry in entries.values()) + 10
    done: list[str] = []

    def hashed(salt: bytes, shown: str) -> bytes:
        done.append(f"hash {len(salt)}")
        return digest(salt, shown)

    digest = _token_file._hash
    work = []
    for shown in (
        token,
        expired,
        token[:-1] + ("A" if token[-1] != "A" else "B"),
        "tr_" + "0" * 16 + token[19:],
        "tr_" + "f" * 16 + token[19:],
        "nonsense",
        "",
        "\udcff\n",
        "x" * 10_000,
    ):
        done.clear()
        with monkeypatch.context() as patch:
            patch.setattr(_token_file, "_hash", hashed)
            patch.setattr(_token_file, "hmac", _Compare(done))
            found = _token_file.find_token(shown, entries, now)
        assert (found is not None) == (shown == token)
        work.append(tuple(done))
    assert set(work) == {("hash 16", "compare 32 32")}


class _Compare:
    """Stands in for the module, and notes how often it was asked."""

    def __init__(self, done: list[str]) -> None:
        self._done = done

    def compare_digest(self, first: bytes, second: bytes) -> bool:
        self._done.append(f"compare {len(first)} {len(second)}")
        return hmac.compare_digest(first, second)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def test_changes_of_the_file_count_for_the_next_request(file: TokenFile) -> None:
    token = await asyncio.to_thread(file.add, "ci", READ, context=CONTEXT)
    authenticator = TokenAuthenticator(file.path, check_interval=0)
    await authenticator.start()
    principal = await authenticator.authenticate(Credentials(token=token))
    assert (principal.name, principal.operations, principal.context) == ("ci", frozenset({Operation.READ}), CONTEXT)
    other = await asyncio.to_thread(file.add, "guest", READ)
    assert (await authenticator.authenticate(Credentials(token=other))).name == "guest"
    await asyncio.to_thread(file.revoke, "ci")
    with pytest.raises(Unauthenticated) as revoked:
        await authenticator.authenticate(Credentials(token=token))
    with pytest.raises(Unauthenticated) as missing:
        await authenticator.authenticate(Credentials(certificate_names=("ci",)))
    assert revoked.value.message == missing.value.message
    await authenticator.close()


async def test_an_expired_token_is_worth_nothing(file: TokenFile) -> None:
    token = await asyncio.to_thread(file.add, "ci", READ, expires_in=60)
    (entry,) = (await asyncio.to_thread(file.entries)).values()
    assert entry.expires_at is not None
    clock = Clock()
    authenticator = TokenAuthenticator(file.path, now=clock)
    await authenticator.start()
    clock.now = entry.expires_at - 1
    await authenticator.authenticate(Credentials(token=token))
    clock.now = entry.expires_at
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(Credentials(token=token))


@pytest.mark.parametrize("trouble", ["damaged", "readable", "gone"])
async def test_what_was_read_stays_in_force_while_the_file_cannot_be_used(
    file: TokenFile, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = await asyncio.to_thread(file.add, "ci", READ)
    authenticator = TokenAuthenticator(file.path, check_interval=0)
    await authenticator.start()

    def make_trouble() -> None:
        if trouble == "damaged":
            file.path.write_bytes(b"{")
        elif trouble == "readable":
            file.path.chmod(0o644)
        else:
            os.unlink(file.path)

    await asyncio.to_thread(make_trouble)
    for _ in range(3):
        assert (await authenticator.authenticate(Credentials(token=token))).name == "ci"
    # Once, and not for each request.
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


async def test_a_server_does_not_start_without_its_tokens(file: TokenFile) -> None:
    with pytest.raises(ConfigurationError):
        await TokenAuthenticator(file.path).start()
