"""The limit that everything is compared with: one blocking loopback socket between two processes."""

from __future__ import annotations

import multiprocessing
import socket
import time
from multiprocessing.connection import Connection

MESSAGE = 1024 * 1024


def _receive(ready: Connection, size: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready.send(listener.getsockname()[1])
        peer, _ = listener.accept()
        with peer:
            buffer = bytearray(MESSAGE)
            left = size
            while left:
                received = peer.recv_into(buffer)
                if not received:
                    raise ConnectionError(f"the sender left with {left} bytes unsent")
                left -= received
            peer.sendall(b"!")


def raw_socket_seconds(size: int) -> float:
    """Return the time to move ``size`` bytes in messages of 1 MiB from this process to another, and to hear of it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    receiver = context.Process(target=_receive, args=(theirs, size))
    receiver.start()
    try:
        data = bytes(MESSAGE)
        with socket.create_connection(("127.0.0.1", ours.recv())) as sender:
            begin = time.perf_counter()
            for start in range(0, size, MESSAGE):
                sender.sendall(data[: min(MESSAGE, size - start)])
            if sender.recv(1) != b"!":
                raise ConnectionError("the receiver did not confirm")
            return time.perf_counter() - begin
    finally:
        receiver.join()


def plain_write_seconds(path: str, size: int) -> float:
    """Return the time to write ``size`` bytes to a new file in pieces of 1 MiB, without syncing."""
    data = bytes(MESSAGE)
    begin = time.perf_counter()
    with open(path, "xb", buffering=0) as file:
        for start in range(0, size, MESSAGE):
            file.write(data[: min(MESSAGE, size - start)])
    return time.perf_counter() - begin
