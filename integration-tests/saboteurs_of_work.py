"""Defects of work under credit: in what is claimed, told, given back and answered."""

from __future__ import annotations

import asyncio
from typing import Any

from sabotage import executed, put, saboteur


def let_clients_take_everything() -> None:
    """Let clients not hold the server to their credit: they would notice by themselves, and hide what it does."""
    from tailrace_impl_common import _work_machine

    def deliver(self: Any, records: Any) -> Any:
        self.held.update({(record.id, record.attempt): record.size for record in records})
        return records

    put(_work_machine.WorkerMachine, "_deliver", deliver)


@saboteur("REC-8", cell="websocket-sqlite")
def one_record_more_than_granted_is_claimed() -> None:
    from tailrace_impl_server import _work_session

    real = _work_session.DispatchedSession.claim

    def claim(self: Any, records: int, bytes: int) -> Any:
        found = real(self, records, bytes)
        executed()
        return None if found is None else found._replace(records=found.records + 1)

    put(_work_session.DispatchedSession, "claim", claim)
    let_clients_take_everything()


@saboteur("REC-8", cell="grpc-postgresql")
def bytes_of_deliveries_are_not_counted() -> None:
    from tailrace_impl_server import _work_session

    real = _work_session.DispatchedSession.hand

    def hand(self: Any, records: Any) -> None:
        before = self._size
        real(self, records)
        self._size = before
        self._outstanding.update(dict.fromkeys(self._outstanding, 0))
        executed()

    put(_work_session.DispatchedSession, "hand", hand)
    let_clients_take_everything()


@saboteur("REC-8", cell="grpc-postgresql")
def answers_give_credit_back_twice() -> None:
    """What was counted on while it was being taken is still counted on behind that."""
    from tailrace_impl_server import _work_session

    def stop_counting_on(self: Any, answering: Any) -> None:
        if not answering:
            return
        executed()
        self._claimed_for = None
        self._handed += self._ahead
        self._ahead = []

    put(_work_session.DispatchedSession, "_stop_counting_on", stop_counting_on)
    let_clients_take_everything()


@saboteur("REC-9", cell="grpc-sqlite")
def consumers_that_leave_give_nothing_back() -> None:
    from tailrace_impl_server import _work_session

    async def leave(self: Any) -> None:
        executed()
        await self.release()

    put(_work_session.DispatchedSession, "leave", leave)


@saboteur("REC-9", cell="websocket-postgresql")
def leases_are_not_extended_by_themselves() -> None:
    from tailrace_impl_common import _client_work

    async def extend(self: Any) -> None:
        executed()
        await asyncio.get_running_loop().create_future()

    put(_client_work.ConnectedConsumer, "_extend_leases", extend)


@saboteur("REC-9", cell="grpc-postgresql")
def an_ended_lease_gives_its_credit_back() -> None:
    from tailrace_impl_server import _work_session

    real = _work_session.DispatchedSession.hand

    def hand(self: Any, records: Any) -> None:
        real(self, records)
        places = [(record.id, record.attempt) for record in records]

        def forget() -> None:
            for place in places:
                self._size -= self._outstanding.pop(place, 0)
            executed()
            self._dispatcher.consider(self)

        asyncio.get_running_loop().call_later(self.lease, forget)

    put(_work_session.DispatchedSession, "hand", hand)
    let_clients_take_everything()


@saboteur("REC-10", cell="websocket-sqlite")
def work_is_set_aside_for_consumers() -> None:
    from tailrace_impl_server import _work_session

    session = _work_session.DispatchedSession
    real_claim, real_hand, real_settle = session.claim, session.hand, session.settle
    aside: dict[Any, list[Any]] = {}

    def claim(self: Any, records: int, bytes: int) -> Any:
        found = real_claim(self, records, bytes)
        if found is None or aside.get(self):
            return None
        return found._replace(records=found.records + 10)

    def hand(self: Any, records: Any) -> None:
        free = self._records - len(self._outstanding)
        aside.setdefault(self, []).extend(records[free:])
        if records[free:]:
            executed()
        real_hand(self, records[:free])

    async def settle(self: Any, settlements: Any) -> Any:
        counted = await real_settle(self, settlements)
        waiting = aside.get(self, [])
        free = self._records - len(self._outstanding)
        if waiting and free > 0:
            taken, waiting[:] = waiting[:free], waiting[free:]
            real_hand(self, taken)
        return counted

    put(session, "claim", claim)
    put(session, "hand", hand)
    put(session, "settle", settle)


@saboteur("REC-11", cell="grpc-sqlite")
def nobody_is_told_of_a_lack_of_credit() -> None:
    from tailrace_impl_server import _work_session

    def set_stalled(self: Any, stalled: bool) -> None:
        if stalled:
            executed()

    put(_work_session.DispatchedSession, "set_stalled", set_stalled)


@saboteur("REC-11", cell="websocket-postgresql")
def unused_credit_is_not_taken_back() -> None:
    from tailrace_impl_server import _work_session

    real = _work_session.DispatchedSession.set_credit

    def set_credit(self: Any, sequence: int, *, records: int, bytes: int) -> None:
        if records < self._records:
            executed()
        real(self, sequence, records=max(records, self._records), bytes=max(bytes, self._bytes))

    put(_work_session.DispatchedSession, "set_credit", set_credit)


@saboteur("REC-12", cell="grpc-sqlite")
def acknowledgements_are_answered_and_forgotten() -> None:
    from tailrace_common_api import Verdict
    from tailrace_impl_server import _work_settlements

    real = _work_settlements.JoinedSettlements.settle

    async def settle(self: Any, settlements: Any) -> Any:
        kept = [answer for answer in settlements if answer.verdict is not Verdict.ACKNOWLEDGE]
        counted = iter(await real(self, kept))
        if len(kept) < len(settlements):
            executed()
        return [answer.verdict is Verdict.ACKNOWLEDGE or next(counted) for answer in settlements]

    put(_work_settlements.JoinedSettlements, "settle", settle)
