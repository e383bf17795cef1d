import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import ConfigurationError
from tailrace_impl_common._retry import Retry, RetrySchedule


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
