"""When to try again: exponential backoff with full jitter, as plain arithmetic.

Time and chance come from outside: whoever sleeps does so elsewhere, and the random source is handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tailrace_common_api import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySchedule:
    """How often and after how long something is tried again.

    Raises:
        ConfigurationError: A value breaks the rule that its docstring states.
    """

    initial: float = 0.1
    """Longest delay before the first retry, in seconds; positive."""
    factor: float = 2.0
    """What the longest delay grows by with each retry; at least 1."""
    maximum: float = 10.0
    """Bound of the longest delay, in seconds; at least ``initial``."""
    retries: int | None = None
    """Number of retries; ``None`` for no bound of its own."""

    def __post_init__(self) -> None:
        if not self.initial > 0:
            raise ConfigurationError(field="initial", problem="not a positive number of seconds")
        if not self.factor >= 1:
            raise ConfigurationError(field="factor", problem="below 1")
        if not self.maximum >= self.initial:
            raise ConfigurationError(field="maximum", problem="below the initial delay")
        if self.retries is not None and self.retries < 0:
            raise ConfigurationError(field="retries", problem="negative")


class Retry:
    """One run through a schedule."""

    __slots__ = ("_bound", "_random", "_retries", "_schedule")

    def __init__(self, schedule: RetrySchedule, random: Callable[[], float]) -> None:
        """Start a run.

        Args:
            schedule: The schedule.
            random: Returns a number in ``[0, 1)``, evenly spread.
        """
        self._schedule = schedule
        self._random = random
        self._retries = 0
        self._bound = schedule.initial

    @property
    def retries(self) -> int:
        """Delays handed out since the start or the last success."""
        return self._retries

    def next_delay(self, *, at_least: float = 0.0) -> float | None:
        """Return how long to wait before the next retry, in seconds; ``None`` when there is none left.

        Args:
            at_least: Shortest delay that the peer asked for, in seconds. The jitter comes on top of it, so that all who
                were told the same do not return at the same moment.
        """
        if self._schedule.retries is not None and self._retries >= self._schedule.retries:
            return None
        self._retries += 1
        delay = at_least + self._random() * self._bound
        self._bound = min(self._bound * self._schedule.factor, self._schedule.maximum)
        return delay

    def succeed(self) -> None:
        """Start over: what was tried worked."""
        self._retries = 0
        self._bound = self._schedule.initial
