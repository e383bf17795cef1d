"""Tests that fail once by a stall do not fail the check, and are told; what is broken does fail it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "run-tests"
TESTS = '''
from pathlib import Path

import pytest


def once(name):
    """Whether this is the first time."""
    mark = Path(name)
    first = not mark.exists()
    mark.touch()
    return first


def test_good():
    pass


@pytest.mark.parametrize("name", ["a b", "é"])
def test_stalled(name):
    assert not once(name)


def test_broken():
    assert Path("mended").exists()


@pytest.mark.parametrize("number", range(4))
def test_many(number):
    assert not once(f"many-{number}")
'''


def _run(folder: Path, *words: str) -> tuple[int, str]:
    command = [sys.executable, str(SCRIPT), "-p", "no:xdist", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_them.py").write_text(TESTS)
    return tmp_path


def test_what_passes_is_run_once(folder: Path) -> None:
    code, output = _run(folder, "-k", "good")
    assert code == 0
    assert "run 1 of 3" not in output
    assert "RUN AGAIN" not in output


def test_what_failed_once_has_to_pass_three_times_and_is_told(folder: Path) -> None:
    code, output = _run(folder, "-k", "good or stalled")
    assert code == 0
    assert output.count("2 passed") == 3
    told = output[output.index("PASSED ONLY WHEN RUN AGAIN") :]
    assert "test_stalled[a b]" in told
    assert told.count("test_them.py") == 2


def test_what_fails_again_fails(folder: Path) -> None:
    code, output = _run(folder, "-k", "broken or stalled")
    assert code == 1
    assert "run 2 of 3" not in output
    assert "RUN AGAIN" not in output


def test_what_fails_again_later_fails(folder: Path) -> None:
    (folder / "test_them.py").write_text(
        "from pathlib import Path\n\n\ndef test_now_and_then():\n    count = len(Path('n').read_text())\n"
        "    Path('n').write_text('x' * (count + 1))\n    assert count % 2\n"
    )
    (folder / "n").write_text("")
    code, output = _run(folder)
    assert code == 1
    assert "run 2 of 3" in output


def test_many_failures_are_no_stall(folder: Path) -> None:
    code, output = _run(folder, "-k", "many")
    assert code == 1
    assert "run 1 of 3" not in output


def test_other_codes_stay(folder: Path) -> None:
    assert _run(folder, "--no-such-option")[0] == 4
    assert _run(folder, "-k", "absent")[0] == 5
    shutil.rmtree(folder / ".pytest_cache", ignore_errors=True)
    (folder / "test_them.py").write_text("import nothing_that_is_there\n")
    assert _run(folder)[0] != 0
