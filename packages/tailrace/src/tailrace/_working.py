"""What `tailrace work` does: from the records of a queue to commands, and back to answers."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tailrace._connect import connect
from tailrace._messages import complain, say
from tailrace._progress import record_progress
from tailrace._record_command import run_command
from tailrace._running import Interruption
from tailrace._status_report import json_line
from tailrace_client_download_api import Delivery, RecordClient, RecordConsumer
from tailrace_common_api import LeaseLost, StorageFailure, Verdict

# Time between two looks at whether the queue is empty, in seconds.
_LOOK = 0.5
# First and longest pause before an answer that the server could not take is given again, in seconds.
_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkJob:
    """What is worked on, and how."""

    queue: str
    command: Sequence[str]
    """Program and arguments, run for each record."""
    credit: int
    """Most commands at the same time."""
    credit_bytes: int
    """Most bytes of their records."""
    retry_delay: float
    """Time until a record whose command failed is delivered again, in seconds."""
    dead_letter_exit_code: int | None
    """Exit code that says that the record cannot be worked on; ``None`` for none."""
    most: int | None
    """Most records to take; ``None`` for all that come."""
    drain: bool
    """Whether to end when nothing waits in the queue."""
    grace: float
    """Time that running commands have to end behind a signal, in seconds."""
    as_json: bool
    """Whether answers are printed as JSON; the output of commands goes to standard error then."""


async def work_queue(url: str, job: WorkJob, interruption: Interruption) -> None:
    """Work until there is enough, or until a signal; print what becomes of records.

    Behind the first signal no record is taken, and running commands have the grace to end; the second one ends them.

    Raises:
        Interrupted: The second signal ended it.
        TailraceError: The server's error, or the connection's when it did not come back.
        OSError: The command cannot be started.
    """
    report = _Report(job)
    try:
        # What is printed on the terminal shows the progress by itself.
        with record_progress(job.queue, shown=not sys.stdout.isatty()) as report.progress:
            async with connect(url) as client:
                await _Worker(client, job, report).work(interruption)
    finally:
        if report.begun:
            report.ended()


class _Report:
    """What is said of records, and how many there were of each kind."""

    def __init__(self, job: WorkJob) -> None:
        self._job = job
        self._counts: Counter[str] = Counter()
        self.progress: Callable[[int], None] = lambda _: None
        self.begun = False
        """Whether the server lets this work on the queue."""

    def answered(self, delivery: Delivery, verdict: str, code: int | None) -> None:
        """Count an answer; ``code`` is the exit code of the command, if it came to that."""
        self._counts[verdict] += 1
        self.progress(self._counts.total())
        if self._job.as_json:
            fields = {
                "id": delivery.id,
                "attempt": delivery.attempt,
                "priority": delivery.priority,
                "key": delivery.record.key,
                "exit_code": code,
            }
            say(json_line({"event": "answered", "verdict": verdict, **fields}))
        elif verdict != Verdict.ACKNOWLEDGE.value and code is not None:
            complain(f"record {delivery.id}, attempt {delivery.attempt}: {describe_code(code)}: {_MEANING[verdict]}")

    def ended(self) -> None:
        """Say how many there were."""
        if self._job.as_json:
            say(json_line({"event": "ended", **{verdict: self._counts[verdict] for verdict in _MEANING}}))
        else:
            complain(", ".join(f"{self._counts[verdict]:,} {meaning}" for verdict, meaning in _MEANING.items()))


_RETURNED = "returned"
_LOST = "lost"
_MEANING = {
    Verdict.ACKNOWLEDGE.value: "done",
    Verdict.REQUEUE.value: "to be delivered again",
    Verdict.DEAD_LETTER.value: "to the dead letters",
    _RETURNED: "given back",
    _LOST: "lost to somebody else",
}


def describe_code(code: int) -> str:
    """Return what an exit code says, for people."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


