"""Random messages of every kind, for tests of the codec."""

from __future__ import annotations

from hypothesis import strategies as st

from tailrace_common_api import (
    MAX_KEY_SIZE,
    MAX_OFFSET,
    BulkResult,
    Checkpoint,
    ContextEventKind,
    ContextState,
    FromOffset,
    LastBytes,
    LastLines,
    Limits,
    ListFilter,
    Metadata,
    Page,
    Position,
    QueuedRecord,
    QueueFigures,
    RecordBatch,
    RecordLimits,
    Reporting,
    ResourceState,
    Settlement,
    Status,
    Verdict,
    Visibility,
)
from tailrace_impl_common import messages as m
from tailrace_impl_common import record_messages as r

offsets = st.integers(0, MAX_OFFSET)
amounts = st.integers(1, MAX_OFFSET)
places = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=40)
ids = st.text("0123456789abcdefghijklmnopqrstuv", min_size=32, max_size=32)
tokens = st.none() | texts
hashes = st.binary(min_size=8, max_size=8)
heads = st.binary(min_size=16, max_size=16)
times = st.floats(0, 1e11)

checkpoints = st.builds(Checkpoint, offsets, offsets, heads)
metadata = st.builds(
    Metadata,
    name=names,
    content_type=st.sampled_from(["text/plain", "application/octet-stream", 'text/x; charset="utf-8"']),
    lines=st.booleans(),
    labels=st.dictionaries(names, names, max_size=3),
    context=st.none() | names,
)
statuses = st.builds(
    Status,
    reference=texts,
    id=ids,
    version=offsets,
    state=st.sampled_from(ResourceState),
    size=offsets,
    lines=st.none() | offsets,
    head=heads,
    reason=st.none() | texts,
    alternatives=st.lists(texts, max_size=3).map(tuple),
    metadata=metadata,
    visibility=st.sampled_from(Visibility),
    created_at=times,
)
limits = st.builds(
    Limits,
    chunk_size=amounts,
    upload_window=amounts,
    upload_grace=times,
    max_download_window=amounts,
    max_resource_size=offsets,
    max_page_size=amounts,
    max_heads=amounts,
    max_context_bytes=offsets,
    max_context_resources=offsets,
    max_storage_bytes=offsets,
    max_uploads=offsets,
    max_contexts=offsets,
    max_requests=amounts,
    context_required=st.booleans(),
)


@st.composite
def chunks_with(draw: st.DrawFn, *, checkpoint: st.SearchStrategy[bool]) -> m.Chunk:
    data = draw(st.binary(min_size=1, max_size=300) | st.binary(min_size=17000, max_size=17000))
    offset = draw(st.integers(0, MAX_OFFSET - len(data) - 100))
    announced = Checkpoint(offset + len(data), draw(offsets), draw(heads)) if draw(checkpoint) else None
    # No real hash is eight zero bytes of a first chunk: those stand for "none" on the wire.
    return m.Chunk(offset, data, draw(hashes), draw(st.just(b"") | hashes), announced)


chunks = chunks_with(checkpoint=st.booleans())
windows = st.builds(m.Window, offsets)

uploader_messages = (
    st.builds(
        m.OpenUpload,
        metadata=metadata,
        visibility=st.sampled_from(Visibility),
        length=st.none() | offsets,
        sha256=st.none() | st.binary(min_size=32, max_size=32),
        idempotency_key=st.none() | texts,
    )
    | st.builds(m.ReopenUpload, id=ids, token=texts)
    | st.builds(m.Finish, offsets, heads)
    | st.builds(m.Abort, texts)
)
messages_to_uploader = (
    st.builds(
        m.Opened,
        status=statuses,
        token=texts,
        epoch=offsets,
        offset=offsets,
        newlines=offsets,
        head=heads,
        until=offsets,
        limits=limits,
    )
    | checkpoints
    | windows
    | st.builds(m.Finished, st.none() | statuses)
)
reads = st.builds(
    m.Read,
    id=ids,
    token=tokens,
    start=places,
    end=st.none() | places,
    suffix=st.none() | places,
    window=offsets,
)
follows = st.builds(
    m.Follow,
    id=ids,
    token=tokens,
    start=st.builds(FromOffset, places) | st.builds(LastBytes, places) | st.builds(LastLines, places),
    window=offsets,
)
line_reads = st.builds(
    m.ReadLines,
    id=ids,
    token=tokens,
    first=places,
    count=st.none() | places,
    last=st.none() | places,
    window=offsets,
)
messages_to_reader = st.builds(
    m.Started,
    offset=offsets,
    end=st.none() | offsets,
    line=st.none() | offsets,
    status=statuses,
    limits=limits,
) | st.builds(m.End, offset=offsets, previous=st.just(b"") | hashes, status=statuses)
locates = st.builds(m.Locate, id=ids, token=tokens, line=places) | st.builds(
    m.Locate, id=ids, token=tokens, offset=places
)
filters = st.builds(
    ListFilter,
    labels=st.dictionaries(names, names, max_size=3),
    context=st.none() | names,
    state=st.none() | st.sampled_from(ResourceState),
    created_from=st.none() | times,
    created_before=st.none() | times,
)

