"""What the command line tells gRPC's core, in processes of their own: the core reads it once."""

import os
import subprocess
import sys

from tailrace_processes import needs_server

_SERVED = """
import asyncio, os, sys, threading
from tailrace._grpc_core import environment_of_others, tune_grpc
told = tune_grpc()
assert "grpc" not in sys.modules
import grpc.aio

async def ask():
    async def answer(data, context):
        return data
    server = grpc.aio.server()
    same = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("s", {"m": same})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        answered = await channel.unary_unary("/s/m")(b"asked")
    await server.stop(0)
    return answered

print(told, asyncio.run(ask()), *sorted(set(os.environ) - set(environment_of_others())))
"""
_COMMANDED = """
import os, sys
from tailrace.__main__ import main
sys.argv = ["tailrace", "--version"]
try:
    main()
except SystemExit as end:
    print(end.code, *sorted(name for name in os.environ if name.startswith("GRPC_")))
"""
_HANDED_ON = """
import asyncio, sys
from types import SimpleNamespace
from tailrace._grpc_core import tune_grpc
from tailrace._record_command import run_command
from tailrace_common_api import Record
tune_grpc()
script = "import os; print(*sorted(n for n in os.environ if n.startswith(('GRPC_', 'TAILRACE_RECORD_I'))))"
delivery = SimpleNamespace(id=1, attempt=1, priority=0, record=Record(b""))
print(asyncio.run(run_command([sys.executable, "-c", script], "queue", delivery, output=None)))
"""
_NOT_INSTALLED = """
import sys
sys.modules["grpc"] = None
import importlib.util
importlib.util.find_spec = lambda name: None
from tailrace._grpc_core import tune_grpc
print(tune_grpc())
"""


def _run(script: str, **environment: str) -> tuple[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    outcome = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True, env=clean | environment
    )
    return outcome.stdout.strip(), outcome.stderr


def test_the_core_of_the_installed_release_knows_what_it_is_told() -> None:
    needs_server()
    # Otherwise it says so on standard error, at each start.
    assert _run(_SERVED) == ("True b'asked' GRPC_EXPERIMENTS GRPC_VERBOSITY", "")


def test_what_the_environment_says_already_is_left_to_everybody() -> None:
    needs_server()
    mine = {"GRPC_EXPERIMENTS": "-event_engine_fork", "GRPC_VERBOSITY": "ERROR"}
    assert _run(_SERVED, **mine) == ("False b'asked'", "")


def test_the_command_tells_it_and_its_users_programs_are_not_told() -> None:
    needs_server()
    assert _run(_COMMANDED)[0].splitlines()[-1] == "0 GRPC_EXPERIMENTS GRPC_VERBOSITY"
    assert _run(_HANDED_ON)[0].split() == ["TAILRACE_RECORD_ID", "0"]
    assert _run(_HANDED_ON, GRPC_VERBOSITY="INFO")[0].split() == ["GRPC_VERBOSITY", "TAILRACE_RECORD_ID", "0"]


def test_without_grpc_nothing_is_told() -> None:
    assert _run(_NOT_INSTALLED) == ("False", "")