class _Worker:
    """Takes records as commands end, and answers for them. The credit is what limits the commands."""

    def __init__(self, client: RecordClient, job: WorkJob, report: _Report) -> None:
        self._client = client
        self._job = job
        self._report = report
        self._answered = 0
        self._credit = self._level()
        self._consumer: RecordConsumer = client.work(
            job.queue, credit=self._credit, credit_bytes=job.credit_bytes, extend=True
        )
        # A level of credit is in force before the next one is asked for.
        self._crediting = asyncio.Lock()
        self._stopping = False
        self._interrupted = asyncio.Event()
        self._enough = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._running: set[asyncio.Task[None]] = set()

    async def work(self, interruption: Interruption) -> None:
        """Work until there is enough, or until a signal.

        Raises:
            TailraceError, OSError: As for :func:`work_queue`; what runs is ended then.
        """
        async with self._consumer:
            self._report.begun = True
            # Before, a signal ends the command as any other.
            interruption.handlers.append(self._interrupted.set)
            try:
                async with asyncio.TaskGroup() as group:
                    taking = group.create_task(self._take(group))
                    looking = group.create_task(self._look() if self._job.drain else self._enough.wait())
                    interrupted = group.create_task(self._interrupted.wait())
                    enough = group.create_task(self._enough.wait())
                    await asyncio.wait({interrupted, enough}, return_when=asyncio.FIRST_COMPLETED)
                    self._stopping = True
                    looking.cancel()
                    resting = group.create_task(self._come_to_rest())
                    # Without a signal, what runs may take as long as it does.
                    await asyncio.wait({interrupted, resting}, return_when=asyncio.FIRST_COMPLETED)
                    await asyncio.wait({resting}, timeout=self._job.grace)
                    for task in (resting, taking, interrupted, enough, *self._running):
                        task.cancel()
            except BaseExceptionGroup as errors:
                raise _first(errors) from None

    async def _take(self, group: asyncio.TaskGroup) -> None:
        async for delivery in self._consumer:
            work = self._give_back(delivery) if self._stopping else self._work_on(delivery)
            task = group.create_task(work)
            self._running.add(task)
            self._idle.clear()
            task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not self._running:
            self._idle.set()

    async def _come_to_rest(self) -> None:
        """Take no more, and wait until nothing runs."""
        await self._set_credit(0)
        await self._idle.wait()

    async def _work_on(self, delivery: Delivery) -> None:
        # Where a program reads the answers, it reads nothing else.
        output = sys.stderr.fileno() if self._job.as_json else None
        code = await run_command(self._job.command, self._job.queue, delivery, output=output)
        if self._job.most is not None:
            self._answered += 1
            # Before the answer, so that it lets no record come beyond the last one.
            await self._set_credit(self._level())
        verdict = self._verdict(code)
        if not await self._answer(delivery, verdict, describe_code(code)):
            self._report.answered(delivery, _LOST, code)
        else:
            self._report.answered(delivery, verdict.value, code)
        if self._answered == self._job.most:
            self._enough.set()

    async def _give_back(self, delivery: Delivery) -> None:
        if await self._answer(delivery, None, "the worker is stopping"):
            self._report.answered(delivery, _RETURNED, None)

    def _verdict(self, code: int) -> Verdict:
        if code == 0:
            return Verdict.ACKNOWLEDGE
        return Verdict.DEAD_LETTER if code == self._job.dead_letter_exit_code else Verdict.REQUEUE

    async def _answer(self, delivery: Delivery, verdict: Verdict | None, reason: str) -> bool:
        """Answer until the server has taken it; return whether the answer counts. No verdict: back, at once."""
        pause = _PAUSE
        while True:
            try:
                if verdict is Verdict.ACKNOWLEDGE:
                    await delivery.ack()
                elif verdict is Verdict.DEAD_LETTER:
                    await delivery.reject(reason, dead_letter=True)
                else:
                    await delivery.reject(reason, delay=0.0 if verdict is None else self._job.retry_delay)
            except LeaseLost:
                return False
            except StorageFailure as error:
                complain(f"record {delivery.id}: the answer is given again: {error}")
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            return True

    def _level(self) -> int:
        """Return how many records may be unanswered."""
        return self._job.credit if self._job.most is None else min(self._job.credit, self._job.most - self._answered)

    async def _set_credit(self, records: int) -> None:
        async with self._crediting:
            if self._stopping:
                records = 0
            if records != self._credit:
                await self._consumer.set_credit(records, self._job.credit_bytes)
                self._credit = records

    async def _look(self) -> None:
        """Look whether the queue is empty, whenever nothing runs; then there is enough."""
        while True:
            await self._idle.wait()
            if await self._is_empty():
                # What is on its way would be missed; behind this, nothing is.
                await self._set_credit(0)
                if self._idle.is_set() and not self._consumer.outstanding and await self._is_empty():
                    self._enough.set()
                    return
                await self._set_credit(self._level())
            await asyncio.sleep(_LOOK)

    async def _is_empty(self) -> bool:
        figures = await self._client.queue_figures(self._job.queue)
        return not figures.ready and not figures.delayed


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
