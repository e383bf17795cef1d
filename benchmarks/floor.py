"""The attainable limit: two blocking sockets in Python that do the work of an upload or a download by hand.

Messages of 1 MiB, each with its length and its XXH3-128, which the receiving side checks; an upload is written to a
file and synced at the end, a download is read from one, and who follows is sent each message as soon as it is written.
No protocol, no event loop, no journal, no readers beside it.

What it costs is kept low by what blocking code can do: one buffer of 1 MiB on each side, which stays in the cache,
header and payload in one call out and in one call in, socket buffers that stay in the cache, too, and a new file that
is on its way to disk before its end.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Self

import xxhash
from raw_socket import MESSAGE, RING, random_message

WARM_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where it is: in memory where that is possible, since pages that go to disk at the moment cannot be written."""
_REQUEST = struct.Struct("!cQH")
"""What to do, bytes, and the length of the path."""
_FRAME = struct.Struct("!I16s")
"""Length and hash of a message."""
_BEGUN_AT_ONCE = 2 * MESSAGE
"""Bytes of a new file that the system is asked to begin with, and how it is asked to begin and not to wait."""
_SYNC_FILE_RANGE_WRITE = 2
UPLOAD, UPLOAD_WARM, UPLOAD_FOLLOWED, FOLLOW, DOWNLOAD = b"u", b"w", b"l", b"f", b"d"
_SOCKET_BUFFER = MESSAGE
"""What the kernel may hold in each direction; by itself it takes more, and messages leave the cache on their way."""


class Floor:
    """A process that stores and reads files, and one that follows; they end with the block."""

    def __enter__(self) -> Self:
        self._server = _start()
        self._port = int(_line(self._server))
        self._follower = _start("follow", str(self._port))
        return self

    def __exit__(self, *_: object) -> None:
        self._follower.communicate()
        self._server.communicate()

    @property
    def pid(self) -> int:
        """Id of the process that stores."""
        return self._server.pid

    @property
    def follower_pid(self) -> int:
        """Id of the process that follows."""
        return self._follower.pid

    def upload(self, path: Path, size: int, *, warm: bool = False) -> float:
        """Store ``size`` bytes, in a new file or over and over in one of 64 MiB; return the seconds until synced."""
        with _connect(self._port, UPLOAD_WARM if warm else UPLOAD, path, size) as peer:
            begin = time.perf_counter()
            _send_messages(peer, size)
            _receive(peer, memoryview(bytearray(1)))
            return time.perf_counter() - begin

    def download(self, path: Path, size: int) -> float:
        """Read ``size`` bytes of a stored file; return the seconds."""
        with _connect(self._port, DOWNLOAD, path, size) as peer:
            begin = time.perf_counter()
            _receive_messages(peer, size)
            return time.perf_counter() - begin

    def follow(self, path: Path, size: int) -> float:
        """Store ``size`` bytes in a new file while another process gets them; return the seconds until all is done."""
        assert self._follower.stdin is not None
        self._follower.stdin.write(b"%d\n" % size)
        self._follower.stdin.flush()
        _line(self._follower)
        with _connect(self._port, UPLOAD_FOLLOWED, path, size) as peer:
            begin = time.perf_counter()
            _send_messages(peer, size)
            _receive(peer, memoryview(bytearray(1)))
            _line(self._follower)
            return time.perf_counter() - begin


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise ConnectionError(f"a process of the floor ended with {process.wait()}")
    return line


def _connect(port: int, what: bytes, path: Path, size: int) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port))
    _tune(peer)
    name = os.fsencode(path)
    peer.sendall(_REQUEST.pack(what, size, len(name)) + name)
    return peer


def _tune(peer: socket.socket) -> None:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        peer.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)


def _send_messages(peer: socket.socket, size: int) -> None:
    data = memoryview(random_message())
    for start in range(0, size, MESSAGE):
        piece = data[: min(MESSAGE, size - start)]
        _send(peer, [_FRAME.pack(len(piece), xxhash.xxh3_128_digest(piece)), piece])


def _receive_messages(peer: socket.socket, size: int) -> None:
    buffer, header = memoryview(bytearray(MESSAGE)), memoryview(bytearray(_FRAME.size))
    left = size
    while left:
        left -= len(_receive_message(peer, header, buffer, left))


def _send(peer: socket.socket, buffers: Sequence[bytes | memoryview]) -> None:
    sent = peer.sendmsg(buffers)
    for buffer in buffers:
        if sent < len(buffer):
            peer.sendall(memoryview(buffer)[sent:])
        sent = max(0, sent - len(buffer))


def _receive(peer: socket.socket, view: memoryview) -> None:
    received = 0
    while received < len(view):
        count = peer.recv_into(view[received:])
        if not count:
            raise ConnectionError(f"the other side left after {received} bytes of {len(view)}")
        received += count


