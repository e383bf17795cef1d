"""What the core of gRPC is told by the environment of its process."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

_VERBOSITY = "GRPC_VERBOSITY"
_EXPERIMENTS = "GRPC_EXPERIMENTS"
_READ_BY_WHO_WAITS = "-event_engine_client,-event_engine_listener"
_KNOWN = ((1, 80), (1, 85))
"""First and last release that is known to have both; a release that has them no more complains at each start."""
_FILTERS_IN_ONE = "fuse_filters"
_TRIED_IN_ONE = ((1, 85), (1, 85))
"""First and last release with which this was tried: it is not what releases do by default."""

_ours: dict[str, str] = {}


def tune_grpc() -> bool:
    """Let the thread that waits for gRPC's events read and write its connections; return whether it will.

    By default a pool of threads does, which hands over to the one that waits, and that to the event loop. On two cores
    the hand-overs are a third of the latency of a line, and a fifth of the time of a download. To be called before gRPC
    is imported, never in a library: it changes the whole process. Who embeds the server or a client in an own program
    can set the same by ``GRPC_EXPERIMENTS=-event_engine_client,-event_engine_listener`` in its environment. Whatever
    the environment says already is left as it is.

    With the release that it was tried with, ``fuse_filters`` makes one filter of those that each call passes through,
    with state for one: 2 KiB less for a call.

    What fails is also no longer said by the core in its own words: this program says it, once.
    """
    _set(_VERBOSITY, "NONE")
    release = _release()
    if not _KNOWN[0] <= release <= _KNOWN[1]:
        return False
    fused = _TRIED_IN_ONE[0] <= release <= _TRIED_IN_ONE[1]
    return _set(_EXPERIMENTS, f"{_READ_BY_WHO_WAITS},{_FILTERS_IN_ONE}" if fused else _READ_BY_WHO_WAITS)


def environment_of_others() -> dict[str, str]:
    """Return the environment without what was set here: for programs that are not this one."""
    return {name: value for name, value in os.environ.items() if _ours.get(name) != value}


def _release() -> tuple[int, int]:
    """Return the release of grpcio that is installed, (0, 0) if none is or it does not say; nothing is imported."""
    spec = find_spec("grpc")
    if spec is None or spec.origin is None:
        return 0, 0
    try:
        # Asking for the metadata of the distribution would take most of what a short command takes.
        found = re.search(r'"(\d+)\.(\d+)', Path(spec.origin).with_name("_grpcio_metadata.py").read_text("utf-8"))
    except OSError:
        return 0, 0
    return (0, 0) if found is None else (int(found[1]), int(found[2]))


def _set(name: str, value: str) -> bool:
    if name in os.environ:
        return False
    os.environ[name] = _ours[name] = value
    return True
