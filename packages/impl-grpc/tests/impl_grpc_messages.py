"""Random messages of every kind, for tests of the codec."""

from __future__ import annotations

from hypothesis import strategies as st

from tailrace_common_api import (
    MAX_OFFSET,
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
    ResourceState,
    Status,
    Visibility,
)
from tailrace_impl_common import messages as m

offsets = st.integers(0, MAX_OFFSET)
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
    chunk_size=offsets,
    upload_window=offsets,
    upload_grace=times,
    max_download_window=offsets,
    max_resource_size=offsets,
    max_page_size=offsets,
    max_heads=offsets,
    max_context_bytes=offsets,
    max_context_resources=offsets,
    max_storage_bytes=offsets,
    max_uploads=offsets,
    max_contexts=offsets,
    max_requests=offsets,
    context_required=st.booleans(),
)

chunks = st.builds(
    m.Chunk,
    offsets,
    st.binary(min_size=1, max_size=300) | st.binary(min_size=17000, max_size=17000),
    hashes,
    st.just(b"") | hashes,
    st.none() | checkpoints,
)
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
    | chunks
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
started = st.builds(
    m.Started,
    offset=offsets,
    end=st.none() | offsets,
    line=st.none() | offsets,
    status=statuses,
    limits=limits,
)
ends = st.builds(m.End, offset=offsets, previous=st.just(b"") | hashes, status=statuses)
messages_to_reader = started | chunks | ends
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