watches = st.builds(m.Watch, id=ids, token=tokens)
status_requests = st.builds(m.GetStatus, id=ids, token=tokens)
head_requests = st.builds(m.GetHeads, id=ids, token=tokens, sizes=st.lists(places, max_size=5).map(tuple))
head_answers = st.builds(m.Heads, st.lists(heads, max_size=5).map(tuple))
located = st.builds(m.Located, st.builds(Position, offsets, offsets))
lists = st.builds(m.List, filter=filters, limit=places, page_token=tokens)
listed = st.builds(m.Listed, st.builds(Page, st.lists(statuses, max_size=3).map(tuple), tokens))
deletes = st.builds(m.Delete, id=ids, token=tokens)

context_creations = st.builds(m.CreateContext, attributes=st.dictionaries(names, names, max_size=3))
context_requests = st.builds(m.GetContext, id=ids)
context_closings = st.builds(m.CloseContext, id=ids)
context_watches = st.builds(m.WatchContext, id=ids, after=offsets)
contexts = st.builds(
    m.Context,
    id=ids,
    attributes=st.dictionaries(names, names, max_size=3),
    state=st.sampled_from(ContextState),
    created_at=times,
    closed_at=st.none() | times,
    resources=offsets,
    bytes=offsets,
    last_event=offsets,
)
context_events = st.builds(
    m.ContextEvent,
    sequence=st.integers(1, MAX_OFFSET),
    at=times,
    kind=st.sampled_from(ContextEventKind),
    id=st.none() | ids,
    state=st.none() | st.sampled_from(ResourceState),
    size=st.none() | offsets,
    code=st.none() | texts,
    message=st.none() | texts,
)

digests = heads
record_data = st.binary(max_size=40) | st.binary(min_size=70000, max_size=70000)
keys = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=MAX_KEY_SIZE // 4)


@st.composite
def batches_of(draw: st.DrawFn) -> RecordBatch:
    data = draw(st.lists(record_data, min_size=1, max_size=50))
    found = draw(st.just([]) | st.lists(keys, min_size=len(data), max_size=len(data)))
    # Keys that nobody has are none, however that is said.
    return RecordBatch(data, found if any(found) else ())


batches = batches_of()
deliveries = st.lists(
    st.builds(
        QueuedRecord,
        id=offsets,
        attempt=st.integers(1, 2**32 - 1),
        priority=st.integers(-1000, 1000),
        data=record_data,
        key=keys,
    ),
    min_size=1,
    max_size=50,
).map(lambda records: r.Deliveries(tuple(records)))
settlements = st.builds(
    Settlement,
    id=offsets,
    attempt=st.integers(1, 2**32 - 1),
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
    texts, st.none() | st.booleans() | places | st.floats(allow_nan=False, allow_infinity=False) | texts, max_size=4
)

bulk_openings = st.builds(
    r.OpenBulk,
    collection=names,
    content_type=st.none() | texts,
    idempotency_key=st.none() | texts,
    reporting=st.sampled_from(Reporting),
    priority=places,
)
bulk_commits = st.builds(r.CommitBulk, offsets, digests)
queries = st.builds(r.Query, source=names, arguments=arguments, window=offsets)
works = st.builds(r.Work, queue=names, records=offsets, bytes=offsets)
credits_ = st.builds(r.Credit, sequence=offsets, records=offsets, bytes=offsets)
settles = st.builds(r.Settle, st.lists(settlements, min_size=1, max_size=5).map(tuple))
queue_requests = st.builds(r.GetQueue, queue=names)
record_requests = (
    bulk_openings | bulk_commits | queries | works | credits_ | settles | st.builds(r.Leave) | queue_requests
)

bulks_opened = st.builds(
    r.BulkOpened, id=ids, content_type=texts, limits=record_limits, until=offsets, result=st.none() | results
)
figures = st.builds(
    QueueFigures,
    queue=names,
    ready=offsets,
    delayed=offsets,
    in_flight=offsets,
    dead=offsets,
    consumers=offsets,
    stalled=offsets,
)
record_answers = (
    bulks_opened
    | st.builds(r.BulkCommitted, results)
    | st.builds(r.QueryStarted, texts)
    | st.builds(r.QueryEnd, offsets, digests)
    | st.builds(r.WorkOpened, consumer=ids, content_type=texts, lease=times)
    | st.builds(r.CreditSet, offsets, offsets, st.booleans())
    | st.builds(r.Settled, st.lists(st.booleans(), max_size=5).map(tuple), texts)
    | st.builds(r.Left)
    | figures
)

client_messages = (
    uploader_messages
    | reads
    | follows
    | line_reads
    | windows
    | watches
    | status_requests
    | head_requests
    | locates
    | lists
    | deletes
    | context_creations
    | context_requests
    | context_closings
    | context_watches
    | record_requests
)
server_messages = (
    messages_to_uploader
    | messages_to_reader
    | st.builds(m.Watched)
    | statuses
    | head_answers
    | located
    | listed
    | st.builds(m.Done)
    | contexts
    | context_events
    | record_answers
)
