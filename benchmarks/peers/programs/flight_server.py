"""Arrow Flight with a handler in Python that stores and hashes, whose uploads are followed, or that only counts."""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import flight
from xxhash import xxh3_128, xxh3_128_digest

PIECE = 1024 * 1024
SCHEMA = pa.schema([("data", pa.uint8())])
ENTRY = struct.Struct(">Q16s")
"""Bytes that are stored, and the XXH3-128 of them: of the journal, and of what the uploader is told."""
ANNOUNCED_EACH = 0.004
"""Seconds between what an uploader is told, at least."""
_RECENT = 8
"""Batches that are kept for followers."""
_LARGE = 64 * 1024
"""Bytes from which on a batch is sent as it came; smaller ones are read together."""
_PATIENCE = 10.0
"""Seconds that a follower waits for the begin of what it asks for."""


def batch_of(data: bytes | memoryview) -> pa.RecordBatch:
    """Return a batch of one column around these bytes, which are not copied."""
    column = pa.Array.from_buffers(pa.uint8(), len(data), [None, pa.py_buffer(data)])
    return pa.RecordBatch.from_arrays([column], schema=SCHEMA)


def bytes_of(batch: pa.RecordBatch) -> memoryview:
    """Return the bytes of a batch, which are not copied."""
    column = batch.column(0)
    return memoryview(column.buffers()[1])[column.offset : column.offset + len(column)]


def delete(client: Any, name: str) -> None:
    """Have a server remove an upload."""
    for _ in client.do_action(flight.Action("delete", name.encode())):
        pass


