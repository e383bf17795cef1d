"""A program that uploads a file under a key, and is started again when it died: with the same key, it goes on.

    python faulty_uploader.py URL KEY PATH PIECE

Prints the reference when the upload is open, and the status at the end, each as one line of JSON.
"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

from fault_points import Injection
from faulty_process import break_client, prepare


async def upload(url: str, key: str, path: Path, piece: int) -> None:
    """Upload ``path`` in pieces, each of which is announced before the next is sent."""
    import tailrace
    from tailrace_client_upload_api import UploadRequest
    from tailrace_common_api import Metadata

    source = path.read_bytes()

    async def prefix(size: int) -> AsyncGenerator[bytes, None]:
        yield source[:size]

    request = UploadRequest(metadata=Metadata(name="source"), idempotency_key=key, prefix=prefix)
    async with tailrace.connect(url) as client:
        async with client.start_upload(request) as session:
            print(json.dumps({"id": session.id, "epoch": session.epoch, "offset": session.offset}), flush=True)
            if not session.status.state.terminal:
                for start in range(session.offset, len(source), piece):
                    await session.write(source[start : start + piece])
                    await session.flush()
        status = session.status
        print(json.dumps({"state": status.state.value, "size": status.size, "head": status.head.hex()}), flush=True)


if __name__ == "__main__":
    injection = Injection.from_environment()
    prepare(injection)
    break_client(injection)
    asyncio.run(upload(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
