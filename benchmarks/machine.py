"""What a run was made on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

_LIBRARIES = ("grpcio", "uvicorn", "websockets", "uvloop", "xxhash")


def describe_machine() -> str:
    """Return processor, cores, memory, kernel and interpreter, with who built that when, in one line."""
    model = platform.processor() or "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    # The same version can be a third slower: what matters is whether its build was guided by a profile, which it does
    # not tell about itself; date and compiler tell which build it was.
    built = " ".join(platform.python_build()[1].split()[:3])
    interpreter = f"{platform.python_implementation()} {platform.python_version()}"
    system = f"{platform.system()} {platform.release()}, {interpreter} ({built}, {platform.python_compiler()})"
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {system}"


def describe_libraries() -> str:
    """Return the versions of the libraries that carry the bytes, in one line."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)


def describe_code() -> str:
    """Return the commit that was measured, and whether files differ from it."""
    here = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(command, cwd=here, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def load_average() -> float:
    """Return how many processes have wanted a processor in the last minute, on average."""
    return os.getloadavg()[0]
