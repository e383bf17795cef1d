"""The limit that everything is compared with: one blocking loopback socket between two processes.

A buffer of 1 MiB that is sent over and over into another one need not leave the processors' caches; data that comes
from somewhere and goes somewhere has to. The same is therefore also measured from 64 MiB into 64 MiB.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Self

MESSAGE = 1024 * 1024
PING = 100
RING = 64 * MESSAGE
"""What is sent from and received into where the data shall be distinct, and the warm file: more than caches hold."""
_HEADER = struct.Struct("!QQ?")
"""Bytes to receive, pings to answer, and whether the bytes go into as much memory as they come from."""


def random_message() -> bytes:
    """Return 1 MiB that does not compress and is the same at every call of one process."""
    return _MESSAGE


_MESSAGE = os.urandom(MESSAGE)


class RawSocket:
    """A process that receives what it is sent; it ends with the block."""

    def __enter__(self) -> Self:
        self._receiver = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._receiver.stdout is not None
        # Ends with nothing where the process does, so that nobody waits for a dead one.
        self._port = int(self._receiver.stdout.readline() or 0)
        if not self._port:
            raise ConnectionError(f"the receiver ended with {self._receiver.wait()}")
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.communicate()

    @property
    def pid(self) -> int:
        """Id of the receiving process."""
        return self._receiver.pid

    def seconds(self, size: int, *, distinct: bool = False) -> float:
        """Return the time to send ``size`` bytes in messages of 1 MiB to the process, and to hear that it has them.

        Args:
            size: Bytes to send.
            distinct: Send from 64 MiB into 64 MiB, not from one message into the place of one.
        """
        with _memory(RING if distinct else MESSAGE) as memory, self._connect(size, 0, distinct) as sender:
            data = memoryview(memory)
            _receive_exactly(sender, bytearray(1))
            begin = time.perf_counter()
            for start in range(0, size, MESSAGE):
                place = start % len(data)
                sender.sendall(data[place : place + min(MESSAGE, size - start)])
            _receive_exactly(sender, bytearray(1))
            seconds = time.perf_counter() - begin
            data.release()
            return seconds

    def round_trips(self, count: int) -> list[float]:
        """Return the times of messages of 100 bytes to the process and back, one after the other."""
        times = []
        message, answer = random_message()[:PING], bytearray(PING)
        with self._connect(0, count, False) as sender:
            for _ in range(count):
                begin = time.perf_counter()
                sender.sendall(message)
                _receive_exactly(sender, answer)
                times.append(time.perf_counter() - begin)
        if answer != message:
            raise AssertionError("the process answered with something else")
        return times

    def _connect(self, size: int, pings: int, distinct: bool) -> socket.socket:
        sender = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        # A socket with a timeout is not a blocking one to the kernel, and costs a call more per message.
        sender.settimeout(None)
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sender.sendall(_HEADER.pack(size, pings, distinct))
        return sender


def _memory(size: int) -> mmap.mmap:
    """Return memory with random bytes in it, which goes back to the system when it is closed."""
    memory = mmap.mmap(-1, size)
    while memory.tell() < size:
        memory.write(random_message())
    return memory


def _receive_exactly(peer: socket.socket, buffer: bytearray) -> None:
    view, received = memoryview(buffer), 0
    while received < len(buffer):
        count = peer.recv_into(view[received:])
        if not count:
            raise ConnectionError(f"the other side left after {received} bytes of {len(buffer)}")
        received += count


def serve_one(peer: socket.socket) -> None:
    """Do what one connection asks for."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    header = bytearray(_HEADER.size)
    _receive_exactly(peer, header)
    size, pings, distinct = _HEADER.unpack(header)
    if pings:
        ping = bytearray(PING)
        for _ in range(pings):
            _receive_exactly(peer, ping)
            peer.sendall(ping)
        return
    with _memory(RING if distinct else MESSAGE) as memory, memoryview(memory) as buffer:
        peer.sendall(b"?")
        received = 0
        while received < size:
            place = received % len(buffer) if distinct else 0
            count = peer.recv_into(buffer[place : place + min(MESSAGE, size - received)])
            if not count:
                raise ConnectionError(f"the sender left with {size - received} bytes unsent")
            received += count
        peer.sendall(b"!")


def main() -> None:
    """Serve connections one after the other, until standard input ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        # Whoever started this has it as standard input: its end is theirs, however they ended.
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
        while True:
            peer, _ = listener.accept()
            with peer:
                try:
                    serve_one(peer)
                except ConnectionError as error:
                    print(f"raw socket: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
