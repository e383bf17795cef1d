"""The attainable limit: two blocking sockets in Python that do the work of an upload or a download by hand.

Messages of 1 MiB, each with its length and its XXH3-128, which the receiving side checks; an upload is written to a
file and synced at the end, a download is read from one. No protocol, no event loop, no journal, no readers beside it.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

import xxhash
from raw_socket import MESSAGE, random_message

RING = 64 * MESSAGE
"""Size of the warm file."""
WARM_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where it is: in memory where that is possible, since pages that go to disk at the moment cannot be written."""
_REQUEST = struct.Struct("!cQH")
"""What to do, bytes, and the length of the path."""
_FRAME = struct.Struct("!I16s")
"""Length and hash of a message."""
UPLOAD, UPLOAD_WARM, DOWNLOAD = b"u", b"w", b"d"


class Floor:
    """A process that stores and reads files; it ends with the block."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        self._port = int(self._server.stdout.readline() or 0)
        if not self._port:
            raise ConnectionError(f"the server of the floor ended with {self._server.wait()}")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    @property
    def pid(self) -> int:
        """Id of the process that stores."""
        return self._server.pid

    def upload(self, path: Path, size: int, *, warm: bool = False) -> float:
        """Store ``size`` bytes, in a new file or over and over in one of 64 MiB; return the seconds until synced."""
        data = memoryview(random_message())
        with self._connect(UPLOAD_WARM if warm else UPLOAD, path, size) as peer:
            begin = time.perf_counter()
            for start in range(0, size, MESSAGE):
                piece = data[: min(MESSAGE, size - start)]
                _send(peer, [_FRAME.pack(len(piece), xxhash.xxh3_128_digest(piece)), piece])
            _receive(peer, memoryview(bytearray(1)))
            return time.perf_counter() - begin

    def download(self, path: Path, size: int) -> float:
        """Read ``size`` bytes of a stored file; return the seconds."""
        buffer, header = memoryview(bytearray(MESSAGE)), bytearray(_FRAME.size)
        with self._connect(DOWNLOAD, path, size) as peer:
            begin = time.perf_counter()
            left = size
            while left:
                left -= len(_receive_message(peer, header, buffer))
            return time.perf_counter() - begin

    def _connect(self, what: bytes, path: Path, size: int) -> socket.socket:
        peer = socket.create_connection(("127.0.0.1", self._port))
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = os.fsencode(path)
        peer.sendall(_REQUEST.pack(what, size, len(name)) + name)
        return peer


def _send(peer: socket.socket, buffers: list[bytes | memoryview]) -> None:
    sent, total = peer.sendmsg(buffers), sum(map(len, buffers))
    if sent < total:
        peer.sendall(memoryview(b"".join(buffers))[sent:])


def _receive(peer: socket.socket, view: memoryview) -> None:
    received = 0
    while received < len(view):
        count = peer.recv_into(view[received:])
        if not count:
            raise ConnectionError(f"the other side left after {received} bytes of {len(view)}")
        received += count


def _receive_message(peer: socket.socket, header: bytearray, buffer: memoryview) -> memoryview:
    _receive(peer, memoryview(header))
    length, digest = _FRAME.unpack(header)
    piece = buffer[:length]
    _receive(peer, piece)
    if xxhash.xxh3_128_digest(piece) != digest:
        raise AssertionError("a message of the floor arrived changed")
    return piece


def serve_one(peer: socket.socket) -> None:
    """Do what one connection asks for."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = bytearray(_REQUEST.size)
    _receive(peer, memoryview(request))
    what, size, length = _REQUEST.unpack(request)
    name = bytearray(length)
    _receive(peer, memoryview(name))
    flags = {UPLOAD: os.O_RDWR | os.O_CREAT | os.O_EXCL, UPLOAD_WARM: os.O_RDWR, DOWNLOAD: os.O_RDONLY}[what]
    file = os.open(bytes(name), flags, 0o666)
    try:
        if what == DOWNLOAD:
            buffer = memoryview(bytearray(MESSAGE))
            for offset in range(0, size, MESSAGE):
                piece = buffer[: os.preadv(file, [buffer[: size - offset]], offset)]
                _send(peer, [_FRAME.pack(len(piece), xxhash.xxh3_128_digest(piece)), piece])
            return
        header, buffer = bytearray(_FRAME.size), memoryview(bytearray(MESSAGE))
        stored = 0
        while stored < size:
            piece = _receive_message(peer, header, buffer)
            offset = stored % RING if what == UPLOAD_WARM else stored
            if os.pwrite(file, piece, offset) != len(piece):
                raise OSError("a write was cut short")
            stored += len(piece)
        if what == UPLOAD:
            os.fdatasync(file)
    finally:
        os.close(file)
    # Once it is closed: the last one who has a file open that was removed frees its pages, which takes a while.
    peer.sendall(b"!")


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


def main() -> None:
    """Serve connections one after the other, until standard input ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
        while True:
            peer, _ = listener.accept()
            with peer:
                try:
                    serve_one(peer)
                except ConnectionError as error:
                    print(f"floor: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
