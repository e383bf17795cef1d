"""The demonstration runs anywhere, shows what it does, and compares heads that four processes computed."""

import os
import sys
from pathlib import Path

from tailrace_processes import Run, needs_server

from tailrace._standard_library_work import _functions
from tailrace_impl_common import head_of


def test_a_command_is_streamed_and_compared(run: Run, tmp_path: Path) -> None:
    needs_server()
    script = "import sys\nfor number in range(20000): print(number)\nsys.stderr.write('to standard error')\nsys.exit(3)"
    outcome = run("demo", "--", sys.executable, "-c", script)
    assert outcome.code == 0, outcome.errors
    assert outcome.errors == ""
    text = outcome.output.decode()
    expected = head_of(b"".join(b"%d\n" % number for number in range(20000)) + b"to standard error").hex()
    rows = {line.split()[0]: line for line in text.splitlines() if line[0] != " "}
    for who in ("source", "server", "reader"):
        assert expected in rows[who]
    assert text.count(expected) == 4
    assert "COMPLETED" in text
    assert "exit code 3" in text
    assert "| 19999" in text
    assert "four processes computed the same head" in rows["result"]
    assert os.listdir(tmp_path) == []


def test_settings_of_the_user_do_not_lead_it_astray(run: Run, tmp_path: Path) -> None:
    needs_server()
    (tmp_path / "tailrace.toml").write_text('server = "carrier-pigeon://coop"\n[serve]\ndata = "nowhere"\n')
    outcome = run("demo", "--", "echo", "hello", TAILRACE_SERVER="carrier-pigeon://coop")
    assert outcome.code == 0, outcome.errors
    assert "| hello" in outcome.output.decode()
    assert os.listdir(tmp_path) == ["tailrace.toml"]


def test_a_command_that_does_not_exist_is_wrong_usage(run: Run) -> None:
    needs_server()
    outcome = run("demo", "--", "no-such-command")
    assert outcome.code == 2
    assert "no-such-command cannot be started" in outcome.errors


def test_the_work_of_the_demonstration_finds_every_function() -> None:
    code = compile("def f():\n    def g(): pass\nclass C:\n    def h(self): pass", "x", "exec")
    assert [function.co_qualname for function in _functions(code)] == ["f", "f.<locals>.g", "C", "C.h"]
