"""Defects of consumers: in what they ask for, and in what they give back."""

from __future__ import annotations

from typing import Any

from sabotage import executed, put, saboteur


@saboteur("REC-8", cell="websocket-sqlite")
def what_is_held_is_not_counted_by_who_comes_back() -> None:
    from tailrace_impl_common import _work_machine

    def allowance(self: Any) -> tuple[int, int]:
        if self._earlier:
            executed()
        return (0, 0) if self._leaving else (self._records, self._size)

    put(_work_machine.WorkerMachine, "_allowance", allowance)


@saboteur("REC-9", cell="grpc-sqlite")
def what_is_held_from_before_is_kept_by_who_leaves() -> None:
    from tailrace_impl_common import _work_machine

    def give_back(self: Any) -> None:
        if self._earlier:
            executed()

    put(_work_machine.WorkerMachine, "_give_back", give_back)


@saboteur("REC-9", cell="websocket-postgresql")
def answers_behind_the_end_are_lost() -> None:
    from tailrace_impl_common import _client_work

    async def settle_late(self: Any, settlement: Any, delivery: Any) -> None:
        executed()
        delivery.set_settled()

    put(_client_work.ConnectedConsumer, "_settle_late", settle_late)
