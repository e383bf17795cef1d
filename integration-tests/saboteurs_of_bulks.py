"""Defects above the transports of bulks and queries: in what is gathered, told, compared and asked for."""

from __future__ import annotations

from typing import Any

from sabotage import executed, put, saboteur


@saboteur("REC-1", cell="websocket-sqlite")
def records_wait_for_a_full_message() -> None:
    from tailrace_impl_common import _bulk_machine, _client_bulk
    from tailrace_impl_common.record_messages import MESSAGE_BYTES

    real = _bulk_machine.BulkSender.next_message
    commit = _client_bulk.ConnectedBulk.commit
    ending: list[Any] = []

    def next_message(self: Any) -> Any:
        if self.gathered and self.gathered < MESSAGE_BYTES // 2 and self not in ending:
            executed()
            return None
        return real(self)

    async def commit_the_rest(self: Any) -> Any:
        ending.append(self._machine)
        return await commit(self)

    put(_bulk_machine.BulkSender, "next_message", next_message)
    put(_client_bulk.ConnectedBulk, "commit", commit_the_rest)


@saboteur("REC-1", cell="grpc-sqlite", trap="late-failure")
def errors_of_a_bulk_are_told_at_its_commit() -> None:
    from tailrace_impl_common import _client_bulk

    real = _client_bulk.ConnectedBulk._refuse

    def refuse(self: Any) -> None:
        if self._error is None or self._commit_wanted:
            real(self)
        executed()

    real_room = _client_bulk.ConnectedBulk._make_room

    async def make_room(self: Any) -> None:
        if self._error is not None:
            self._machine.forget()
        else:
            await real_room(self)

    put(_client_bulk.ConnectedBulk, "_refuse", refuse)
    put(_client_bulk.ConnectedBulk, "_make_room", make_room)


@saboteur("REC-2", cell="grpc-postgresql", trap="completed-flips")
def nobody_asks_what_became_of_a_commit() -> None:
    from tailrace_impl_common import _client_bulk

    async def ask(self: Any, error: Any) -> None:
        executed()
        raise error

    put(_client_bulk.ConnectedBulk, "_ask_for_the_result", ask)


@saboteur("REC-2", cell="in-process-sqlite", trap="purge-then-commit")
def a_bulk_is_committed_however_it_ends() -> None:
    from tailrace_impl_common import _serve_bulk
    from tailrace_impl_common.record_messages import CommitBulk

    real = _serve_bulk._BulkConversation.run

    async def run(self: Any) -> Any:
        try:
            return await real(self)
        except BaseException:
            if not self._ingest._records:
                raise
            executed()
            return CommitBulk(self._ingest._records, self._ingest._digest.digest())

    put(_serve_bulk._BulkConversation, "run", run)


@saboteur("REC-6", cell="websocket-sqlite")
def the_window_of_a_reader_is_not_kept() -> None:
    from tailrace_impl_common import _query_machine

    def may_send(self: Any) -> bool:
        executed()
        return True

    put(_query_machine.QuerySender, "may_send", property(may_send))