class Storing(flight.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
    """Each upload is hashed and written to a new file, and synced before the client hears of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._folder = folder

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Store batches until the metadata holds the hash of all; answer with the size."""
        name = Path(descriptor.path[0].decode()).name
        hasher = xxh3_128()
        announced = None
        with (self._folder / name).open("xb", buffering=PIECE) as file:
            for chunk in reader:
                if chunk.data is not None:
                    data = bytes_of(chunk.data)
                    hasher.update(data)
                    file.write(data)
                if chunk.app_metadata is not None:
                    announced = chunk.app_metadata.to_pybytes()
            if announced != hasher.digest():
                raise flight.FlightServerError("what arrived has another hash than what was sent")
            file.flush()
            os.fdatasync(file.fileno())
            size = file.tell()
        (self._folder / f"{name}.hash").write_bytes(announced)
        writer.write(size.to_bytes(8, "big"))

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Send a file in batches of 1 MiB, and its hash as metadata of the last."""
        name = Path(ticket.ticket.decode()).name

        def batches() -> Iterator[Any]:
            with (self._folder / name).open("rb", buffering=0) as file:
                while data := file.read(PIECE):
                    yield batch_of(data)
            yield batch_of(b""), (self._folder / f"{name}.hash").read_bytes()

        return flight.GeneratorStream(SCHEMA, batches())

    def do_action(self, context: Any, action: Any) -> list[bytes]:
        """Remove an upload and its hash."""
        name = Path(action.body.to_pybytes().decode()).name
        for each in (name, f"{name}.hash"):
            (self._folder / each).unlink()
        return []


class _Followed:
    """What is known of an upload: where its batches end, the last of them, and whether it has ended."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ends: list[int] = [0]
        self._digests: list[bytes] = [xxh3_128_digest(b"")]
        # What most followers want is what has just come: they need not read it from the file.
        self._recent: deque[tuple[int, memoryview]] = deque(maxlen=_RECENT)
        self._ended = False
        self._failed = False

    @property
    def size(self) -> int:
        """Bytes that are stored."""
        return self._ends[-1]

    def grow(self, data: memoryview, digest: bytes) -> None:
        """Tell followers of a batch that is stored, and of the hash of all bytes up to its end."""
        with self._changed:
            self._recent.append((self._ends[-1], data))
            self._ends.append(self._ends[-1] + len(data))
            self._digests.append(digest)
            self._changed.notify_all()

    def end(self, *, failed: bool) -> None:
        """Tell followers that no more comes."""
        with self._changed:
            self._ended, self._failed = True, failed
            self._recent.clear()
            self._changed.notify_all()

    def beyond(self, offset: int) -> tuple[int, bytes, memoryview | None] | None:
        """Wait for bytes behind ``offset``, the end of a batch.

        Returns:
            The end of one batch or of several of at most 1 MiB in all, the hash of all bytes up to there, and what is
            in between if it has just come; ``None`` when there is no more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ends[-1] > offset or self._ended)
            if self._failed:
                raise flight.FlightServerError("the upload has failed")
            for start, data in self._recent:
                if start == offset and len(data) >= _LARGE:
                    return offset + len(data), self._digests[bisect_right(self._ends, offset)], data
            last = bisect_right(self._ends, offset + PIECE) - 1
            return None if self._ends[last] == offset else (self._ends[last], self._digests[last], None)


class Following(Storing):
    """Each upload can be followed from its begin, and continued behind what is known to be good.

    A batch comes with the hash of all bytes up to its end. It is compared, written and entered in a journal; followers
    get it at once, and the uploader is told now and then, so that it need not keep more than it may have to repeat.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._begun = threading.Condition()
        self._uploads: dict[str, _Followed] = {}

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Store batches; answer with size and hash of what is stored, in the end when it is synced."""
        name = Path(descriptor.path[0].decode()).name
        upload = _Followed()
        failed = True
        with (
            (self._folder / name).open("xb", buffering=0) as file,
            (self._folder / f"{name}.hash").open("xb", buffering=0) as journal,
        ):
            with self._begun:
                self._uploads[name] = upload
                self._begun.notify_all()
            try:
                entry = self._store(upload, reader, writer, file, journal)
                failed = False
            finally:
                upload.end(failed=failed)
        writer.write(entry)

    def _store(self, upload: _Followed, reader: Any, writer: Any, file: FileIO, journal: FileIO) -> bytes:
        hasher, due = xxh3_128(), 0.0
        entry = ENTRY.pack(0, hasher.digest())
        for chunk in reader:
            data = rest = bytes_of(chunk.data)
            hasher.update(data)
            digest = hasher.digest()
            if chunk.app_metadata.to_pybytes() != digest:
                raise flight.FlightServerError("what arrived has another hash than what was sent")
            while rest:
                rest = rest[file.write(rest) :]
            entry = ENTRY.pack(upload.size + len(data), digest)
            journal.write(entry)
            upload.grow(data, digest)
            now = time.monotonic()
            if now >= due:
                writer.write(entry)
                due = now + ANNOUNCED_EACH
        for each in (file, journal):
            os.fdatasync(each.fileno())
        names = os.open(self._folder, os.O_RDONLY)
        os.fsync(names)
        os.close(names)
        return entry

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Send what is stored in batches of at most 1 MiB to the end of the upload, with the hash up to each end."""
        name = Path(ticket.ticket.decode()).name
        with self._begun:
            if not self._begun.wait_for(lambda: name in self._uploads, _PATIENCE):
                raise flight.FlightServerError(f"there is no upload {name}")
            upload = self._uploads[name]

        def batches() -> Iterator[Any]:
            offset = 0
            with (self._folder / name).open("rb", buffering=0) as file:
                while (found := upload.beyond(offset)) is not None:
                    end, digest, data = found
                    yield batch_of(os.pread(file.fileno(), end - offset, offset) if data is None else data), digest
                    offset = end

        return flight.GeneratorStream(SCHEMA, batches())

    def do_action(self, context: Any, action: Any) -> list[bytes]:
        """Remove an upload and its journal."""
        del self._uploads[action.body.to_pybytes().decode()]
        return super().do_action(context, action)


class Counting(flight.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
    """Keeps the first batch of each upload and the number of bytes, and sends that batch over and over."""

    def __init__(self) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._kept: dict[bytes, tuple[Any, int]] = {}

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Count what arrives."""
        first = None
        size = 0
        for chunk in reader:
            if chunk.data is not None:
                # Copied, since what arrived is a part of a message, which would be kept as a whole.
                first = batch_of(bytes(bytes_of(chunk.data))) if first is None else first
                size += chunk.data.num_rows
        self._kept[descriptor.path[0]] = first, size
        writer.write(size.to_bytes(8, "big"))

    def do_action(self, context: Any, action: Any) -> list[bytes]:
        """Forget an upload."""
        del self._kept[action.body.to_pybytes()]
        return []

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Send as many bytes as were counted."""
        first, size = self._kept[ticket.ticket]
        table = pa.Table.from_batches([first] * (size // first.num_rows))
        return flight.RecordBatchStream(table)


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to store; without it, nothing is")
    parser.add_argument("--followed", action="store_true", help="uploads are followed, and checked batch by batch")
    arguments = parser.parse_args()
    if arguments.folder is None:
        server = Counting()
    else:
        server = (Following if arguments.followed else Storing)(arguments.folder)
    print(json.dumps({"port": server.port}), flush=True)
    # Flight waits for signals by itself, but not for the thread of Python that handles this one.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server.serve()


if __name__ == "__main__":
    main()
