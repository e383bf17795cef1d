"""The answers of all consumers of a queue, taken together."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence

from tailrace_common_api import GoingAway, InvalidArgument, Settlement, StorageFailure, TailraceError, error_from_wire
from tailrace_impl_common import Signal
from tailrace_impl_server._live_resource import GOING_AWAY_RETRY
from tailrace_server_api import RecordQueue

logger = logging.getLogger(__name__)

_MOST_SETTLEMENTS = 8192
"""Answers that are taken in one call of the queue."""
_LONGEST_REASON = 1024
_LONGEST_TIME = 366 * 86400.0
_MOST_ATTEMPTS = 2**31 - 1
_LARGEST_ID = 2**63 - 1

Delivered = tuple[int, int]
"""A delivery: the record's number in its queue, and the attempt."""


class JoinedSettlements:
    """Takes answers and returned deliveries: those that arrive while some are being taken go together behind them.

    Belongs to one event loop. Who stops waiting withdraws nothing.
    """

    def __init__(self, name: str, queue: RecordQueue) -> None:
        """Answer ``queue``, which has this name."""
        self._name = name
        self._queue = queue
        self._answers: deque[tuple[Sequence[Settlement], asyncio.Future[Sequence[bool]]]] = deque()
        self._returned: list[Delivered] = []
        self._return: asyncio.Future[None] | None = None
        self._changed = Signal()
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; called once."""
        self._task = asyncio.create_task(self._run(), name=f"answers of {self._name}")

    async def close(self) -> None:
        """Take what is there, and nothing more; idempotent."""
        self._closed = True
        self._changed.notify()
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        """Take answers; see ``RecordQueue.settle``.

        Raises:
            InvalidArgument: One cannot be an answer.
            StorageFailure, GoingAway: None of them is taken.
        """
        checked = [_checked(settlement) for settlement in settlements]
        if self._closed:
            raise GoingAway(retry_after=GOING_AWAY_RETRY)
        if not checked:
            return ()
        answered: asyncio.Future[Sequence[bool]] = asyncio.get_running_loop().create_future()
        self._answers.append((checked, answered))
        self._changed.notify()
        return await answered

    def give_back(self, deliveries: Sequence[Delivered]) -> asyncio.Future[None]:
        """Give back what a consumer leaves, behind all answers before; the future is done when that was tried.

        What the queue does not take back comes again when its lease ends.
        """
        if self._closed or not deliveries:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        if self._return is None:
            self._return = asyncio.get_running_loop().create_future()
        self._returned.extend(deliveries)
        self._changed.notify()
        return self._return

    async def _run(self) -> None:
        while True:
            if self._answers or self._returned:
                answers, self._answers = self._answers, deque()
                returned, self._returned = self._returned, []
                told, self._return = self._return, None
                while answers:
                    await self._take(answers)
                await self._take_back(returned)
                if told is not None and not told.done():
                    told.set_result(None)
            elif self._closed:
                return
            else:
                await self._changed.wait()

    async def _take(self, answers: deque[tuple[Sequence[Settlement], asyncio.Future[Sequence[bool]]]]) -> None:
        """Take the first of ``answers``, as many as go into one call."""
        together = [answers.popleft()]
        count = len(together[0][0])
        while answers and count + len(answers[0][0]) <= _MOST_SETTLEMENTS:
            count += len(answers[0][0])
            together.append(answers.popleft())
        try:
            counted = await self._queue.settle([settlement for part, _ in together for settlement in part])
        except TailraceError as error:
            for _, answered in together:
                _fail(answered, error)
        except Exception as error:
            logger.exception("queue %s did not take answers", self._name)
            if len(together) > 1:
                # Those of one consumer may be at fault; the others must not suffer for it.
                for single in together:
                    await self._take(deque((single,)))
            else:
                _fail(together[0][1], StorageFailure(f"queue {self._name}: {type(error).__name__}"))
        else:
            first = 0
            for part, answered in together:
                if not answered.done():
                    answered.set_result(counted[first : first + len(part)])
                first += len(part)

    async def _take_back(self, deliveries: list[Delivered]) -> None:
        if not deliveries:
            return
        try:
            await self._queue.release(deliveries)
        except Exception:
            logger.warning(
                "queue %s did not take %d records back; they wait for their leases to end",
                self._name,
                len(deliveries),
                exc_info=True,
            )


def _fail(answered: asyncio.Future[Sequence[bool]], error: TailraceError) -> None:
    if not answered.done():
        # Each gets an error of its own: one that is raised in several tasks collects their tracebacks.
        answered.set_exception(error_from_wire(error.code, error.message, error.details()))


def _checked(settlement: Settlement) -> Settlement:
    """Return an answer as a queue can take it."""
    if not 0 <= settlement.id <= _LARGEST_ID:
        raise InvalidArgument(field="id", problem=f"{settlement.id} is no number of a record")
    if not 0 < settlement.attempt <= _MOST_ATTEMPTS:
        raise InvalidArgument(field="attempt", problem=f"{settlement.attempt} is no number of an attempt")
    if not (math.isfinite(settlement.seconds) and 0 <= settlement.seconds <= _LONGEST_TIME):
        problem = f"{settlement.seconds} seconds are not within 0 and {_LONGEST_TIME:g}"
        raise InvalidArgument(field="seconds", problem=problem)
    if len(settlement.reason) > _LONGEST_REASON:
        problem = f"{len(settlement.reason)} characters; at most {_LONGEST_REASON} are allowed"
        raise InvalidArgument(field="reason", problem=problem)
    # What databases do not take in text: zero bytes, and halves of surrogate pairs.
    reason = settlement.reason.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if not reason.isascii():
        reason = reason.encode("utf-8", "replace").decode()
    return settlement if reason == settlement.reason else settlement._replace(reason=reason)
