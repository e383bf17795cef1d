"""Saving a resource as a file, continuing what an earlier attempt left."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from contextlib import aclosing

from tailrace_client_download_api import RemoteResource
from tailrace_common_api import MEBIBYTE, IntegrityError, Status
from tailrace_impl_common._descriptor_writer import DescriptorWriter
from tailrace_impl_common._head import HeadHasher

# Bytes hashed between two chances to be cancelled.
_STEP = 32 * MEBIBYTE


async def save_resource(
    resource: RemoteResource, path: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None
) -> Status:
    """Save the bytes ``[0, size)`` of a resource as a file, where ``size`` is the one at the time of the call.

    A file that is there already must be a prefix of the resource, which is proven by its head; it is then continued.
    Any other file is left as it is. What was saved when this fails or is cancelled is verified and stays, so that the
    next call continues. Something that is no regular file, such as a device, is written from the start.

    Args:
        resource: What to save.
        path: Where; folders are not made.
        progress: Called with the number of bytes of the file that are there, whenever that changed.

    Returns:
        The status whose size and head the file has.

    Raises:
        IntegrityError: The file is no prefix of the resource, or what arrived is not what was stored.
        NotFound, Deleted: There is no such resource; no file is made.
        OSError: The file cannot be read or written.
    """
    status = await resource.status()
    descriptor = await asyncio.to_thread(os.open, path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    hasher = HeadHasher()
    writer = DescriptorWriter(descriptor, observe=hasher.update)
    try:
        await _check_prefix(resource, status, path, descriptor, hasher)
        start = hasher.size
        if progress is not None:
            progress(start)
        async with aclosing(resource.chunks(start, status.size)) as chunks:
            async for chunk in chunks:
                await writer.write(chunk.data)
                if progress is not None:
                    progress(chunk.offset + len(chunk.data))
        await writer.flush()
        if (hasher.size, hasher.head()) != (status.size, status.head):
            await asyncio.to_thread(os.ftruncate, descriptor, start)
            raise IntegrityError(offset=start, problem="what was saved does not have the head of the resource")
    finally:
        await writer.close()
    return status


async def _check_prefix(
    resource: RemoteResource, status: Status, path: str | os.PathLike[str], descriptor: int, hasher: HeadHasher
) -> None:
    """Feed what the file holds to the hasher, leaving the position behind it, and compare the head there."""
    details = os.fstat(descriptor)
    if not stat.S_ISREG(details.st_mode) or not details.st_size:
        return
    name = ascii(os.fspath(path))
    if details.st_size > status.size:
        problem = f"{name} has {details.st_size} bytes and is no part of a resource of {status.size} bytes"
        raise IntegrityError(offset=0, problem=problem)
    while await asyncio.to_thread(_hash_step, descriptor, hasher):
        pass
    (expected,) = await resource.heads([hasher.size])
    if hasher.head() != expected:
        raise IntegrityError(offset=0, problem=f"the {hasher.size} bytes of {name} are not those of the resource")


def _hash_step(descriptor: int, hasher: HeadHasher) -> bool:
    """Hash some of the file; return whether more is to come."""
    end = hasher.size + _STEP
    while hasher.size < end:
        data = os.read(descriptor, MEBIBYTE)
        if not data:
            return False
        hasher.update(data)
    return True
