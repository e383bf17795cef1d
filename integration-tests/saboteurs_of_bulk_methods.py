"""Defects of records over gRPC, and of methods of other services that are bulks."""

from __future__ import annotations

from typing import Any

from sabotage import executed, put, saboteur


@saboteur("REC-0", cell="grpc-sqlite")
def keys_of_records_are_lost_on_the_way() -> None:
    from tailrace_impl_grpc import _codec_records
    from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb

    def without(batch: Any) -> Any:
        executed()
        return pb.RecordBatch(data=batch.data)

    put(_codec_records, "_batch_to_proto", without)


@saboteur("REC-0", cell="grpc-sqlite")
def fields_of_messages_have_other_names_in_json() -> None:
    from google.protobuf.json_format import MessageToJson

    from tailrace_impl_grpc import _bulk_methods

    def renamed(message: Any, content_type: str) -> bytes:
        executed()
        return MessageToJson(message).replace("name", "Name").encode()

    put(_bulk_methods, "content_of", renamed)


@saboteur("REC-5", cell="grpc-sqlite")
def methods_of_other_services_forget_the_idempotency_key() -> None:
    from tailrace_impl_grpc import _bulk_methods

    def none(context: Any) -> None:
        executed()

    put(_bulk_methods, "_idempotency_key", none)


@saboteur("REC-2", cell="grpc-sqlite")
def the_end_of_a_cancelled_call_is_taken_for_its_half_close() -> None:
    import asyncio

    from tailrace_impl_grpc import _bulk_methods

    async def commit(self: Any, request: Any, service: Any, endpoint: Any) -> Any:
        # As if every end of the messages were the client's.
        executed()
        serving = asyncio.ensure_future(run(self, request, service, endpoint))
        return await asyncio.shield(serving)

    async def nothing(self: Any) -> None:
        return

    run = _bulk_methods._MethodStream.run
    put(_bulk_methods._MethodStream, "run", commit)
    put(_bulk_methods._MethodStream, "_check_half_closed", nothing)
