"""Drives the client of a peer: one line of JSON in, a list of method and arguments; one line out, result or error.

Each module of this folder that ends in ``_client`` has a class ``Client``, constructed with the settings, a dictionary.
Its methods may be coroutines. Times are taken within them, so that what is measured is the work alone.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
import traceback
from importlib.util import find_spec
from typing import Any, TextIO


async def _answer(client: object, method: str, arguments: list[Any]) -> dict[str, Any]:
    if method == "ready":
        return {"result": True}
    try:
        result = getattr(client, method)(*arguments)
        return {"result": await result if inspect.isawaitable(result) else result}
    except Exception as error:  # noqa: BLE001  # Whoever asked shall learn of it, whatever it is.
        traceback.print_exc()
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        return {"error": f"{type(error).__name__}: {error}"}


async def main(module: str, settings: dict[str, Any], answers: TextIO) -> None:
    """Answer until the standard input ends."""
    client = importlib.import_module(f"peers.programs.{module}").Client(settings)
    while line := await asyncio.to_thread(sys.stdin.readline):
        method, *arguments = json.loads(line)
        print(json.dumps(await _answer(client, method, arguments)), file=answers, flush=True)


if __name__ == "__main__":
    # What a library prints goes to the log; the answers have the pipe for themselves.
    with os.fdopen(os.dup(1), "w") as pipe:
        os.dup2(2, 1)
        work = main(sys.argv[1], json.loads(sys.argv[2]), pipe)
        if find_spec("uvloop") is None:
            asyncio.run(work)
        else:
            import uvloop

            uvloop.run(work)
