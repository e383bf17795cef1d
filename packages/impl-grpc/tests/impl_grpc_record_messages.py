"""Random messages about records, for tests of the codec."""

from __future__ import annotations

from hypothesis import strategies as st
from impl_grpc_messages import heads, ids, names, offsets, texts, times, windows

from tailrace_common_api import (
    MAX_KEY_SIZE,
    BulkResult,
    QueuedRecord,
    QueueFigures,
    RecordBatch,
    RecordLimits,
    Reporting,
    Settlement,
    Verdict,
)
from tailrace_impl_common import record_messages as r

digests = heads
numbers = st.integers(0, 2**64 - 1)
attempts = st.integers(1, 2**32 - 1)
record_data = st.binary(max_size=40) | st.just(bytes(range(250)) * 280)
keys = (
    st.none()
    | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
    | st.sampled_from(["k" * MAX_KEY_SIZE, "\U0001f600" * (MAX_KEY_SIZE // 4), "ü" * (MAX_KEY_SIZE // 2)])
)


@st.composite
def batches_of(draw: st.DrawFn) -> RecordBatch:
    data = draw(st.lists(record_data, min_size=1, max_size=20))
    found = draw(st.just([]) | st.lists(keys, min_size=len(data), max_size=len(data)))
    # Keys that nobody has are none, however that is said.
    return RecordBatch(data, found if any(found) else ())


batches = batches_of()
deliveries = st.lists(
    st.builds(
        QueuedRecord,
        id=numbers,
        attempt=attempts,
        priority=st.integers(-1000, 1000),
        data=record_data,
        key=keys,
    ),
    min_size=1,
    max_size=20,
).map(lambda records: r.Deliveries(tuple(records)))
settlements = st.builds(
    Settlement,
    id=numbers,
    attempt=attempts,
    verdict=st.sampled_from(Verdict),
    seconds=st.just(0.0) | times,
    reason=texts,
)
record_limits = st.builds(
    RecordLimits, record_bytes=offsets, bulk_records=offsets, bulk_bytes=offsets, bulk_idle=times, window=offsets
)
results = st.builds(
    BulkResult,
    id=ids,
    collection=names,
    records=offsets,
    size=offsets,
    digest=digests,
    committed_at=times,
    repeated=st.booleans(),
)
arguments = st.dictionaries(
    texts,
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    max_size=4,
)

bulk_openings = st.builds(
    r.OpenBulk,
    collection=names,
    content_type=st.none() | texts,
    idempotency_key=st.none() | texts,
    reporting=st.sampled_from(Reporting),
    priority=st.integers(-(2**31), 2**31 - 1),
)
bulk_messages = bulk_openings | batches | st.builds(r.CommitBulk, offsets, digests)
messages_to_bulk = (
    st.builds(r.BulkOpened, id=ids, content_type=texts, limits=record_limits, until=offsets, result=st.none() | results)
    | windows
    | st.builds(r.BulkCommitted, results)
)
queries = st.builds(r.Query, source=names, arguments=arguments, window=offsets)
messages_to_query = st.builds(r.QueryStarted, texts) | batches | st.builds(r.QueryEnd, offsets, digests)
works = st.builds(r.Work, queue=names, records=offsets, bytes=offsets)
work_messages = (
    works
    | st.builds(r.Credit, sequence=offsets, records=offsets, bytes=offsets)
    | st.builds(r.Settle, st.lists(settlements, min_size=1, max_size=5).map(tuple))
    | st.builds(r.Leave)
)
messages_to_consumer = (
    st.builds(r.WorkOpened, consumer=ids, content_type=texts, lease=times)
    | deliveries
    | st.builds(r.Settled, st.lists(st.booleans(), max_size=5).map(tuple), texts)
    | st.builds(r.CreditSet, offsets, offsets, st.booleans())
    | st.builds(r.Left)
)
queue_requests = st.builds(r.GetQueue, queue=names)
queue_figures = st.builds(
    QueueFigures,
    queue=names,
    ready=offsets,
    delayed=offsets,
    in_flight=offsets,
    dead=offsets,
    consumers=offsets,
    stalled=offsets,
)
