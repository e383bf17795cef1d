"""Arrow Flight with a handler in Python: one that stores and hashes, or one that counts only."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import flight
from xxhash import xxh3_128

PIECE = 1024 * 1024
SCHEMA = pa.schema([("data", pa.uint8())])


def batch_of(data: bytes) -> pa.RecordBatch:
    """Return a batch of one column around these bytes, which are not copied."""
    column = pa.Array.from_buffers(pa.uint8(), len(data), [None, pa.py_buffer(data)])
    return pa.RecordBatch.from_arrays([column], schema=SCHEMA)


def bytes_of(batch: pa.RecordBatch) -> memoryview:
    """Return the bytes of a batch, which are not copied."""
    column = batch.column(0)
    return memoryview(column.buffers()[1])[column.offset : column.offset + len(column)]


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

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Send as many bytes as were counted."""
        first, size = self._kept[ticket.ticket]
        table = pa.Table.from_batches([first] * (size // first.num_rows))
        return flight.RecordBatchStream(table)


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to store; without it, nothing is")
    folder = parser.parse_args().folder
    server = Counting() if folder is None else Storing(folder)
    print(json.dumps({"port": server.port}), flush=True)
    # Flight waits for signals by itself, but not for the thread of Python that handles this one.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server.serve()


if __name__ == "__main__":
    main()
