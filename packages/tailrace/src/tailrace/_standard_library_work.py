"""Work to watch: compiles and checksums the installed standard library, and says so for each function of it.

Run as ``python -m tailrace._standard_library_work``; writes nothing but its output.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType

# Not part of the language, or too much of it.
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def _sources(root: Path) -> list[Path]:
    found = (path for path in root.rglob("*.py") if not _SKIPPED.intersection(path.relative_to(root).parts))
    return sorted(path for path in found if path.is_file())


def _functions(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _functions(constant)


def _describe(source: bytes, path: Path) -> Iterator[str]:
    try:
        code = compile(source, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        yield f"    not compiled: {error}"
        return
    for function in _functions(code):
        yield f"    line {function.co_firstlineno}: {function.co_qualname}, {len(function.co_code)} bytes of code"


def _say(lines: Iterable[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def main() -> int:
    """Compile everything; return the exit code."""
    warnings.simplefilter("ignore")
    root = Path(sysconfig.get_path("stdlib"))
    everything = hashlib.sha256()
    sources = _sources(root)
    _say([f"{len(sources)} modules of the standard library of Python {sys.version.split()[0]}"])
    for number, path in enumerate(sources, 1):
        source = path.read_bytes()
        everything.update(source)
        name = path.relative_to(root).as_posix()
        digest = hashlib.sha256(source).hexdigest()
        _say([f"[{number}/{len(sources)}] {name}: {len(source)} bytes, sha256 {digest}"])
        _say(_describe(source, path))
    _say([f"sha256 of all of it: {everything.hexdigest()}"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
