"""The chunk-streaming service of the tutorials: generated messages, a thread for each call, a file for each upload."""

from __future__ import annotations

import hashlib
import itertools
import json
import signal
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

CHUNK = 3 * 1024 * 1024

messages, services = grpc.protos_and_services("peers/programs/chunk_streaming.proto")


class ChunkStreaming:
    """Writes what arrives to a file, and reads it back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def Upload(self, chunks: Iterator[Any], context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Store chunks while each names the SHA-1 of the one before it."""
        first = next(chunks)
        size = 0
        previous = b""
        with (self._folder / Path(first.name).name).open("xb") as file:
            for chunk in itertools.chain([first], chunks):
                if chunk.previous_sha1 != previous:
                    context.abort(grpc.StatusCode.DATA_LOSS, "a chunk is missing")
                file.write(chunk.data)
                size += len(chunk.data)
                previous = hashlib.sha1(chunk.data).digest()
        return messages.Summary(size=size)

    def Download(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """Send a file, each chunk with the SHA-1 of the one before it."""
        previous = b""
        with (self._folder / Path(request.name).name).open("rb") as file:
            while data := file.read(CHUNK):
                yield messages.Chunk(data=data, previous_sha1=previous)
                previous = hashlib.sha1(data).digest()


def main() -> None:
    """Serve the folder that the first argument names until a signal comes."""
    server = grpc.server(futures.ThreadPoolExecutor(10))
    services.add_ChunkStreamingServicer_to_server(ChunkStreaming(Path(sys.argv[1])), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(json.dumps({"port": port}), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: server.stop(0))
    server.wait_for_termination()


if __name__ == "__main__":
    main()