def _receive_message(peer: socket.socket, header: memoryview, buffer: memoryview, left: int) -> memoryview:
    # Of the next message nothing is taken: it is as long as the buffer, or as what is left.
    received = peer.recvmsg_into([header, buffer[: min(MESSAGE, left)]])[0]
    if received < len(header):
        _receive(peer, header[received:])
        received = len(header)
    length, digest = _FRAME.unpack(header)
    piece = buffer[:length]
    _receive(peer, piece[received - len(header) :])
    if xxhash.xxh3_128_digest(piece) != digest:
        raise AssertionError("a message of the floor arrived changed")
    return piece


def serve_one(peer: socket.socket, listener: socket.socket) -> None:
    """Do what one connection asks for."""
    what, size, name = _request(peer)
    if what == FOLLOW:
        # The next connection is that of the one who is followed.
        writer, _ = listener.accept()
        with writer:
            what, size, name = _request(writer)
            _serve(writer, what, size, name, peer)
    else:
        _serve(peer, what, size, name, None)


def _request(peer: socket.socket) -> tuple[bytes, int, bytes]:
    _tune(peer)
    request = bytearray(_REQUEST.size)
    _receive(peer, memoryview(request))
    what, size, length = _REQUEST.unpack(request)
    name = bytearray(length)
    _receive(peer, memoryview(name))
    return what, size, bytes(name)


def _serve(peer: socket.socket, what: bytes, size: int, name: bytes, follower: socket.socket | None) -> None:
    flags = {UPLOAD_WARM: os.O_RDWR, DOWNLOAD: os.O_RDONLY}.get(what, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    file = os.open(name, flags, 0o666)
    try:
        if what == DOWNLOAD:
            buffer = memoryview(bytearray(MESSAGE))
            for offset in range(0, size, MESSAGE):
                piece = buffer[: os.preadv(file, [buffer[: size - offset]], offset)]
                _send(peer, [_FRAME.pack(len(piece), xxhash.xxh3_128_digest(piece)), piece])
            return
        line: SimpleQueue[int | None] = SimpleQueue()
        beginning = threading.Thread(target=_begin_writing, args=(file, line))
        if what != UPLOAD_WARM:
            beginning.start()
        header, buffer = memoryview(bytearray(_FRAME.size)), memoryview(bytearray(MESSAGE))
        stored = 0
        while stored < size:
            piece = _receive_message(peer, header, buffer, size - stored)
            offset = stored % RING if what == UPLOAD_WARM else stored
            if os.pwrite(file, piece, offset) != len(piece):
                raise OSError("a write was cut short")
            stored += len(piece)
            if what != UPLOAD_WARM and stored % _BEGUN_AT_ONCE == 0:
                line.put(stored - _BEGUN_AT_ONCE)
            if follower is not None:
                _send(follower, [header, piece])
        if what != UPLOAD_WARM:
            line.put(None)
            beginning.join()
            os.fdatasync(file)
    finally:
        os.close(file)
    # Once it is closed: the last one who has a file open that was removed frees its pages, which takes a while.
    peer.sendall(b"!")


def _begin_writing(file: int, line: SimpleQueue[int | None]) -> None:
    """Have the system bring to disk what was written, so that the sync at the end finds little to do."""
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    while (offset := line.get()) is not None:
        if call is not None:
            call(file, ctypes.c_int64(offset), ctypes.c_int64(_BEGUN_AT_ONCE), _SYNC_FILE_RANGE_WRITE)


def make_warm_file() -> Path:
    """Write the warm file once, so that its pages are there; the caller removes it."""
    number, name = tempfile.mkstemp(prefix="tailrace-warm-", dir=WARM_FOLDER)
    with open(number, "wb") as file:
        for _ in range(RING // MESSAGE):
            file.write(random_message())
    return Path(name)


def write_seconds(path: Path, size: int, *, sync: bool) -> float:
    """Return the time to write a new file in pieces of 1 MiB, and to sync it if that is asked for."""
    data = random_message()
    begin = time.perf_counter()
    with path.open("xb", buffering=0) as file:
        for start in range(0, size, MESSAGE):
            file.write(memoryview(data)[: min(MESSAGE, size - start)])
        if sync:
            os.fdatasync(file.fileno())
    return time.perf_counter() - begin


def follow(port: int) -> None:
    """Follow as many bytes as each line of the standard input says, and print a line before and after."""
    for line in sys.stdin:
        with _connect(port, FOLLOW, Path(), int(line)) as peer:
            print("ready", flush=True)
            _receive_messages(peer, int(line))
        print("done", flush=True)


def main() -> None:
    """Serve connections one after the other, until standard input ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
        while True:
            peer, _ = listener.accept()
            with peer:
                try:
                    serve_one(peer, listener)
                except ConnectionError as error:
                    print(f"floor: {error}", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["follow"]:
        follow(int(sys.argv[2]))
    else:
        main()
