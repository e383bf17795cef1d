"""The thread that ``grpc.aio`` polls with, shared by every event loop of a process."""

from __future__ import annotations

import functools

import grpc.aio


@functools.cache
def keep_poller() -> None:
    """Keep the poller for the rest of the process, once there is one.

    ``grpc.aio`` ends it when its last channel or server is gone: it then waits for a thread, on the event loop, and
    leaves sockets unclosed. The next channel would start it again.
    """
    grpc.aio.init_grpc_aio()
