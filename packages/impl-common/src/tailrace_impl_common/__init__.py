"""Everything about the protocol that does not depend on a transport."""

from tailrace_impl_common._blocks import BLOCK_SIZE, HASH_SIZE, block_digest, chunk_hash
from tailrace_impl_common._buffers import Buffer
from tailrace_impl_common._bulk_machine import BulkSender
from tailrace_impl_common._cancelling import cancel_and_wait, where_waits
from tailrace_impl_common._chain import ChainSender, ChainVerifier, verify_data
from tailrace_impl_common._clear_text import warn_of_clear_text
from tailrace_impl_common._client import ConnectedClient
from tailrace_impl_common._client_bulk import ConnectedBulk
from tailrace_impl_common._client_download import MAX_CHUNK_SIZE, ConnectedResource
from tailrace_impl_common._client_query import ConnectedQuery
from tailrace_impl_common._client_upload import ConnectedUpload
from tailrace_impl_common._client_work import ConnectedConsumer
from tailrace_impl_common._descriptor_writer import DescriptorWriter
from tailrace_impl_common._download_machine import DOWNLOAD_TRANSITIONS, DownloadReceiver, DownloadSender, DownloadState
from tailrace_impl_common._drop_oldest import DropOldestBytes
from tailrace_impl_common._endpoint import Endpoint
from tailrace_impl_common._failover import FailoverConnection
from tailrace_impl_common._growing_file import GrowingFile, RotationPolicy, SourceRestarted
from tailrace_impl_common._head import (
    EMPTY_HEAD,
    BlockDigest,
    HeadHasher,
    hash_file,
    head_of,
    head_of_file,
    make_head,
    next_spine,
)
from tailrace_impl_common._ids import IdGenerator
from tailrace_impl_common._inprocess import InProcessConnection
from tailrace_impl_common._keepalive import Keepalive
from tailrace_impl_common._lasting_upload import DEFAULT_SPOOL_BYTES, LastingUpload
from tailrace_impl_common._lines import (
    count_newlines,
    find_newline,
    last_lines,
    line_count,
    resolve_lines,
)
from tailrace_impl_common._listening import listen
from tailrace_impl_common._local_uploads import DirectoryClient, DiscardingClient
from tailrace_impl_common._message_chain import MessageChainReceiver, MessageChainSender
from tailrace_impl_common._options import check_option_names, flag_option, is_loopback
from tailrace_impl_common._process_exit import ProcessExit
from tailrace_impl_common._reconnecting import ServerLink
from tailrace_impl_common._record_digest import RecordDigest
from tailrace_impl_common._request_log import counted_refusals, current_caller, log_failure, set_caller
from tailrace_impl_common._retry import Reconnection, Retry, RetrySchedule, is_retried
from tailrace_impl_common._reusable_buffers import ReusableBuffers
from tailrace_impl_common._saving import save_resource
from tailrace_impl_common._serve import answer_request, serve_conversation
from tailrace_impl_common._shared_chunk import EncodedOnce
from tailrace_impl_common._signal import Signal
from tailrace_impl_common._sources import BlockingSource, Source, iter_source, read_pieces
from tailrace_impl_common._spool import Spool
from tailrace_impl_common._statuses import status_under
from tailrace_impl_common._streams import ClientStream, Connection, MessageStream, ServerStream
from tailrace_impl_common._tracing import current_trace, outgoing_trace, traced
from tailrace_impl_common._traffic import LOOKS_PER_TIMEOUT, Patience, Traffic
from tailrace_impl_common._transcode import Transcoder
from tailrace_impl_common._transports import sends_lists
from tailrace_impl_common._upload_machine import (
    UPLOAD_TRANSITIONS,
    Resumption,
    UploadReceiver,
    UploadSender,
    UploadState,
)
from tailrace_impl_common._upload_state import SavedUpload, UploadStateFile
from tailrace_impl_common._waiting_bytes import WaitingBytes
from tailrace_impl_common._window import ReceiveWindow, SendWindow

__all__ = [
    "BLOCK_SIZE",
    "DEFAULT_SPOOL_BYTES",
    "DOWNLOAD_TRANSITIONS",
    "EMPTY_HEAD",
    "HASH_SIZE",
    "LOOKS_PER_TIMEOUT",
    "MAX_CHUNK_SIZE",
    "UPLOAD_TRANSITIONS",
    "BlockDigest",
    "BlockingSource",
    "Buffer",
    "BulkSender",
    "ChainSender",
    "ChainVerifier",
    "ClientStream",
    "ConnectedBulk",
    "ConnectedClient",
    "ConnectedConsumer",
    "ConnectedQuery",
    "ConnectedResource",
    "ConnectedUpload",
    "Connection",
    "DescriptorWriter",
    "DirectoryClient",
    "DiscardingClient",
    "DownloadReceiver",
    "DownloadSender",
    "DownloadState",
    "DropOldestBytes",
    "EncodedOnce",
    "Endpoint",
    "FailoverConnection",
    "GrowingFile",
    "HeadHasher",
    "IdGenerator",
    "InProcessConnection",
    "Keepalive",
    "LastingUpload",
    "MessageChainReceiver",
    "MessageChainSender",
    "MessageStream",
    "Patience",
    "ProcessExit",
    "ReceiveWindow",
    "Reconnection",
    "RecordDigest",
    "Resumption",
    "Retry",
    "RetrySchedule",
    "ReusableBuffers",
    "RotationPolicy",
    "SavedUpload",
    "SendWindow",
    "ServerLink",
    "ServerStream",
    "Signal",
    "Source",
    "SourceRestarted",
    "Spool",
    "Traffic",
    "Transcoder",
    "UploadReceiver",
    "UploadSender",
    "UploadState",
    "UploadStateFile",
    "WaitingBytes",
    "answer_request",
    "block_digest",
    "cancel_and_wait",
    "check_option_names",
    "chunk_hash",
    "count_newlines",
    "counted_refusals",
    "current_caller",
    "current_trace",
    "find_newline",
    "flag_option",
    "hash_file",
    "head_of",
    "head_of_file",
    "is_loopback",
    "is_retried",
    "iter_source",
    "last_lines",
    "line_count",
    "listen",
    "log_failure",
    "make_head",
    "next_spine",
    "outgoing_trace",
    "read_pieces",
    "resolve_lines",
    "save_resource",
    "sends_lists",
    "serve_conversation",
    "set_caller",
    "status_under",
    "traced",
    "verify_data",
    "warn_of_clear_text",
    "where_waits",
]
