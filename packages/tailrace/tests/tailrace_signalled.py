"""The command line with a command of its own, which gets signals at a chosen moment of its life.

    python tailrace_signalled.py LOOP MOMENT…

LOOP is `uvloop` or `asyncio`. The command waits for ever if one of the moments is `waiting`; else it succeeds.
"""

import asyncio
import atexit
import os
import signal
import sys
import threading
import types

import click

from tailrace import __main__, _command, _running, _signals

LOOP, *MOMENTS = sys.argv[1:]


def signals(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def at(moment: str, *numbers: int) -> None:
    """Get signals, if this moment was chosen; they have been handled when it returns, or the next line begins."""
    if moment in MOMENTS:
        signals(*(numbers or (signal.SIGINT,)))


async def work(interruption: _running.Interruption) -> None:
    asked = asyncio.Event()
    if "asked" in MOMENTS or "asked-and-told" in MOMENTS:
        interruption.handlers.append(asked.set)
        at("asked", signal.SIGINT, signal.SIGINT)
        at("asked-and-told", signal.SIGINT, signal.SIGTERM)
        await asked.wait()
        # What is cancelled, is it here.
        await asyncio.sleep(0)
    try:
        if "waiting" in MOMENTS:
            # From elsewhere, while the loop has nothing to do.
            asyncio.get_running_loop().call_later(
                0.05, threading.Thread(target=signals, args=(signal.SIGINT,), daemon=True).start
            )
            await asyncio.Event().wait()
    finally:
        at("leaving")
        await asyncio.sleep(0)


close_runner = asyncio.Runner.close


def close(runner: asyncio.Runner) -> None:
    at("closing")
    close_runner(runner)
    at("closed")


@click.command()
def command() -> None:
    at("command")
    interruption = _running.Interruption()
    _running.run_async(work(interruption), interruption, starts_processes=LOOP == "asyncio")


def tune_collector() -> None:
    at("beginning")


if __name__ == "__main__":
    # Whoever runs the tests may have their programs ignore it, as a shell does with what it runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Each one counts, however soon; or the second is the same, however long the process stood still between the two.
    _signals._MOMENT = 3600.0 if "asked" in MOMENTS else 0.0
    asyncio.Runner.close = close  # type: ignore[assignment,method-assign]  # the moments when a loop is closed
    vars(__main__)["tune_collector"] = tune_collector
    atexit.register(at, "exiting")
    module = types.ModuleType("tailrace._commands.signalled")
    vars(module)["command"] = command
    sys.modules[module.__name__] = module
    _command._COMMANDS["signalled"] = "signalled:command"
    sys.argv[1:] = ["signalled"]
    __main__.main()
