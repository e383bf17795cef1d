"""What is checked of a new upload before anybody hears of it."""

from __future__ import annotations

import pytest

from tailrace_client_upload_api import UploadRequest
from tailrace_common_api import MAX_OFFSET, InvalidArgument, Metadata


@pytest.mark.parametrize("length", [-1, MAX_OFFSET + 1, 2**63, 2**64, 10**30])
def test_a_length_that_no_resource_has_is_refused_before_anything_is_sent(length: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        UploadRequest(metadata=Metadata(name="a"), length=length)
    assert caught.value.field == "length"


@pytest.mark.parametrize("length", [None, 0, MAX_OFFSET])
def test_any_other_length_may_be_declared(length: int | None) -> None:
    assert UploadRequest(metadata=Metadata(name="a"), length=length).length == length
