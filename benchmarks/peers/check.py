"""Start every peer that is installed, use each of its methods, and prove that the bytes arrive.

python benchmarks/peers/check.py                   all of them; ends with 1 where one fails
python benchmarks/peers/check.py nginx --size 512  some of them, with figures that mean a little more
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from processes import usage_of

from peers import METHODS, PEERS, Peer, missing

MEBIBYTE = 1024 * 1024
DELIVERIES = 20
PAUSE = 0.005


async def check(peer: Peer, mebibytes: int, lines: int) -> list[str]:
    """Use every method of a peer; return what was measured, and raise where something is wrong."""
    size = mebibytes * MEBIBYTE
    said = []

    def rate(what: str, seconds: float, cpu: tuple[float, float]) -> str:
        gigabytes = size / 1e9
        # Processes that have ended meanwhile took what they had used with them; of commands nothing is known.
        server, client = (f"{used / gigabytes:.2f}" if used / gigabytes >= 0.005 else "?" for used in cpu)
        return f"{what} {gigabytes / seconds:.2f} GB/s ({server} + {client} s/GB)"

    def used() -> tuple[float, float]:
        server, client = (usage_of(*pids).cpu for pids in (peer.server_pids, peer.client_pids))
        return server, client

    def since(before: tuple[float, float]) -> tuple[float, float]:
        now = used()
        return now[0] - before[0], now[1] - before[1]

    async with peer:
        if not peer.server_pids:
            raise AssertionError("no process of a server is known")
        before = used()
        uploaded = await peer.upload(size)
        cpu = since(before)
        if uploaded is not None:
            seconds, handle = uploaded
            said.append(rate("upload", seconds, cpu))
            before = used()
            downloaded = await peer.download(handle, size)
            if downloaded is not None:
                said.append(rate("download", downloaded, since(before)))
            await peer.compare(handle, size)
            before = used()
            if "plain_download" in peer.supports:
                plain = await peer.download(handle, size, verify=False)
                assert plain is not None
                said.append(rate("plain download", plain, since(before)))
            await peer.delete(handle)
        before = used()
        if (followed := await peer.follow(size)) is not None:
            said.append(rate("follow", followed, since(before)))
        if (written := await peer.lines(lines)) is not None:
            said.append(f"{lines / written:,.0f} lines/s")
        if (latencies := await peer.latencies(DELIVERIES, PAUSE)) is not None:
            if len(latencies) != DELIVERIES:
                raise AssertionError(f"{len(latencies)} latencies of {DELIVERIES}")
            said.append(f"write to reader {statistics.median(latencies) * 1000:.2f} ms")
        expected = [(method, method in peer.supports) for method in METHODS if method != "plain_download"]
        got = [
            ("upload", uploaded is not None),
            ("download", uploaded is not None and downloaded is not None),
            ("follow", followed is not None),
            ("lines", written is not None),
            ("latencies", latencies is not None),
        ]
        if expected != got:
            raise AssertionError(f"it claims to support {sorted(peer.supports)}, but did {got}")
    if peer.server_pids or peer.client_pids:
        raise AssertionError("something of it still runs")
    return said


async def main() -> int:
    """Check the peers that the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a part of the name of a peer; all by default")
    parser.add_argument("--size", type=int, default=8, help="MiB to move")
    parser.add_argument("--lines", type=int, default=1000, help="lines to write")
    options = parser.parse_args()
    lacking = missing()
    failed = False
    for peer in PEERS:
        if options.names and not any(part.lower() in peer.name.lower() for part in options.names):
            continue
        if peer.name in lacking:
            print(f"{peer.name}: NOT INSTALLED: {lacking[peer.name]}", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
            try:
                said = await check(peer(Path(scratch)), options.size, options.lines)
            except Exception:  # noqa: BLE001  # One that fails hides none of the others.
                traceback.print_exc()
                print(f"{peer.name}: FAILED", flush=True)
                failed = True
            else:
                print(f"{peer.name}: {'; '.join(said)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
