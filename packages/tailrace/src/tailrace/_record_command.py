"""One record handed to a command of the user's."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress

from tailrace._grpc_core import environment_of_others
from tailrace_client_download_api import Delivery
from tailrace_impl_common import cancel_and_wait

_PREFIX = "TAILRACE_RECORD_"
# Time that a command has to end when it was told to, in seconds.
_PATIENCE = 5.0


async def run_command(command: Sequence[str], queue: str, delivery: Delivery, *, output: int | None) -> int:
    """Run a command with a record on its standard input, and return its exit code.

    Which record it is, is in the environment: ``TAILRACE_RECORD_QUEUE``, ``_ID``, ``_ATTEMPT``, ``_PRIORITY`` and, if
    it has one, ``_KEY``. The command is the leader of a session of its own: Ctrl-C on the terminal is not for it. When
    this is cancelled it gets SIGTERM, and after some seconds SIGKILL, and so does what it has started.

    Args:
        command: Program and arguments.
        queue: Name of the queue.
        delivery: The record.
        output: Descriptor for its standard output; ``None`` for that of this process.

    Returns:
        The exit code; that of a command that was ended by a signal is the negative number of it.

    Raises:
        OSError: It cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=output, env=_environment(queue, delivery), start_new_session=True
    )
    assert process.stdin is not None
    feeding = asyncio.create_task(_feed(process.stdin, delivery.record.data))
    try:
        return await process.wait()
    finally:
        await cancel_and_wait(feeding)
        if process.returncode is None:
            await _end(process)


async def _feed(pipe: asyncio.StreamWriter, data: bytes) -> None:
    """Write all of it; a command that does not read it to its end, or not at all, is as good as any other."""
    # Without the command's end the transport may be closed by now, and would refuse.
    if not pipe.is_closing():
        pipe.write(data)
    with suppress(ConnectionError):
        await pipe.drain()
    pipe.close()
    with suppress(ConnectionError):
        await pipe.wait_closed()


def _environment(queue: str, delivery: Delivery) -> dict[str, str]:
    environment = {name: value for name, value in environment_of_others().items() if not name.startswith(_PREFIX)}
    environment |= {
        f"{_PREFIX}QUEUE": queue,
        f"{_PREFIX}ID": str(delivery.id),
        f"{_PREFIX}ATTEMPT": str(delivery.attempt),
        f"{_PREFIX}PRIORITY": str(delivery.priority),
    }
    key = delivery.record.key
    # No environment can hold a NUL.
    if key is not None and "\0" not in key:
        environment[f"{_PREFIX}KEY"] = key
    return environment


async def _end(process: Process) -> None:
    """End a command and what it has started, in order or else by force."""
    _signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(_PATIENCE):
            await process.wait()
    except TimeoutError:
        _signal(process, signal.SIGKILL)
        await process.wait()


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
