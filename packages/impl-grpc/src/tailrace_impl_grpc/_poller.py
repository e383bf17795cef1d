"""The thread that ``grpc.aio`` polls with, shared by every event loop of a process."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

import grpc.aio

_AT_ONCE = 4096
"""Most wake-ups that are taken together."""

_POLLER = "_poll_wrapper"
"""What the poller's thread runs, which is in its name."""

_LOOP_CLOSED = "Event loop is closed"
"""What asyncio and uvloop say of one, by an error that has no type of its own."""

_bound: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


def keep_poller() -> None:
    """Bind the running event loop to the poller, and keep that for the rest of the process.

    ``grpc.aio`` ends it when its last channel or server is gone: it then waits for a thread, on the event loop, and
    leaves sockets unclosed. The next channel would start it again.
    """
    loop = asyncio.get_running_loop()
    if loop in _bound:
        return
    _bound.add(loop)
    try:
        _bind(loop)
    finally:
        _let_gather()


def _bind(loop: asyncio.AbstractEventLoop) -> None:
    bind = loop.add_reader

    def bind_together(fd: object, callback: Callable[..., object], *args: object) -> None:
        bind(fd, _taking_all(fd, callback) if isinstance(fd, socket.socket) else callback, *args)  # type: ignore[arg-type]  # typeshed asks for a number or a file

    try:
        # Each event has a byte in a socket, of which grpc.aio takes one for all events that there are, so that the loop
        # is woken once more for each of the others. It has nothing to change that; what it binds to can be changed.
        loop.add_reader = bind_together  # type: ignore[method-assign]  # stands in while gRPC binds itself
    except AttributeError:
        # A loop that has no room for it is woken more often.
        grpc.aio.init_grpc_aio()
        return
    try:
        grpc.aio.init_grpc_aio()
    finally:
        del loop.add_reader


def _let_gather() -> None:
    """Keep the poller from interrupting whoever runs, each time that some bytes have come.

    It is the thread that reads the connections: on a busy processor it then finds more bytes at a time. On an idle one
    it is woken as before. Where the process was given a policy of its own, that stays.
    """
    if sys.platform != "linux":
        return
    for thread in threading.enumerate():
        if _POLLER in thread.name and thread.native_id is not None:
            with suppress(OSError):
                if os.sched_getscheduler(thread.native_id) == os.SCHED_OTHER:
                    os.sched_setscheduler(thread.native_id, os.SCHED_BATCH, os.sched_param(0))


def _taking_all(wakes: socket.socket, callback: Callable[..., object]) -> Callable[..., None]:
    """Return a callback that takes all wake-ups but one before it calls ``callback``, which handles all events.

    In that order nothing is missed: what comes behind has a byte of its own. The last one is for the callback, which
    expects one. It stops at an event for a loop that has been closed, and then has to be called again: the events
    behind that one have no byte any more.
    """
    # The bytes say nothing; how many there are does.
    taken = bytearray(_AT_ONCE)

    def take_all(*args: object) -> None:
        try:
            waiting = wakes.recv_into(taken, 0, socket.MSG_PEEK)
            if waiting > 1:
                wakes.recv_into(taken, waiting - 1)
        except BlockingIOError:
            # Another loop was first.
            pass
        while True:
            try:
                callback(*args)
                return
            except RuntimeError as error:
                # Nobody waits for that one, which is taken out, any more.
                if str(error) != _LOOP_CLOSED:
                    raise

    return take_all
