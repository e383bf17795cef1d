from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResourceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []
    RESOURCE_STATE_UNSPECIFIED: _ClassVar[ResourceState]
    RESOURCE_STATE_INITIATED: _ClassVar[ResourceState]
    RESOURCE_STATE_IN_PROGRESS: _ClassVar[ResourceState]
    RESOURCE_STATE_COMPLETED: _ClassVar[ResourceState]
    RESOURCE_STATE_FAILED: _ClassVar[ResourceState]

class Visibility(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []
    VISIBILITY_UNSPECIFIED: _ClassVar[Visibility]
    VISIBILITY_LIVE: _ClassVar[Visibility]
    VISIBILITY_ATOMIC: _ClassVar[Visibility]

class ContextState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []
    CONTEXT_STATE_UNSPECIFIED: _ClassVar[ContextState]
    CONTEXT_STATE_OPEN: _ClassVar[ContextState]
    CONTEXT_STATE_CLOSED: _ClassVar[ContextState]

class ContextEventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []
    CONTEXT_EVENT_KIND_UNSPECIFIED: _ClassVar[ContextEventKind]
    CONTEXT_EVENT_KIND_CREATED: _ClassVar[ContextEventKind]
    CONTEXT_EVENT_KIND_STATUS_CHANGED: _ClassVar[ContextEventKind]
    CONTEXT_EVENT_KIND_REFUSED: _ClassVar[ContextEventKind]
    CONTEXT_EVENT_KIND_DELETED: _ClassVar[ContextEventKind]
    CONTEXT_EVENT_KIND_CLOSED: _ClassVar[ContextEventKind]

class Reporting(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []
    REPORTING_UNSPECIFIED: _ClassVar[Reporting]
    REPORTING_FIRST: _ClassVar[Reporting]
    REPORTING_ALL: _ClassVar[Reporting]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_ACKNOWLEDGE: _ClassVar[Verdict]
    VERDICT_REQUEUE: _ClassVar[Verdict]
    VERDICT_DEAD_LETTER: _ClassVar[Verdict]
    VERDICT_EXTEND: _ClassVar[Verdict]
RESOURCE_STATE_UNSPECIFIED: ResourceState
RESOURCE_STATE_INITIATED: ResourceState
RESOURCE_STATE_IN_PROGRESS: ResourceState
RESOURCE_STATE_COMPLETED: ResourceState
RESOURCE_STATE_FAILED: ResourceState
VISIBILITY_UNSPECIFIED: Visibility
VISIBILITY_LIVE: Visibility
VISIBILITY_ATOMIC: Visibility
CONTEXT_STATE_UNSPECIFIED: ContextState
CONTEXT_STATE_OPEN: ContextState
CONTEXT_STATE_CLOSED: ContextState
CONTEXT_EVENT_KIND_UNSPECIFIED: ContextEventKind
CONTEXT_EVENT_KIND_CREATED: ContextEventKind
CONTEXT_EVENT_KIND_STATUS_CHANGED: ContextEventKind
CONTEXT_EVENT_KIND_REFUSED: ContextEventKind
CONTEXT_EVENT_KIND_DELETED: ContextEventKind
CONTEXT_EVENT_KIND_CLOSED: ContextEventKind
REPORTING_UNSPECIFIED: Reporting
REPORTING_FIRST: Reporting
REPORTING_ALL: Reporting
VERDICT_UNSPECIFIED: Verdict
VERDICT_ACKNOWLEDGE: Verdict
VERDICT_REQUEUE: Verdict
VERDICT_DEAD_LETTER: Verdict
VERDICT_EXTEND: Verdict

class UploadRequest(_message.Message):
    __slots__ = ["open", "reopen", "chunk", "finish", "abort"]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    REOPEN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    open: OpenUpload
    reopen: ReopenUpload
    chunk: Chunk
    finish: Finish
    abort: Abort
    def __init__(self, open: _Optional[_Union[OpenUpload, _Mapping]] = ..., reopen: _Optional[_Union[ReopenUpload, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ...) -> None: ...

class UploadResponse(_message.Message):
    __slots__ = ["opened", "checkpoint", "window", "finished"]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    checkpoint: Checkpoint
    window: Window
    finished: Finished
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., window: _Optional[_Union[Window, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class OpenUpload(_message.Message):
    __slots__ = ["metadata", "visibility", "length", "sha256", "idempotency_key"]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    metadata: Metadata
    visibility: Visibility
    length: int
    sha256: bytes
    idempotency_key: str
    def __init__(self, metadata: _Optional[_Union[Metadata, _Mapping]] = ..., visibility: _Optional[_Union[Visibility, str]] = ..., length: _Optional[int] = ..., sha256: _Optional[bytes] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class ReopenUpload(_message.Message):
    __slots__ = ["id", "token"]
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    id: str
    token: str
    def __init__(self, id: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ["status", "token", "epoch", "offset", "newlines", "head", "until", "limits"]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    NEWLINES_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    status: Status
    token: str
    epoch: int
    offset: int
    newlines: int
    head: bytes
    until: int
    limits: Limits
    def __init__(self, status: _Optional[_Union[Status, _Mapping]] = ..., token: _Optional[str] = ..., epoch: _Optional[int] = ..., offset: _Optional[int] = ..., newlines: _Optional[int] = ..., head: _Optional[bytes] = ..., until: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ["offset", "hash", "previous", "checkpoint", "data"]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    hash: bytes
    previous: bytes
    checkpoint: Checkpoint
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., hash: _Optional[bytes] = ..., previous: _Optional[bytes] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ["until"]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    until: int
    def __init__(self, until: _Optional[int] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ["size", "newlines", "head"]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    NEWLINES_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    size: int
    newlines: int
    head: bytes
    def __init__(self, size: _Optional[int] = ..., newlines: _Optional[int] = ..., head: _Optional[bytes] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ["size", "head"]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    size: int
    head: bytes
    def __init__(self, size: _Optional[int] = ..., head: _Optional[bytes] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ["reason"]
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ["status"]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: Status
    def __init__(self, status: _Optional[_Union[Status, _Mapping]] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ["open", "window"]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    open: OpenRead
    window: Window
    def __init__(self, open: _Optional[_Union[OpenRead, _Mapping]] = ..., window: _Optional[_Union[Window, _Mapping]] = ...) -> None: ...

class OpenRead(_message.Message):
    __slots__ = ["id", "token", "start", "end", "suffix", "window", "chunk_size"]
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    id: str
    token: str
    start: int
    end: int
    suffix: int
    window: int
    chunk_size: int
    def __init__(self, id: _Optional[str] = ..., token: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., suffix: _Optional[int] = ..., window: _Optional[int] = ..., chunk_size: _Optional[int] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ["open", "window"]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    open: OpenFollow
    window: Window
    def __init__(self, open: _Optional[_Union[OpenFollow, _Mapping]] = ..., window: _Optional[_Union[Window, _Mapping]] = ...) -> None: ...

class OpenFollow(_message.Message):
    __slots__ = ["id", "token", "offset", "last_bytes", "last_lines", "window", "chunk_size"]
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LAST_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAST_LINES_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    id: str
    token: str
    offset: int
    last_bytes: int
    last_lines: int
    window: int
    chunk_size: int
    def __init__(self, id: _Optional[str] = ..., token: _Optional[str] = ..., offset: _Optional[int] = ..., last_bytes: _Optional[int] = ..., last_lines: _Optional[int] = ..., window: _Optional[int] = ..., chunk_size: _Optional[int] = ...) -> None: ...

class ReadLinesRequest(_message.Message):
    __slots__ = ["open", "window"]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    open: OpenReadLines
    window: Window
    def __init__(self, open: _Optional[_Union[OpenReadLines, _Mapping]] = ..., window: _Optional[_Union[Window, _Mapping]] = ...) -> None: ...

class OpenReadLines(_message.Message):
    __slots__ = ["id", "token", "first", "count", "last", "window", "chunk_size"]
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    id: str
    token: str
    first: int
    count: int
    last: int
    window: int
    chunk_size: int
    def __init__(self, id: _Optional[str] = ..., token: _Optional[str] = ..., first: _Optional[int] = ..., count: _Optional[int] = ..., last: _Optional[int] = ..., window: _Optional[int] = ..., chunk_size: _Optional[int] = ...) -> None: ...

class DownloadResponse(_message.Message):
    __slots__ = ["started", "end", "chunk"]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    started: Started
    end: End
    chunk: Chunk
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ["offset", "end", "line", "status", "limits"]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    offset: int
    end: int
    line: int
    status: Status
    limits: Limits
    def __init__(self, offset: _Optional[int] = ..., end: _Optional[int] = ..., line: _Optional[int] = ..., status: _Optional[_Union[Status, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ["offset", "previous", "status"]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    offset: int
    previous: bytes
    status: Status
    def __init__(self, offset: _Optional[int] = ..., previous: _Optional[bytes] = ..., status: _Optional[_Union[Status, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ["id", "token"]
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    id: str
    token: str
    def __init__(self, id: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ["id", "token"]
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    id: str
    token: str
    def __init__(self, id: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class HeadsRequest(_message.Message):
    __slots__ = ["id", "token", "sizes"]
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    id: str
    token: str
    sizes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, id: _Optional[str] = ..., token: _Optional[str] = ..., sizes: _Optional[_Iterable[int]] = ...) -> None: ...

class HeadsResponse(_message.Message):
    __slots__ = ["heads"]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, heads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class LocateRequest(_message.Message):
    __slots__ = ["id", "token", "line", "offset"]
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    id: str
    token: str
    line: int
    offset: int
    def __init__(self, id: _Optional[str] = ..., token: _Optional[str] = ..., line: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class LocateResponse(_message.Message):
    __slots__ = ["line", "offset"]
    LINE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    line: int
    offset: int
    def __init__(self, line: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ["labels", "context", "state", "created_from", "created_before", "limit", "page_token"]
    class LabelsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATED_FROM_FIELD_NUMBER: _ClassVar[int]
    CREATED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.ScalarMap[str, str]
    context: str
    state: ResourceState
    created_from: float
    created_before: float
    limit: int
    page_token: str
    def __init__(self, labels: _Optional[_Mapping[str, str]] = ..., context: _Optional[str] = ..., state: _Optional[_Union[ResourceState, str]] = ..., created_from: _Optional[float] = ..., created_before: _Optional[float] = ..., limit: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ["statuses", "next_page_token"]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    statuses: _containers.RepeatedCompositeFieldContainer[Status]
    next_page_token: str
    def __init__(self, statuses: _Optional[_Iterable[_Union[Status, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ["id", "token"]
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    id: str
    token: str
    def __init__(self, id: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class CreateContextRequest(_message.Message):
    __slots__ = ["attributes"]
    class AttributesEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    attributes: _containers.ScalarMap[str, str]
    def __init__(self, attributes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class GetContextRequest(_message.Message):
    __slots__ = ["id"]
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class CloseContextRequest(_message.Message):
    __slots__ = ["id"]
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class WatchContextRequest(_message.Message):
    __slots__ = ["id", "after"]
    ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    id: str
    after: int
    def __init__(self, id: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class Context(_message.Message):
    __slots__ = ["id", "attributes", "state", "created_at", "closed_at", "resources", "bytes", "last_event"]
    class AttributesEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    CLOSED_AT_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_FIELD_NUMBER: _ClassVar[int]
    id: str
    attributes: _containers.ScalarMap[str, str]
    state: ContextState
    created_at: float
    closed_at: float
    resources: int
    bytes: int
    last_event: int
    def __init__(self, id: _Optional[str] = ..., attributes: _Optional[_Mapping[str, str]] = ..., state: _Optional[_Union[ContextState, str]] = ..., created_at: _Optional[float] = ..., closed_at: _Optional[float] = ..., resources: _Optional[int] = ..., bytes: _Optional[int] = ..., last_event: _Optional[int] = ...) -> None: ...

class ContextEvent(_message.Message):
    __slots__ = ["sequence", "at", "kind", "id", "state", "size", "code", "message"]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    at: float
    kind: ContextEventKind
    id: str
    state: ResourceState
    size: int
    code: str
    message: str
    def __init__(self, sequence: _Optional[int] = ..., at: _Optional[float] = ..., kind: _Optional[_Union[ContextEventKind, str]] = ..., id: _Optional[str] = ..., state: _Optional[_Union[ResourceState, str]] = ..., size: _Optional[int] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class RecordBatch(_message.Message):
    __slots__ = ["data", "keys"]
    DATA_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    data: _containers.RepeatedScalarFieldContainer[bytes]
    keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, data: _Optional[_Iterable[bytes]] = ..., keys: _Optional[_Iterable[str]] = ...) -> None: ...

class BulkRequest(_message.Message):
    __slots__ = ["open", "records", "commit"]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    open: OpenBulk
    records: RecordBatch
    commit: CommitBulk
    def __init__(self, open: _Optional[_Union[OpenBulk, _Mapping]] = ..., records: _Optional[_Union[RecordBatch, _Mapping]] = ..., commit: _Optional[_Union[CommitBulk, _Mapping]] = ...) -> None: ...

class BulkResponse(_message.Message):
    __slots__ = ["opened", "window", "committed"]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    opened: BulkOpened
    window: Window
    committed: BulkCommitted
    def __init__(self, opened: _Optional[_Union[BulkOpened, _Mapping]] = ..., window: _Optional[_Union[Window, _Mapping]] = ..., committed: _Optional[_Union[BulkCommitted, _Mapping]] = ...) -> None: ...

class OpenBulk(_message.Message):
    __slots__ = ["collection", "content_type", "idempotency_key", "reporting", "priority"]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    REPORTING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    collection: str
    content_type: str
    idempotency_key: str
    reporting: Reporting
    priority: int
    def __init__(self, collection: _Optional[str] = ..., content_type: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., reporting: _Optional[_Union[Reporting, str]] = ..., priority: _Optional[int] = ...) -> None: ...

class BulkOpened(_message.Message):
    __slots__ = ["id", "content_type", "limits", "until", "result"]
    ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    id: str
    content_type: str
    limits: RecordLimits
    until: int
    result: BulkResult
    def __init__(self, id: _Optional[str] = ..., content_type: _Optional[str] = ..., limits: _Optional[_Union[RecordLimits, _Mapping]] = ..., until: _Optional[int] = ..., result: _Optional[_Union[BulkResult, _Mapping]] = ...) -> None: ...

class CommitBulk(_message.Message):
    __slots__ = ["records", "digest"]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    records: int
    digest: bytes
    def __init__(self, records: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class BulkCommitted(_message.Message):
    __slots__ = ["result"]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: BulkResult
    def __init__(self, result: _Optional[_Union[BulkResult, _Mapping]] = ...) -> None: ...

class BulkResult(_message.Message):
    __slots__ = ["id", "collection", "records", "size", "digest", "committed_at", "repeated"]
    ID_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    id: str
    collection: str
    records: int
    size: int
    digest: bytes
    committed_at: float
    repeated: bool
    def __init__(self, id: _Optional[str] = ..., collection: _Optional[str] = ..., records: _Optional[int] = ..., size: _Optional[int] = ..., digest: _Optional[bytes] = ..., committed_at: _Optional[float] = ..., repeated: bool = ...) -> None: ...

class RecordLimits(_message.Message):
    __slots__ = ["record_bytes", "bulk_records", "bulk_bytes", "bulk_idle", "window"]
    RECORD_BYTES_FIELD_NUMBER: _ClassVar[int]
    BULK_RECORDS_FIELD_NUMBER: _ClassVar[int]
    BULK_BYTES_FIELD_NUMBER: _ClassVar[int]
    BULK_IDLE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    record_bytes: int
    bulk_records: int
    bulk_bytes: int
    bulk_idle: float
    window: int
    def __init__(self, record_bytes: _Optional[int] = ..., bulk_records: _Optional[int] = ..., bulk_bytes: _Optional[int] = ..., bulk_idle: _Optional[float] = ..., window: _Optional[int] = ...) -> None: ...

class QueryRequest(_message.Message):
    __slots__ = ["open", "window"]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    open: OpenQuery
    window: Window
    def __init__(self, open: _Optional[_Union[OpenQuery, _Mapping]] = ..., window: _Optional[_Union[Window, _Mapping]] = ...) -> None: ...

class OpenQuery(_message.Message):
    __slots__ = ["source", "arguments", "window"]
    class ArgumentsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    source: str
    arguments: _containers.MessageMap[str, Value]
    window: int
    def __init__(self, source: _Optional[str] = ..., arguments: _Optional[_Mapping[str, Value]] = ..., window: _Optional[int] = ...) -> None: ...

class QueryResponse(_message.Message):
    __slots__ = ["started", "records", "end"]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    started: QueryStarted
    records: RecordBatch
    end: QueryEnd
    def __init__(self, started: _Optional[_Union[QueryStarted, _Mapping]] = ..., records: _Optional[_Union[RecordBatch, _Mapping]] = ..., end: _Optional[_Union[QueryEnd, _Mapping]] = ...) -> None: ...

class QueryStarted(_message.Message):
    __slots__ = ["content_type"]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    content_type: str
    def __init__(self, content_type: _Optional[str] = ...) -> None: ...

class QueryEnd(_message.Message):
    __slots__ = ["records", "digest"]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    records: int
    digest: bytes
    def __init__(self, records: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class WorkRequest(_message.Message):
    __slots__ = ["open", "credit", "settle", "leave"]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    SETTLE_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    open: OpenWork
    credit: Credit
    settle: Settle
    leave: Leave
    def __init__(self, open: _Optional[_Union[OpenWork, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., settle: _Optional[_Union[Settle, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ...) -> None: ...

class WorkResponse(_message.Message):
    __slots__ = ["opened", "deliveries", "settled", "credit_set", "left"]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    DELIVERIES_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    CREDIT_SET_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    opened: WorkOpened
    deliveries: Deliveries
    settled: Settled
    credit_set: CreditSet
    left: Left
    def __init__(self, opened: _Optional[_Union[WorkOpened, _Mapping]] = ..., deliveries: _Optional[_Union[Deliveries, _Mapping]] = ..., settled: _Optional[_Union[Settled, _Mapping]] = ..., credit_set: _Optional[_Union[CreditSet, _Mapping]] = ..., left: _Optional[_Union[Left, _Mapping]] = ...) -> None: ...

class OpenWork(_message.Message):
    __slots__ = ["queue", "records", "bytes"]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    queue: str
    records: int
    bytes: int
    def __init__(self, queue: _Optional[str] = ..., records: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class WorkOpened(_message.Message):
    __slots__ = ["consumer", "content_type", "lease"]
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    consumer: str
    content_type: str
    lease: float
    def __init__(self, consumer: _Optional[str] = ..., content_type: _Optional[str] = ..., lease: _Optional[float] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ["sequence", "records", "bytes"]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    records: int
    bytes: int
    def __init__(self, sequence: _Optional[int] = ..., records: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class CreditSet(_message.Message):
    __slots__ = ["sequence", "outstanding", "stalled"]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_FIELD_NUMBER: _ClassVar[int]
    STALLED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    outstanding: int
    stalled: bool
    def __init__(self, sequence: _Optional[int] = ..., outstanding: _Optional[int] = ..., stalled: bool = ...) -> None: ...

class Deliveries(_message.Message):
    __slots__ = ["ids", "attempts", "priorities", "data", "keys"]
    IDS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    PRIORITIES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    attempts: _containers.RepeatedScalarFieldContainer[int]
    priorities: _containers.RepeatedScalarFieldContainer[int]
    data: _containers.RepeatedScalarFieldContainer[bytes]
    keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[int]] = ..., attempts: _Optional[_Iterable[int]] = ..., priorities: _Optional[_Iterable[int]] = ..., data: _Optional[_Iterable[bytes]] = ..., keys: _Optional[_Iterable[str]] = ...) -> None: ...

class Settle(_message.Message):
    __slots__ = ["settlements"]
    SETTLEMENTS_FIELD_NUMBER: _ClassVar[int]
    settlements: _containers.RepeatedCompositeFieldContainer[Settlement]
    def __init__(self, settlements: _Optional[_Iterable[_Union[Settlement, _Mapping]]] = ...) -> None: ...

class Settlement(_message.Message):
    __slots__ = ["id", "attempt", "verdict", "seconds", "reason"]
    ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: int
    attempt: int
    verdict: Verdict
    seconds: float
    reason: str
    def __init__(self, id: _Optional[int] = ..., attempt: _Optional[int] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., seconds: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class Settled(_message.Message):
    __slots__ = ["counted", "failed"]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    counted: _containers.RepeatedScalarFieldContainer[bool]
    failed: str
    def __init__(self, counted: _Optional[_Iterable[bool]] = ..., failed: _Optional[str] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class Left(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class GetQueueRequest(_message.Message):
    __slots__ = ["queue"]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    queue: str
    def __init__(self, queue: _Optional[str] = ...) -> None: ...

class QueueFigures(_message.Message):
    __slots__ = ["queue", "ready", "delayed", "in_flight", "dead", "consumers", "stalled"]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    DELAYED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    CONSUMERS_FIELD_NUMBER: _ClassVar[int]
    STALLED_FIELD_NUMBER: _ClassVar[int]
    queue: str
    ready: int
    delayed: int
    in_flight: int
    dead: int
    consumers: int
    stalled: int
    def __init__(self, queue: _Optional[str] = ..., ready: _Optional[int] = ..., delayed: _Optional[int] = ..., in_flight: _Optional[int] = ..., dead: _Optional[int] = ..., consumers: _Optional[int] = ..., stalled: _Optional[int] = ...) -> None: ...

class Metadata(_message.Message):
    __slots__ = ["name", "content_type", "lines", "labels", "context"]
    class LabelsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    content_type: str
    lines: bool
    labels: _containers.ScalarMap[str, str]
    context: str
    def __init__(self, name: _Optional[str] = ..., content_type: _Optional[str] = ..., lines: bool = ..., labels: _Optional[_Mapping[str, str]] = ..., context: _Optional[str] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ["reference", "id", "version", "state", "size", "lines", "head", "reason", "alternatives", "metadata", "visibility", "created_at"]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    reference: str
    id: str
    version: int
    state: ResourceState
    size: int
    lines: int
    head: bytes
    reason: str
    alternatives: _containers.RepeatedScalarFieldContainer[str]
    metadata: Metadata
    visibility: Visibility
    created_at: float
    def __init__(self, reference: _Optional[str] = ..., id: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[_Union[ResourceState, str]] = ..., size: _Optional[int] = ..., lines: _Optional[int] = ..., head: _Optional[bytes] = ..., reason: _Optional[str] = ..., alternatives: _Optional[_Iterable[str]] = ..., metadata: _Optional[_Union[Metadata, _Mapping]] = ..., visibility: _Optional[_Union[Visibility, str]] = ..., created_at: _Optional[float] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ["chunk_size", "upload_window", "upload_grace", "max_download_window", "max_resource_size", "max_page_size", "max_heads", "max_context_bytes", "max_context_resources", "max_storage_bytes", "max_uploads", "max_contexts", "max_requests", "context_required"]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_WINDOW_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_GRACE_FIELD_NUMBER: _ClassVar[int]
    MAX_DOWNLOAD_WINDOW_FIELD_NUMBER: _ClassVar[int]
    MAX_RESOURCE_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_HEADS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_RESOURCES_FIELD_NUMBER: _ClassVar[int]
    MAX_STORAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_UPLOADS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    chunk_size: int
    upload_window: int
    upload_grace: float
    max_download_window: int
    max_resource_size: int
    max_page_size: int
    max_heads: int
    max_context_bytes: int
    max_context_resources: int
    max_storage_bytes: int
    max_uploads: int
    max_contexts: int
    max_requests: int
    context_required: bool
    def __init__(self, chunk_size: _Optional[int] = ..., upload_window: _Optional[int] = ..., upload_grace: _Optional[float] = ..., max_download_window: _Optional[int] = ..., max_resource_size: _Optional[int] = ..., max_page_size: _Optional[int] = ..., max_heads: _Optional[int] = ..., max_context_bytes: _Optional[int] = ..., max_context_resources: _Optional[int] = ..., max_storage_bytes: _Optional[int] = ..., max_uploads: _Optional[int] = ..., max_contexts: _Optional[int] = ..., max_requests: _Optional[int] = ..., context_required: bool = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ["code", "message", "details"]
    class DetailsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    details: _containers.MessageMap[str, Value]
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., details: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ["string_value", "int_value", "double_value", "bool_value"]
    STRING_VALUE_FIELD_NUMBER: _ClassVar[int]
    INT_VALUE_FIELD_NUMBER: _ClassVar[int]
    DOUBLE_VALUE_FIELD_NUMBER: _ClassVar[int]
    BOOL_VALUE_FIELD_NUMBER: _ClassVar[int]
    string_value: str
    int_value: int
    double_value: float
    bool_value: bool
    def __init__(self, string_value: _Optional[str] = ..., int_value: _Optional[int] = ..., double_value: _Optional[float] = ..., bool_value: bool = ...) -> None: ...
