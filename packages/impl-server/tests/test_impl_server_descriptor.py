"""Descriptors as JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import Metadata, StorageFailure, Visibility
from tailrace_impl_server._descriptor import descriptor_from_json, descriptor_to_json
from tailrace_server_api import Descriptor

texts = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029"), min_size=1, max_size=50
)
digests = st.binary(min_size=32, max_size=32)
descriptors = st.builds(
    Descriptor,
    id=st.text("0123456789abcdefghijklmnopqrstuv", min_size=32, max_size=32),
    metadata=st.builds(
        Metadata,
        name=texts,
        content_type=st.just("text/plain; charset=utf-8"),
        lines=st.booleans(),
        labels=st.dictionaries(texts, texts, max_size=5),
        context=st.none() | texts,
    ),
    visibility=st.sampled_from(Visibility),
    created_at=st.floats(0, 1e11),
    token_hash=digests,
    principal=st.text(),
    idempotency_key=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    length=st.none() | st.integers(0, 2**53 - 1),
    sha256=st.none() | digests,
)


@given(descriptors)
def test_a_descriptor_comes_back_as_it_was_written(descriptor: Descriptor) -> None:
    text = descriptor_to_json(descriptor)
    assert "\n" not in text
    assert descriptor_from_json(text) == descriptor
    assert descriptor_from_json(text.encode("utf-8", "surrogatepass")) == descriptor


@given(descriptors, st.data())
def test_a_damaged_description_is_a_failure_of_the_storage(descriptor: Descriptor, data: st.DataObject) -> None:
    text = descriptor_to_json(descriptor)
    value = json.loads(text)
    missing = data.draw(st.sampled_from(sorted(value)))
    without = {key: part for key, part in value.items() if key != missing}
    for damaged in (json.dumps(without), text[: len(text) // 2], "", "[]", "null", json.dumps({**value, "format": 2})):
        with pytest.raises(StorageFailure):
            descriptor_from_json(damaged)
