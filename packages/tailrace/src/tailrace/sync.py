"""The blocking API: the same names as the asynchronous one, for scripts and test runners.

``with tailrace.sync.connect("ws://localhost:7080") as client:`` gives a client that may be used from many threads. All
clients of a process share one event loop, in a thread of its own that is there while one of them is open; it lives
beside any loop of the application.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from tailrace._connect import ClientArguments, prepare_client
from tailrace._portal import PORTAL
from tailrace_client_download_api.sync import (
    Delivery,
    DownloadClient,
    RecordClient,
    RecordConsumer,
    RecordStream,
    RemoteResource,
    ResourceClient,
    ResourceFile,
)
from tailrace_client_upload_api.sync import BulkClient, BulkUpload, UploadClient, UploadSession
from tailrace_common_api.blocking import Portal, call, call_plain

if TYPE_CHECKING:
    from tailrace_impl_common import ConnectedClient

__all__ = [
    "BulkUpload",
    "Client",
    "Delivery",
    "RecordConsumer",
    "RecordStream",
    "RemoteResource",
    "ResourceFile",
    "UploadSession",
    "connect",
]


class Client(UploadClient, DownloadClient, ResourceClient, BulkClient, RecordClient):
    """All that a client can do, for blocking code and from any thread.

    Leaving the context manager, or :meth:`close`, ends every conversation that still runs.
    """

    def __init__(self, portal: Portal, client: ConnectedClient) -> None:
        UploadClient.__init__(self, portal, client)
        DownloadClient.__init__(self, portal, client)
        ResourceClient.__init__(self, portal, client)
        BulkClient.__init__(self, portal, client)
        RecordClient.__init__(self, portal, client)
        self._portal = portal
        self._client = client
        self._process = os.getpid()
        self._closing = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """End every conversation and release the connection; idempotent.

        In a forked process nothing happens: the connection is the parent's.
        """
        if self._process != os.getpid():
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
        try:
            call(self._portal, self._client.close)
        finally:
            PORTAL.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def connect(
    url: str | Sequence[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    **settings: Unpack[ClientArguments],
) -> Client:
    """Connect to a server; arguments and errors as for :func:`tailrace.connect`.

    The connection is made when the client is first used. The client is to be closed, most simply by ``with``.
    """
    make = prepare_client(url, settings, config)
    portal = PORTAL.acquire()
    try:
        return Client(portal, call_plain(portal, make))
    except BaseException:
        PORTAL.release()
        raise
