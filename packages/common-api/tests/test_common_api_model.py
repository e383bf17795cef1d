"""Values that refuse what they cannot mean."""

import math

import pytest

from tailrace_common_api import InvalidArgument, ListFilter


@pytest.mark.parametrize("time", [math.nan, math.inf, -math.inf])
def test_a_listing_is_bounded_by_points_in_time(time: float) -> None:
    with pytest.raises(InvalidArgument, match=r"created_from: .* is no point in time"):
        ListFilter(created_from=time)
    with pytest.raises(InvalidArgument, match=r"created_before: .* is no point in time"):
        ListFilter(created_before=time)
    assert ListFilter(created_from=-1.5, created_before=1e300).created_from == -1.5
