"""What queues of records have in common, whatever database keeps them."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from tailrace_common_api import Settlement, Verdict
from tailrace_server_api import Claim

DEAD_SUFFIX = ".dead"
"""What the name of a queue of dead letters ends with."""
DEFAULT_LEASE = 30.0
"""Time that a consumer has for a record unless something else is said, in seconds."""


class State(enum.IntEnum):
    """State of a record in the table of a queue; stored."""

    READY = 0
    """It waits for a consumer. Its time is set if its lease has ended, and is not if it was given back."""
    LEASED = 1
    """It is with a consumer until its time."""
    DELAYED = 2
    """It waits for its time."""


class Candidate(NamedTuple):
    """A record that is ready, as far as it matters for who gets it."""

    id: int
    size: int


class Assignment:
    """Deals ready records, in their order, to consumers, one to each in turn.

    A consumer for whom the record that is its turn is too large gets nothing behind it: a large record would otherwise
    be overtaken for as long as there are small ones. The others are asked for that record then.
    """

    def __init__(self, claims: Sequence[Claim]) -> None:
        """Begin with what the consumers may be given."""
        self.given: list[list[int]] = [[] for _ in claims]
        """Ids of the records of each consumer, in the order of the claims."""
        self._bytes = [claim.bytes for claim in claims]
        self._claims = claims
        self._open = deque(index for index, claim in enumerate(claims) if claim.records > 0)

    @property
    def wanted(self) -> int:
        """How many records could be given at most, now."""
        return sum(self._claims[index].records - len(self.given[index]) for index in self._open)

    def deal(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """Give out records, the next ones in their order; return the first that nobody could take, if there is one."""
        for candidate in candidates:
            while self._open:
                index = self._open.popleft()
                claim, given = self._claims[index], self.given[index]
                if candidate.size <= self._bytes[index] or (claim.idle and not given):
                    given.append(candidate.id)
                    self._bytes[index] -= candidate.size
                    if len(given) < claim.records:
                        self._open.append(index)
                    break
            else:
                return candidate
        return None


class Answers:
    """Answers of one call, by verdict; only the first final one to a delivery is among them."""

    def __init__(self, settlements: Sequence[Settlement]) -> None:
        """Sort the answers; those of each verdict by id, so that all who lock records do it in the same order."""
        self.by_verdict: dict[Verdict, list[Settlement]] = {}
        answered: set[tuple[int, int]] = set()
        for settlement in sorted(settlements, key=lambda item: item[0]):
            delivery = settlement[:2]
            if settlement.attempt < 1:
                continue
            if settlement.verdict is not Verdict.EXTEND:
                if delivery in answered:
                    continue
                answered.add(delivery)
            self.by_verdict.setdefault(settlement.verdict, []).append(settlement)
