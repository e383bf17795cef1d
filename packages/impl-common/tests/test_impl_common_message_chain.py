import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import IntegrityError, InvalidArgument
from tailrace_impl_common._blocks import chunk_hash
from tailrace_impl_common._message_chain import MessageChainReceiver, MessageChainSender

Message = dict[str, bytes]


def build(data: bytes, previous: bytes) -> Message:
    return {"payload": data, "before": previous}


def read(message: Message) -> tuple[bytes, bytes]:
    return message["payload"], message["before"]


def send(*pieces: bytes, chunk_size: int = 4) -> list[Message]:
    return list(MessageChainSender(build, chunk_size=chunk_size).messages(pieces))


def receive(messages: list[Message]) -> bytes:
    receiver = MessageChainReceiver(read)
    got = b"".join(receiver.feed(message) for message in messages)
    receiver.finish()
    assert receiver.offset == len(got)
    return got


def test_messages_hold_chunks_and_the_hash_of_the_chunk_before() -> None:
    assert send(b"abcdef", b"g") == [
        build(b"abcd", b""),
        build(b"ef", chunk_hash(b"abcd")),
        build(b"g", chunk_hash(b"ef")),
        build(b"", chunk_hash(b"g")),
    ]


def test_empty_content_is_one_message_with_an_empty_hash() -> None:
    assert send() == send(b"", b"") == [build(b"", b"")]
    assert receive(send()) == b""


@given(pieces=st.lists(st.binary(max_size=20), max_size=6), chunk_size=st.integers(1, 8))
def test_what_is_sent_is_received(pieces: list[bytes], chunk_size: int) -> None:
    messages = send(*pieces, chunk_size=chunk_size)
    assert all(len(message["payload"]) <= chunk_size for message in messages)
    assert receive(messages) == b"".join(pieces)


# Pieces that invite equal neighbours; those of one or two bytes cannot always be cut apart.
PIECES = st.lists(st.sampled_from([b"aaaaaaaaaaaaaaaa", b"aaaa", b"abcabcabc", b"xyz"]), min_size=1, max_size=5)


@given(pieces=PIECES, data=st.data())
def test_every_single_fault_is_found(pieces: list[bytes], data: st.DataObject) -> None:
    messages = send(*pieces)
    content = b"".join(pieces)
    at = data.draw(st.integers(0, len(messages) - 2))
    fault = data.draw(st.sampled_from(["lose", "repeat", "swap", "corrupt", "truncate", "no end"]))
    if fault == "lose":
        del messages[at]
    elif fault == "repeat":
        messages.insert(at, messages[at])
    elif fault == "swap":
        messages[at : at + 2] = messages[at + 1], messages[at]
    elif fault == "corrupt":
        payload = messages[at]["payload"]
        messages[at] = build(bytes([payload[0] ^ 1]) + payload[1:], messages[at]["before"])
    elif fault == "truncate":
        messages[at] = build(messages[at]["payload"][:-1], messages[at]["before"])
    else:
        messages.pop()
    receiver = MessageChainReceiver(read)
    got = b""
    with pytest.raises(IntegrityError) as caught:  # noqa: PT012 - what was handed out before it is compared below
        for message in messages:
            got += receiver.feed(message)
        receiver.finish()
    assert content.startswith(got), "bytes were handed out that were not sent"
    assert caught.value.offset == receiver.offset == len(got)


def test_a_fault_is_found_at_the_next_message_and_its_bytes_are_not_shown() -> None:
    first, second, end = send(b"abcdefgh")
    receiver = MessageChainReceiver(read)
    assert receiver.feed(first) == b""
    assert receiver.feed(build(b"efgX", second["before"])) == b"abcd"
    with pytest.raises(IntegrityError) as caught:
        receiver.feed(end)
    assert caught.value.offset == 4
    with pytest.raises(IntegrityError) as again:
        receiver.feed(end)
    assert again.value is caught.value
    with pytest.raises(IntegrityError):
        receiver.finish()


def test_nothing_may_follow_the_end() -> None:
    messages = send(b"ab")
    receiver = MessageChainReceiver(read)
    assert b"".join(receiver.feed(message) for message in messages) == b"ab"
    assert receiver.finished
    with pytest.raises(IntegrityError, match="behind the end"):
        receiver.feed(messages[-1])


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_transfer_without_its_end_was_cut_off(taken: int) -> None:
    receiver = MessageChainReceiver(read)
    for message in send(b"abcdefgh")[:taken]:
        receiver.feed(message)
    assert not receiver.finished
    with pytest.raises(IntegrityError, match="without the one that ends"):
        receiver.finish()


@pytest.mark.parametrize("previous", [b"", b"short", bytes(8)])
def test_the_refusal_says_what_came(previous: bytes) -> None:
    receiver = MessageChainReceiver(read)
    receiver.feed(build(b"abc", b""))
    expected = "of 5 bytes" if previous == b"short" else chunk_hash(b"abc").hex()
    with pytest.raises(IntegrityError, match=expected):
        receiver.feed(build(b"d", previous))
    with pytest.raises(IntegrityError, match="the first to arrive"):
        MessageChainReceiver(read).feed(build(b"d", bytes(8)))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        MessageChainSender(build, chunk_size=0)
    with pytest.raises(InvalidArgument):
        send("text")  # type: ignore[arg-type]  # what a user without types may do
