"""Defects around contexts and announced limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sabotage import executed, put, saboteur


@saboteur("CTX-1", cell="grpc-memory")
def closed_contexts_leave_their_uploads_alone() -> None:
    from tailrace_impl_server import _contexts

    async def end_uploads(self: Any, context: str, ids: tuple[str, ...]) -> None:
        executed()

    put(_contexts.Contexts, "_end_uploads", end_uploads)


@saboteur("CTX-1", cell="websocket-memory")
def watchers_of_contexts_come_back_to_the_start() -> None:
    from tailrace_impl_common import _client_contexts
    from tailrace_impl_common.messages import WatchContext

    def watch(*, id: str, after: int) -> Any:
        executed()
        return WatchContext(id=id, after=0)

    put(_client_contexts, "WatchContext", watch)


@saboteur("CTX-1", cell="in-process-memory")
def refusals_are_no_events() -> None:
    from tailrace_impl_server import _context_events

    def refused(self: Any, context: str, error: Any) -> None:
        executed()

    put(_context_events.ContextEvents, "refused", refused)


@saboteur("RES-9", cell="in-process-memory")
def listings_do_not_look_at_contexts() -> None:
    from tailrace_impl_common import _serve
    from tailrace_impl_common.messages import List

    answer = _serve._answer

    async def blind(request: Any, manager: Any, base: str) -> Any:
        if isinstance(request, List):
            request = replace(request, filter=replace(request.filter, context=None))
            executed()
        return await answer(request, manager, base)

    put(_serve, "_answer", blind)


@saboteur("LIM-2", cell="grpc-memory")
def readers_are_told_other_limits() -> None:
    from tailrace_impl_grpc import _codec_download
    from tailrace_impl_grpc._codec_values import limits_from_proto as real

    def limits_from_proto(message: Any) -> Any:
        executed()
        return replace(real(message), max_download_window=2**40)

    put(_codec_download, "limits_from_proto", limits_from_proto)


@saboteur("LIM-2", cell="websocket-memory")
def a_limit_is_missing_in_the_handshake() -> None:
    from tailrace_impl_websocket import _codec_connection
    from tailrace_impl_websocket._codec_values import limits_to_json as real

    def limits_to_json(limits: Any) -> dict[str, object]:
        executed()
        return {**real(limits), "max_uploads": 0}

    put(_codec_connection, "limits_to_json", limits_to_json)
