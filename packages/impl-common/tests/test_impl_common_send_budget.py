"""Sizes of chunks while many readers do not take theirs."""

from __future__ import annotations

from tailrace_impl_common._send_budget import SMALLEST_CHUNK, SendBudget

BEST = 1024 * 1024


def test_chunks_are_large_until_too_much_is_on_its_way() -> None:
    budget = SendBudget(4 * BEST)
    sizes = []
    for _ in range(6):
        size = budget.chunk_size(BEST)
        budget.in_flight += size
        sizes.append(size)
    assert sizes == [BEST] * 4 + [SMALLEST_CHUNK] * 2
    budget.in_flight -= 2 * BEST
    assert budget.chunk_size(BEST) == BEST


def test_a_chunk_is_never_larger_than_what_is_best() -> None:
    budget = SendBudget(0)
    assert budget.chunk_size(1000) == 1000
    assert budget.chunk_size(BEST) == SMALLEST_CHUNK
