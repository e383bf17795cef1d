"""Defects in how clients come back after a lost connection."""

from __future__ import annotations

from typing import Any

from sabotage import executed, put, saboteur


@saboteur("UPL-9")
def what_was_on_the_way_is_not_sent_again() -> None:
    from tailrace_impl_common import _unannounced

    real = _unannounced.Unannounced.take_from

    def take_from(self: Any, offset: int) -> list[Any]:
        if real(self, offset):
            executed()
        return []

    put(_unannounced.Unannounced, "take_from", take_from)


@saboteur("UPL-9")
def heads_are_not_compared_when_an_upload_goes_on() -> None:
    from dataclasses import replace

    from tailrace_impl_common import _upload_machine

    real = _upload_machine.UploadSender.resume

    def resume(self: Any, opened: Any, *, chunk_size: int) -> Any:
        state = self._sent.state_at(opened.offset, self._hasher)
        if state is not None and not opened.status.state.terminal and state.head() != opened.head:
            executed()
            opened = replace(opened, head=state.head())
        return real(self, opened, chunk_size=chunk_size)

    put(_upload_machine.UploadSender, "resume", resume)


@saboteur("UPL-9", trap="completed-flips")
def a_lost_acknowledgement_is_a_failure() -> None:
    from tailrace_common_api import AlreadyTerminal
    from tailrace_impl_common import _upload_machine

    real = _upload_machine.UploadSender.resume

    def resume(self: Any, opened: Any, *, chunk_size: int) -> Any:
        resumption = real(self, opened, chunk_size=chunk_size)
        if resumption is _upload_machine.Resumption.ENDED:
            executed()
            raise AlreadyTerminal(id=opened.status.id, state=opened.status.state.value)
        return resumption

    put(_upload_machine.UploadSender, "resume", resume)


@saboteur("UPL-9", cell="grpc-filesystem")
def lost_data_is_not_told() -> None:
    from tailrace_impl_common import _upload_machine
    from tailrace_impl_common.messages import Abort

    real = _upload_machine.UploadSender.give_up

    def give_up(self: Any, opened: Any) -> Any:
        executed()
        _, error = real(self, opened)
        return Abort("aborted by the client"), error

    put(_upload_machine.UploadSender, "give_up", give_up)


@saboteur("UPL-10")
def a_deposed_uploader_comes_back() -> None:
    from tailrace_common_api import Fenced
    from tailrace_impl_common import _retry

    real = _retry.is_retried

    def is_retried(error: Any) -> bool:
        if isinstance(error, Fenced):
            executed()
            return True
        return real(error)

    put(_retry, "is_retried", is_retried)


@saboteur("UPL-7")
def what_is_announced_is_kept() -> None:
    from tailrace_impl_common import _unannounced

    def announce(self: Any, size: int) -> None:
        executed()

    put(_unannounced.Unannounced, "announce", announce)


@saboteur("DWN-5")
def a_follower_begins_again() -> None:
    from tailrace_impl_common import _download_machine

    real = _download_machine.DownloadReceiver.again

    def again(self: Any, request: Any) -> Any:
        if self.offset:
            executed()
            self.started = None
        real(self, request)
        return request

    put(_download_machine.DownloadReceiver, "again", again)


def _never_again() -> None:
    from tailrace_impl_common import _retry

    def lose(self: Any, error: Any, now: float) -> None:
        executed()

    put(_retry.Reconnection, "lose", lose)


@saboteur("DWN-5")
def a_lost_connection_ends_a_reader() -> None:
    _never_again()


@saboteur("USE-6", cell="websocket-filesystem")
def a_lost_connection_ends_a_command() -> None:
    _never_again()


@saboteur("DWN-5", cell="grpc-filesystem")
def a_second_address_is_never_tried() -> None:
    from tailrace_impl_common import _failover

    def turn_from(self: Any, connection: Any) -> None:
        executed()

    put(_failover.FailoverConnection, "_turn_from", turn_from)
