import random
from collections.abc import Callable

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import IntegrityError, ProtocolError
from tailrace_impl_common._blocks import BLOCK_SIZE, chunk_hash
from tailrace_impl_common._buffers import Buffer
from tailrace_impl_common._chain import ChainSender, ChainVerifier, verify_data
from tailrace_impl_common._head import EMPTY_HEAD, HeadHasher, head_of

Sent = tuple[int, bytes, bytes, bytes]


def send(chunks: list[bytes], offset: int) -> tuple[list[Sent], tuple[bytes, int]]:
    sender = ChainSender(offset)
    sent: list[Sent] = []
    for data in chunks:
        at = sender.offset
        sent.append((at, data, *sender.next(data)))
    return sent, (sender.previous, sender.offset)


def receive(sent: list[Sent], offset: int, end: tuple[bytes, int]) -> bytes:
    verifier = ChainVerifier(offset)
    got = b""
    for chunk in sent:
        verifier.check(*chunk)
        got += chunk[1]
    verifier.finish(*end)
    return got


CHUNKS = st.lists(
    st.one_of(st.binary(min_size=1, max_size=5), st.sampled_from([b"same", b"x"])), min_size=1, max_size=8
)


def test_the_hash_of_a_small_chunk_is_the_canonical_xxh3_64() -> None:
    assert chunk_hash(b"").hex() == "2d06800538d394c2"
    assert chunk_hash(memoryview(b"-abc-")[1:4]).hex() == xxhash.xxh3_64_hexdigest(b"abc")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize(
    "size",
    [1, 240, 241, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE, 3 * BLOCK_SIZE + 240, 8 * BLOCK_SIZE - 1],
)
def test_the_hash_is_the_same_however_many_parts_are_known(size: int, kind: Callable[[bytes], Buffer]) -> None:
    data = random.Random(size).randbytes(size)
    parts = [data[start : start + BLOCK_SIZE] for start in range(0, size, BLOCK_SIZE)]
    digests = [bytes.fromhex(xxhash.xxh3_128_hexdigest(part)) for part in parts]
    expected = xxhash.xxh3_64_hexdigest(data if len(parts) == 1 else b"".join(digests))
    for known in range(len(parts) + 1):
        assert chunk_hash(kind(data), digests[:known]).hex() == expected


@given(chunks=CHUNKS, offset=st.integers(0, 2**50))
def test_a_whole_transfer_passes_from_any_offset(chunks: list[bytes], offset: int) -> None:
    sent, end = send(chunks, offset)
    assert sent[0][3] == b""
    assert [chunk[3] for chunk in sent[1:]] == [chunk_hash(data) for data in chunks[:-1]]
    assert receive(sent, offset, end) == b"".join(chunks)


def test_an_empty_transfer_has_a_verified_end() -> None:
    ChainVerifier(7).finish(b"")
    with pytest.raises(IntegrityError) as caught:
        ChainVerifier(7).finish(chunk_hash(b"lost"))
    assert caught.value.offset == 7


@given(chunks=CHUNKS, data=st.data())
def test_every_single_fault_is_found_and_names_the_proven_offset(chunks: list[bytes], data: st.DataObject) -> None:
    sent, end = send(chunks, 10)
    at = data.draw(st.integers(0, len(sent) - 1))
    offset, body, of_body, previous = sent[at]
    fault = data.draw(st.sampled_from(["lose", "repeat", "swap", "corrupt", "truncate"]))
    proven = offset
    if fault == "lose":
        del sent[at]
    elif fault == "repeat":
        sent.insert(at, sent[at])
        proven += len(body)
    elif fault == "swap":
        if at + 1 == len(sent):
            return
        sent[at : at + 2] = sent[at + 1], sent[at]
    elif fault == "corrupt":
        position = data.draw(st.integers(0, len(body) - 1))
        sent[at] = offset, body[:position] + bytes([body[position] ^ 1]) + body[position + 1 :], of_body, previous
    else:
        sent[at] = offset, body[:-1], of_body, previous
    with pytest.raises(IntegrityError) as caught:
        receive(sent, 10, end)
    assert caught.value.offset == proven


def test_a_refused_chunk_changes_nothing() -> None:
    (first, second), _ = send([b"first", b"second"], 0)
    verifier = ChainVerifier()
    with pytest.raises(IntegrityError):
        verifier.check(*second)
    with pytest.raises(IntegrityError):
        verifier.check(first[0], b"f1rst", first[2], first[3])
    assert (verifier.offset, verifier.previous) == (0, b"")
    verifier.check(*first)
    verifier.check(*second)
    assert verifier.offset == 11


def test_a_hasher_takes_what_is_checked_and_nothing_else() -> None:
    verifier, hasher = ChainVerifier(), HeadHasher()
    first = (0, b"a" * 300_000, chunk_hash(b"a" * 300_000), b"")
    second = (300_000, b"b", chunk_hash(b"b"), first[2])
    with pytest.raises(IntegrityError):
        verifier.check(*second, hasher)
    with pytest.raises(IntegrityError):
        verifier.check(0, b"a" * 299_999 + b"b", first[2], b"", hasher)
    assert (verifier.offset, hasher.size, hasher.head()) == (0, 0, EMPTY_HEAD)
    verifier.check(*first, hasher)
    verifier.check(*second, hasher)
    assert (verifier.offset, hasher.head()) == (300_001, head_of(first[1] + b"b"))


def test_order_and_bytes_can_be_checked_apart() -> None:
    (chunk,), end = send([b"data"], 0)
    verifier = ChainVerifier()
    verifier.link(chunk[0], 4, chunk[2], chunk[3])
    verifier.finish(*end)
    verify_data(b"data", chunk[2], 0)
    with pytest.raises(IntegrityError, match="offset 0"):
        verify_data(b"dat4", chunk[2], 0)


def test_chunks_hashed_elsewhere_are_linked_like_others() -> None:
    hashing, linking = ChainSender(3), ChainSender(3)
    for data in (b"a", b"bc"):
        own, previous = hashing.next(data)
        assert linking.link(chunk_hash(data), len(data)) == previous
        assert own == chunk_hash(data) == linking.previous
    assert linking.offset == hashing.offset == 6


def test_a_chunk_without_bytes_breaks_the_protocol() -> None:
    with pytest.raises(ProtocolError):
        ChainVerifier().check(0, b"", chunk_hash(b""), b"")


def test_a_wrong_previous_is_told_with_both_hashes() -> None:
    verifier = ChainVerifier()
    verifier.check(0, b"a", chunk_hash(b"a"), b"")
    with pytest.raises(IntegrityError) as caught:
        verifier.check(1, b"b", chunk_hash(b"b"), b"")
    assert "no chunk" in str(caught.value)
    assert chunk_hash(b"a").hex() in str(caught.value)
    assert caught.value.offset == 1
