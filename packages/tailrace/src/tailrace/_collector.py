"""A garbage collector that suits thousands of connections."""

from __future__ import annotations

import gc

_THRESHOLDS = (10_000, 10, 10)
"""New objects before the youngest are looked at, and how often that happens before the next older ones are, too."""


def tune_collector() -> None:
    """Let the collector look for cycles less often.

    Reference counts free almost everything; the collector walks what lives, which is much where many connections are
    open, and by default after every 700 new objects. What it then finds late are cycles of few objects. To be called
    first thing in a program, never in a library: it changes the whole process. Who embeds the server in an own program
    can do the same by ``gc.set_threshold(10_000, 10, 10)``, and ``gc.freeze()`` when it has started.
    """
    gc.set_threshold(*_THRESHOLDS)


def pause_collector() -> None:
    """Let the collector look for nothing until :func:`keep_what_is_loaded`: what a start loads stays.

    Only in a process whose collector was tuned: in another one this is not for the command to decide.
    """
    if _is_tuned():
        gc.disable()


def keep_what_is_loaded() -> None:
    """Let the collector walk nothing any more of what there is now: modules, classes, what was set up at the start.

    Only in a process whose collector was tuned: in another one this is not for the command to decide.
    """
    if _is_tuned():
        gc.freeze()
        gc.enable()


def _is_tuned() -> bool:
    # Of the other thresholds some versions of Python take no notice.
    return gc.get_threshold()[0] == _THRESHOLDS[0]
