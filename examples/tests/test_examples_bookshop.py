"""The bookshop shows what its README says, on both databases."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from example_processes import environment

SHOP = Path(__file__).resolve().parents[1] / "bookshop" / "shop.py"
LONGEST_END = 30
"""Time that shop and server have to end, in seconds: several times what the server grants to those that it serves."""


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> list[str]:
    """Arguments that name the database."""
    return [] if request.param == "sqlite" else ["--database", request.getfixturevalue("postgres_url")]


def visit(*arguments: str) -> str:
    outcome = subprocess.run(
        [sys.executable, SHOP, "--once", *arguments], capture_output=True, text=True, check=False, env=environment()
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")
    return outcome.stdout


def test_it_shows_queries_bulks_and_work_and_ends(database: list[str]) -> None:
    # A second visit finds the tables of the first one, if the database outlives the shop.
    for before in (0, 2000 if database else 0):
        shown = visit(*database)
        assert "5 lines, the same books" in shown
        recommended = re.findall(r"^  The .+ bought (\d+) times", shown, re.MULTILINE)
        assert len(recommended) == 5
        assert sorted(map(int, recommended), reverse=True) == list(map(int, recommended))
        assert f": {before:,} are there before,\n  {before:,} while they are sent,\n  {before + 2000:,} when" in shown
        assert f"the first result is the answer, and {before + 2000:,} are there" in shown
        assert "record 1: reference: " in shown
        assert "record 2: duplicate: " in shown
        assert shown.count(f"{before + 2000:,} are there.") == 2
        written = dict(re.findall(r"^  (Ada|Ben|Cleo|without address): (\d+)$", shown, re.MULTILINE))
        assert sum(map(int, written.values())) == 61
        assert written["without address"] == "1"
        assert "The urgent one, ordered last, was number " in shown
        assert "  0 letters wait, " in shown


def test_ctrl_c_ends_it_and_its_server() -> None:
    command = [sys.executable, str(SHOP)]
    pipe = subprocess.PIPE
    dumping = {"PYTHONPATH": str(Path(__file__).parent / "stack_dumps")}
    # Where a shell has started the tests in the background, they ignore Ctrl-C, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        shop = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment() | dumping)
    finally:
        signal.signal(signal.SIGINT, before)
    with shop:
        assert shop.stdout is not None
        for line in shop.stdout:
            if line.startswith("One more letter a second until Ctrl-C"):
                break
        # A session of its own: the server is not in the group of the shop.
        server = int(Path(f"/proc/{shop.pid}/task/{shop.pid}/children").read_text().split()[0])
        shop.send_signal(signal.SIGINT)
        try:
            # The server has the same standard error: that ends when both are gone.
            _, errors = shop.communicate(timeout=LONGEST_END)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end; shop, then server:\n{stacks_of(shop, server)}")
        assert (shop.returncode, errors) == (0, "")


def stacks_of(shop: subprocess.Popen[str], server: int) -> str:
    """Let both say where they stand, and end them."""
    with suppress(ProcessLookupError):
        shop.send_signal(signal.SIGUSR1)
        os.kill(server, signal.SIGUSR1)
    try:
        _, errors = shop.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        shop.kill()
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)
        _, errors = shop.communicate()
    return errors
