"""When to try again: exponential backoff with full jitter, and what is worth it, as plain arithmetic.

Time and chance come from outside: whoever sleeps does so elsewhere, and clock and random source are handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tailrace_common_api import (
    ConfigurationError,
    ConnectionLost,
    DamagedBlock,
    DeadlineExceeded,
    GoingAway,
    IntegrityError,
    Overloaded,
    ProtocolError,
    TailraceError,
    WrongOffset,
)


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


RECONNECT_SCHEDULE = RetrySchedule(initial=0.05, factor=1.2)
"""How a client comes back to a server that was lost: a fifth later than it is there again, on average. With delays that
double it would be as late again as it was away."""
_MOST_DISAGREEMENTS = 3
"""Times in a row that bytes arrive otherwise than they were sent, before that is no accident of the network."""


def is_refusal_for_now(error: TailraceError) -> bool:
    """Return whether a server said with ``error`` that it did nothing, and may do it later."""
    return isinstance(error, GoingAway | Overloaded)


def is_retried(error: TailraceError) -> bool:
    """Return whether a conversation that ended with ``error`` is worth another one.

    That is so where the connection or the server was lost, and where the two sides came to differ on the way: a network
    that changes bytes changes those of data as well as those around them. What the server refuses for a reason of its
    own (a full disk, a quota, a token) is told at once.
    """
    if isinstance(error, IntegrityError):
        # What is stored does not get better by being asked for again.
        return not isinstance(error, DamagedBlock)
    if isinstance(error, WrongOffset | ProtocolError):
        return True
    return is_refusal_for_now(error) or isinstance(error, ConnectionLost | DeadlineExceeded)


class Reconnection:
    """Whether and when a conversation is taken up again.

    It may go without a connection for ``timeout`` seconds between two signs of progress; the time in which there is a
    conversation does not count. A conversation that lasted is such a sign, too.
    """

    __slots__ = (
        "_disagreements",
        "_lost_at",
        "_opened_at",
        "_random",
        "_retry",
        "_schedule",
        "_spent",
        "_timeout",
        "pending",
    )

    def __init__(
        self, timeout: float, random: Callable[[], float], schedule: RetrySchedule = RECONNECT_SCHEDULE
    ) -> None:
        """Begin with a conversation.

        Args:
            timeout: Time without a connection after which to give up, in seconds; 0: at once.
            random: Returns a number in ``[0, 1)``, evenly spread.
            schedule: The delays between two attempts.
        """
        self._timeout = timeout
        self._random = random
        self._schedule = schedule
        self._retry = Retry(schedule, random)
        self._spent = 0.0
        self._disagreements = 0
        self._lost_at: float | None = None
        self._opened_at: float | None = None
        self.pending = False
        """Whether progress would change anything: asked for with each message."""

    def lose(self, error: TailraceError, now: float) -> float | None:
        """Take note of a lost conversation, or of a failed attempt at the next one.

        Args:
            error: Why.
            now: The time, in seconds.

        Returns:
            How long to wait before the next attempt, in seconds; ``None`` when ``error`` is to be raised.
        """
        if not is_retried(error) or not self._timeout:
            return None
        if self._opened_at is not None and now - self._opened_at >= self._schedule.maximum:
            self.progress()
        self._opened_at = None
        if self._lost_at is None:
            self._lost_at = now
        if isinstance(error, IntegrityError | WrongOffset | ProtocolError):
            self._disagreements += 1
            if self._disagreements > _MOST_DISAGREEMENTS:
                return None
        left = self._timeout - self._spent - (now - self._lost_at)
        if left <= 0:
            return None
        delay = self._retry.next_delay(at_least=error.retry_after if isinstance(error, GoingAway | Overloaded) else 0.0)
        self.pending = self._retry.retries > 0
        # The last attempt is made when the time is up.
        return None if delay is None else min(delay, left)

    def open(self, now: float) -> None:
        """Take note of a new conversation: the server has answered."""
        self._opened_at = now
        if self._lost_at is not None:
            self._spent += now - self._lost_at
            self._lost_at = None

    def progress(self) -> None:
        """Start over: bytes were taken."""
        self._retry.succeed()
        self.pending = False
        self._spent = 0.0
        self._disagreements = 0
