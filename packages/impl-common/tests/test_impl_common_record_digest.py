"""The digest of a stream of records depends on the records alone."""

import struct

from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from tailrace_common_api import Record, RecordBatch
from tailrace_impl_common import RecordDigest

KEYS = st.none() | st.text(min_size=1, max_size=5)
RECORDS = st.lists(st.builds(Record, st.binary(max_size=10), KEYS), max_size=20)


def by_definition(records: list[Record]) -> bytes:
    data = xxh3_128_digest(b"".join(record.data for record in records))
    lengths = xxh3_128_digest(b"".join(struct.pack(">I", len(record.data)) for record in records))
    keys = [(record.key or "").encode() for record in records]
    return xxh3_128_digest(
        data + lengths + xxh3_128_digest(b"".join(struct.pack(">I", len(key)) + key for key in keys))
    )


def batch_of(records: list[Record]) -> RecordBatch:
    keys = [record.key for record in records]
    return RecordBatch([record.data for record in records], keys if any(keys) else ())


@given(RECORDS, st.data())
def test_any_cut_gives_the_digest_of_the_definition(records: list[Record], data: st.DataObject) -> None:
    digest = RecordDigest()
    rest = records
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        digest.update(batch_of(rest[:count]))
        rest = rest[count:]
    assert digest.digest() == by_definition(records)
    assert digest.records == len(records)


def test_no_records_have_a_digest() -> None:
    assert RecordDigest().digest().hex() == "886aa2170c0c1f38dd18fcb7edce35ba" == by_definition([]).hex()


def test_known_records_have_a_known_digest() -> None:
    digest = RecordDigest()
    digest.update(RecordBatch([b"a", b"bc", b"x"], [None, None, "k"]))
    assert digest.digest().hex() == "8e124536c38472d384b4ba131971d0b6"


def test_boundaries_keys_and_order_count() -> None:
    variants = [
        [Record(b"ab"), Record(b"c")],
        [Record(b"a"), Record(b"bc")],
        [Record(b"abc")],
        [Record(b"c"), Record(b"ab")],
        [Record(b"ab", "k"), Record(b"c")],
        [Record(b"ab"), Record(b"c", "k")],
        [Record(b"ab"), Record(b"c"), Record(b"")],
    ]
    digests = set()
    for records in variants:
        digest = RecordDigest()
        digest.update(batch_of(records))
        digests.add(digest.digest())
    assert len(digests) == len(variants)


def test_a_copy_goes_on_by_itself() -> None:
    digest = RecordDigest()
    digest.update(RecordBatch([b"a"]))
    copy = digest.copy()
    before = copy.digest()
    digest.update(RecordBatch([b"b"]))
    assert copy.digest() == before
    assert copy.records == 1
    copy.update(RecordBatch([b"b"]))
    assert copy.digest() == digest.digest()
