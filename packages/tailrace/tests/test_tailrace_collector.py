"""The garbage collector of the command line, in processes of their own: it is that of the whole process."""

import subprocess
import sys

_TUNED = """
import gc
from tailrace._collector import keep_what_is_loaded, pause_collector, tune_collector
tune_collector()
pause_collector()
assert not gc.isenabled()
keep_what_is_loaded()
frozen = gc.get_freeze_count()
class Cycle: pass
for _ in range(gc.get_threshold()[0] * 3):
    cycle = Cycle()
    cycle.itself = cycle
    lost = gc.get_count()[0]
    assert lost <= gc.get_threshold()[0] + 1, lost
print(frozen > 1000, sum(type(o) is Cycle for o in gc.get_objects()) <= gc.get_threshold()[0])
"""
_ELSEWHERE = """
import gc
before = gc.get_threshold()
import tailrace, tailrace.sync
from tailrace._collector import keep_what_is_loaded, pause_collector
pause_collector()
enabled = gc.isenabled()
keep_what_is_loaded()
print(gc.get_threshold() == before, enabled, gc.get_freeze_count())
"""


def _run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout.strip()


def test_cycles_are_still_found_when_the_collector_looks_less_often() -> None:
    assert _run(_TUNED) == "True True"


def test_a_library_leaves_the_collector_alone() -> None:
    assert _run(_ELSEWHERE) == "True True 0"
