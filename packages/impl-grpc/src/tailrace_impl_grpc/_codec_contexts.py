"""The messages about contexts to protobuf and back."""

from __future__ import annotations

from tailrace_impl_common.messages import (
    ClientMessage,
    CloseContext,
    Context,
    ContextEvent,
    CreateContext,
    GetContext,
    ServerMessage,
    WatchContext,
)
from tailrace_impl_grpc._codec_values import (
    clean_text,
    context_state_from_proto,
    context_state_to_proto,
    event_kind_from_proto,
    event_kind_to_proto,
    parse,
    sized,
    state_from_proto,
    state_to_proto,
)
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb


def encode_create_context_request(message: ClientMessage) -> bytes:
    match message:
        case CreateContext(attributes=attributes):
            return sized(pb.CreateContextRequest(attributes=dict(attributes)).SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} does not create a context")


def decode_create_context_request(data: bytes) -> ClientMessage:
    return CreateContext(attributes=dict(parse(pb.CreateContextRequest, sized(data)).attributes))


def encode_get_context_request(message: ClientMessage) -> bytes:
    match message:
        case GetContext(id=id):
            return sized(pb.GetContextRequest(id=id).SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} does not ask for a context")


def decode_get_context_request(data: bytes) -> ClientMessage:
    return GetContext(id=parse(pb.GetContextRequest, sized(data)).id)


def encode_close_context_request(message: ClientMessage) -> bytes:
    match message:
        case CloseContext(id=id):
            return sized(pb.CloseContextRequest(id=id).SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} does not close a context")


def decode_close_context_request(data: bytes) -> ClientMessage:
    return CloseContext(id=parse(pb.CloseContextRequest, sized(data)).id)


def encode_watch_context_request(message: ClientMessage) -> bytes:
    match message:
        case WatchContext(id=id, after=after):
            return sized(pb.WatchContextRequest(id=id, after=after).SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} does not watch a context")


def decode_watch_context_request(data: bytes) -> ClientMessage:
    request = parse(pb.WatchContextRequest, sized(data))
    return WatchContext(id=request.id, after=request.after)


def encode_context(message: ServerMessage) -> bytes:
    match message:
        case Context():
            context = pb.Context(
                id=message.id,
                attributes=dict(message.attributes),
                state=context_state_to_proto(message.state),
                created_at=message.created_at,
                closed_at=message.closed_at,
                resources=message.resources,
                bytes=message.bytes,
                last_event=message.last_event,
            )
            return sized(context.SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} is no context")


def decode_context(data: bytes) -> ServerMessage:
    context = parse(pb.Context, sized(data))
    return Context(
        id=context.id,
        attributes=dict(context.attributes),
        state=context_state_from_proto(context.state),
        created_at=context.created_at,
        closed_at=context.closed_at if context.HasField("closed_at") else None,
        resources=context.resources,
        bytes=context.bytes,
        last_event=context.last_event,
    )


def encode_context_event(message: ServerMessage) -> bytes:
    match message:
        case ContextEvent():
            event = pb.ContextEvent(
                sequence=message.sequence,
                at=message.at,
                kind=event_kind_to_proto(message.kind),
                id=message.id,
                state=pb.RESOURCE_STATE_UNSPECIFIED if message.state is None else state_to_proto(message.state),
                size=message.size,
                code=message.code,
                message=None if message.message is None else clean_text(message.message),
            )
            return sized(event.SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} is no event of a context")


def decode_context_event(data: bytes) -> ServerMessage:
    event = parse(pb.ContextEvent, sized(data))
    return ContextEvent(
        sequence=event.sequence,
        at=event.at,
        kind=event_kind_from_proto(event.kind),
        id=event.id if event.HasField("id") else None,
        state=None if event.state == pb.RESOURCE_STATE_UNSPECIFIED else state_from_proto(event.state),
        size=event.size if event.HasField("size") else None,
        code=event.code if event.HasField("code") else None,
        message=event.message if event.HasField("message") else None,
    )
