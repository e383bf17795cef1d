import itertools
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import (
    ConfigurationError,
    ConnectionLost,
    DamagedBlock,
    Fenced,
    GoingAway,
    IntegrityError,
    InternalError,
    NotFound,
    Overloaded,
    ProtocolError,
    QuotaExceeded,
    StorageFull,
    TailraceError,
    TokenRejected,
    WrongOffset,
)
from tailrace_impl_common._retry import RECONNECT_SCHEDULE, Reconnection, Retry, RetrySchedule, is_retried


def test_delays_grow_to_the_maximum_and_end() -> None:
    retry = Retry(RetrySchedule(initial=1, factor=3, maximum=10, retries=4), lambda: 0.5)
    assert [retry.next_delay() for _ in range(6)] == [0.5, 1.5, 4.5, 5.0, None, None]
    assert retry.retries == 4


def test_jitter_spreads_over_the_whole_delay() -> None:
    numbers = itertools.cycle([0.0, 0.25, 0.999])
    retry = Retry(RetrySchedule(initial=2, factor=1, maximum=2), lambda: next(numbers))
    assert [retry.next_delay() for _ in range(3)] == [0.0, 0.5, 1.998]


def test_the_peers_hint_is_a_lower_bound() -> None:
    retry = Retry(RetrySchedule(initial=1), lambda: 0.5)
    assert retry.next_delay(at_least=7) == 7.5


def test_success_starts_over() -> None:
    retry = Retry(RetrySchedule(initial=1, retries=2), lambda: 1.0)
    assert [retry.next_delay(), retry.next_delay(), retry.next_delay()] == [1, 2, None]
    retry.succeed()
    assert retry.retries == 0
    assert retry.next_delay() == 1


@given(
    schedule=st.builds(
        RetrySchedule,
        initial=st.floats(0.001, 1),
        factor=st.floats(1, 100),
        maximum=st.floats(1, 60),
        retries=st.none(),
    ),
    random=st.floats(0, 1, exclude_max=True),
)
def test_a_schedule_without_end_stays_bounded(schedule: RetrySchedule, random: float) -> None:
    retry = Retry(schedule, lambda: random)
    delays = [retry.next_delay() for _ in range(2000)]
    assert all(delay is not None and 0 <= delay <= schedule.maximum for delay in delays)


@pytest.mark.parametrize("wrong", [{"initial": 0}, {"factor": 0.9}, {"initial": 2, "maximum": 1}, {"retries": -1}])
def test_impossible_schedules_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        RetrySchedule(**wrong)  # type: ignore[arg-type]  # the wrong values are the test


# Coming back after a conversation was lost.

LOST = ConnectionLost("lost")
STEADY = RetrySchedule(initial=1, factor=1, maximum=1)


def test_a_lost_conversation_is_tried_again_until_the_time_is_up() -> None:
    reconnection = Reconnection(3.5, lambda: 0.999, STEADY)
    assert reconnection.lose(LOST, 100.0) == pytest.approx(0.999)
    assert reconnection.lose(LOST, 101.0) == pytest.approx(0.999)
    assert reconnection.lose(LOST, 103.0) == pytest.approx(0.5), "the last attempt is made when the time is up"
    assert reconnection.lose(LOST, 103.5) is None


def test_without_any_time_nothing_is_tried_again() -> None:
    assert Reconnection(0.0, lambda: 0.5).lose(LOST, 1.0) is None


@pytest.mark.parametrize(
    "error",
    [
        Fenced(epoch=1),
        StorageFull("full"),
        NotFound(id="x"),
        DamagedBlock(offset=0, problem="damaged"),
        TokenRejected(id="x"),
        QuotaExceeded(limit="bytes", maximum=1, actual=2),
        InternalError("?"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_server_refuses_is_not_tried_again(error: TailraceError) -> None:
    assert not is_retried(error)
    assert Reconnection(10.0, lambda: 0.5).lose(error, 0.0) is None


def test_the_time_with_a_conversation_does_not_count() -> None:
    reconnection = Reconnection(3.0, lambda: 0.5, STEADY)
    now = 0.0
    for _ in range(3):
        assert reconnection.lose(LOST, now) is not None
        reconnection.open(now + 0.9)
        now += 0.9 + 0.5
    # 2.7 seconds of the three are used up.
    assert reconnection.lose(LOST, now) == pytest.approx(0.3)
    assert reconnection.lose(LOST, now + 0.4) is None


def test_progress_starts_over() -> None:
    reconnection = Reconnection(2.0, lambda: 0.999, RetrySchedule(initial=1, factor=2, maximum=8))
    assert not Reconnection(2.0, lambda: 0.999).pending
    for now in (0.0, 100.0, 200.0):
        assert reconnection.lose(LOST, now) == pytest.approx(0.999)
        assert reconnection.lose(LOST, now + 1) == pytest.approx(1.0)
        assert reconnection.pending
        reconnection.open(now + 1.9)
        reconnection.progress()
        assert not reconnection.pending


def test_a_conversation_that_lasted_is_progress() -> None:
    reconnection = Reconnection(2.0, lambda: 0.5, STEADY)
    for now in range(0, 1000, 10):
        assert reconnection.lose(LOST, float(now)) == 0.5
        reconnection.open(now + 1.0)


def test_the_hint_of_a_server_is_kept() -> None:
    reconnection = Reconnection(60.0, lambda: 0.5, STEADY)
    assert reconnection.lose(GoingAway(retry_after=7.0), 0.0) == 7.5
    assert reconnection.lose(Overloaded(what="uploads", retry_after=2.0), 7.5) == 2.5
    assert Reconnection(5.0, lambda: 0.5, STEADY).lose(GoingAway(retry_after=7.0), 0.0) == 5.0


@pytest.mark.parametrize(
    "error", [IntegrityError(offset=1, problem="?"), WrongOffset(offset=1, expected=2), ProtocolError("?")]
)
def test_bytes_that_never_arrive_as_they_were_sent_are_no_accident(error: TailraceError) -> None:
    reconnection = Reconnection(1e6, lambda: 0.5, STEADY)
    for _ in range(2):
        for now in range(3):
            assert reconnection.lose(error, float(now)) is not None
            assert reconnection.lose(LOST, float(now)) is not None
        reconnection.progress()
    for now in range(3):
        assert reconnection.lose(error, float(now)) is not None
    assert reconnection.lose(error, 4.0) is None


@pytest.mark.parametrize("away", [0.2, 0.5, 1.0, 3.0, 10.0])
def test_who_comes_back_is_not_much_later_than_the_server(away: float) -> None:
    # On average; the worst luck is twice that.
    for chance, most in ((0.5, 0.2), (0.999, 0.4)):
        retry = Retry(RECONNECT_SCHEDULE, partial(float, chance))
        elapsed, attempts = 0.0, 0
        while elapsed < away:
            delay = retry.next_delay()
            assert delay is not None
            elapsed += delay
            attempts += 1
        assert elapsed - away <= most * away + 0.05
        # And those who wait do not storm a server that is not there.
        assert attempts <= 25
