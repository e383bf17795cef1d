"""What a line costs in Python: all calls of server and client for one that is written, stored, announced and followed.

    python benchmarks/calls.py ws [--least 2]

Where processors that have just been woken are slow, a line takes as long as the code that it passes is long, and times
differ by a factor of two from one minute to the next. Numbers of calls do not. Printed are those of all functions, and
functions by what they take themselves: calls per line, microseconds per line of their own and with all that they call,
both as cProfile makes them, which is two to three times what they take without it.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import marshal
import os
import signal
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

import workloads
from loops import run_coroutine
from server import ServerProcess, keep_byte_code
from workloads import LINE

from tailrace._grpc_core import tune_grpc
from tailrace._malloc import tune_malloc
from tailrace_client_upload_api import UploadSession

LINES = 1000
PAUSE = 0.002
"""Seconds between lines, so that each is one by itself."""
_PATIENCE = 30.0
"""Seconds for the server to write its profile."""
_PROGRAM = Path(__file__).with_name("profiled_server.py")


async def follow_lines(url: str, server: int, written: Path, mine: Path) -> None:
    """Write lines, each behind the arrival of the one before, while the client is profiled and the server.

    Args:
        url: The server.
        server: Its process.
        written: Where its profile comes.
        mine: Where to write that of the client.
    """
    profile = cProfile.Profile()
    async with workloads.connected(url) as writer, workloads.connected(url) as reader:
        session = writer.upload("benchmark", lines=True)
        await session.open()
        async with session, reader.open(session.reference) as resource, aclosing(resource.follow()) as arriving:

            async def pass_on(upload: UploadSession, count: int) -> None:
                for _ in range(count):
                    await asyncio.sleep(PAUSE)
                    await upload.write(LINE)
                    if await anext(arriving) != LINE:
                        raise AssertionError("the follower got something else than the line that was written")

            await pass_on(session, 20)
            os.kill(server, signal.SIGUSR2)
            # Behind one line more the server has seen the signal.
            await pass_on(session, 1)
            profile.enable()
            await pass_on(session, LINES)
            profile.disable()
            os.kill(server, signal.SIGUSR2)
            deadline = time.monotonic() + _PATIENCE
            while not written.exists():
                if time.monotonic() > deadline:
                    raise TimeoutError("the server has written no profile")
                await pass_on(session, 1)
    profile.dump_stats(mine)


def show(side: str, profile: Path, least: float) -> None:
    """Print all calls of a side, and the functions that take ``least`` microseconds of a line and more themselves."""
    # Read as it is written, since the interface of pstats takes functions of one name for one.
    found: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = marshal.loads(profile.read_bytes())
    print(f"{side}: {sum(calls for _, calls, *_ in found.values()) / LINES:.1f} calls per line")
    per_line = sorted(
        (
            (own / LINES * 1e6, whole / LINES * 1e6, calls / LINES, place)
            for place, (_, calls, own, whole, _) in found.items()
        ),
        reverse=True,
    )
    for own, whole, calls, (file, line, name) in per_line:
        if own >= least:
            print(f"{calls:6.2f} {own:7.1f} {whole:7.1f}  {Path(file).name}:{line} {name}")


def main() -> None:
    """Measure and print."""
    if tune_grpc():
        # As the command line does, before gRPC is used.
        os.execv(sys.executable, sys.orig_argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transport", choices=("ws", "grpc"))
    parser.add_argument("--least", type=float, default=2.0, metavar="MICROSECONDS", help="of functions that are named")
    arguments = parser.parse_args()
    tune_malloc()
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as scratch:
        folder = Path(scratch)
        written, mine = folder / "server.profile", folder / "client.profile"
        program = (str(_PROGRAM), str(written))
        settings = keep_byte_code(folder)
        with ServerProcess(folder / "data", settings=settings, program=program, log=folder / "log") as server:
            run_coroutine(follow_lines(server.urls[arguments.transport], server.pid, written, mine))
        show("server", written, arguments.least)
        show("client", mine, arguments.least)


if __name__ == "__main__":
    main()
