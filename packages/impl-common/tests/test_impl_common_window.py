import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import ProtocolError
from tailrace_impl_common._window import ReceiveWindow, SendWindow


def test_a_grant_is_absolute_and_never_shrinks() -> None:
    window = SendWindow(100)
    assert window.available(0) == 100
    assert window.available(99) == 1
    assert window.available(100) == window.available(150) == 0
    assert not window.grant(100)
    assert not window.grant(50)
    assert window.until == 100
    assert window.grant(130)
    assert window.available(100) == 30


def test_a_window_is_renewed_once_a_quarter_is_consumed() -> None:
    window = ReceiveWindow(400, offset=1000)
    assert window.until == 1400
    assert window.consume(1099) is None
    assert window.consume(1100) == 1500
    assert window.consume(1100) is None
    assert window.consume(1400) == 1800 == window.until


def test_an_upload_never_overdraws() -> None:
    window = ReceiveWindow(100)
    window.receive(0, 100)
    for offset, length in ((100, 1), (99, 2), (0, 101)):
        with pytest.raises(ProtocolError, match="ends at offset 100"):
            window.receive(offset, length)


def test_a_download_overdraws_by_one_chunk_at_most() -> None:
    window = ReceiveWindow(100, overdraft=64)
    window.receive(99, 64)
    for offset, length in ((99, 65), (100, 1)):
        with pytest.raises(ProtocolError):
            window.receive(offset, length)


@pytest.mark.parametrize("size", [0, -1])
def test_a_window_has_room_for_a_byte_at_least(size: int) -> None:
    with pytest.raises(ValueError, match="window"):
        ReceiveWindow(size)


@given(
    size=st.integers(1, 50),
    overdraft=st.sampled_from([0, 7]),
    offset=st.integers(0, 100),
    steps=st.lists(st.tuples(st.integers(1, 7), st.integers(0, 60)), max_size=40),
)
def test_two_sides_that_obey_never_stall_and_never_exceed(
    size: int, overdraft: int, offset: int, steps: list[tuple[int, int]]
) -> None:
    receiver = ReceiveWindow(size, offset=offset, overdraft=overdraft)
    sender = SendWindow(receiver.until)
    sent = consumed = offset
    for wanted, taken in steps:
        available = sender.available(sent)
        length = wanted if overdraft and available else min(wanted, available)
        if length:
            receiver.receive(sent, length)
            sent += length
        assert sent - consumed <= size + max(0, overdraft - 1)
        consumed = min(sent, consumed + taken)
        if (until := receiver.consume(consumed)) is not None:
            assert sender.grant(until)
    if (until := receiver.consume(sent)) is not None:
        sender.grant(until)
    assert sender.available(sent) >= min(size, max(1, size * 3 // 4)), "all is consumed and the sender may not go on"
