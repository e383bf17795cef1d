"""Watching, and everything that has one answer, to protobuf and back."""

from __future__ import annotations

from tailrace_common_api import Page, Position, Status
from tailrace_impl_common.messages import (
    ClientMessage,
    Delete,
    Done,
    GetHeads,
    GetStatus,
    Heads,
    List,
    Listed,
    Locate,
    Located,
    ServerMessage,
    Watch,
)
from tailrace_impl_grpc._codec_values import (
    check_head,
    list_filter_from_proto,
    list_request_to_proto,
    optional_place,
    parse,
    place,
    sized,
    status_from_proto,
    status_to_proto,
)
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb


def encode_watch_request(message: ClientMessage) -> bytes:
    match message:
        case Watch(id=id, token=token):
            return sized(pb.WatchRequest(id=id, token=token).SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} is no message of a watcher")


def decode_watch_request(data: bytes) -> ClientMessage:
    request = parse(pb.WatchRequest, sized(data))
    return Watch(id=request.id, token=request.token if request.HasField("token") else None)


def encode_status(message: ServerMessage) -> bytes:
    match message:
        case Status():
            return sized(status_to_proto(message).SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} is no status")


def decode_status(data: bytes) -> ServerMessage:
    return status_from_proto(parse(pb.Status, sized(data)))


def encode_get_status_request(message: ClientMessage) -> bytes:
    match message:
        case GetStatus(id=id, token=token):
            return sized(pb.GetStatusRequest(id=id, token=token).SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} does not ask for a status")


def decode_get_status_request(data: bytes) -> ClientMessage:
    request = parse(pb.GetStatusRequest, sized(data))
    return GetStatus(id=request.id, token=request.token if request.HasField("token") else None)


def encode_heads_request(message: ClientMessage) -> bytes:
    match message:
        case GetHeads(id=id, token=token, sizes=sizes):
            request = pb.HeadsRequest(id=id, token=token, sizes=[place(size) for size in sizes])
            return sized(request.SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} does not ask for heads")


def decode_heads_request(data: bytes) -> ClientMessage:
    request = parse(pb.HeadsRequest, sized(data))
    token = request.token if request.HasField("token") else None
    return GetHeads(id=request.id, token=token, sizes=tuple(request.sizes))


def encode_heads_response(message: ServerMessage) -> bytes:
    match message:
        case Heads(heads):
            return sized(pb.HeadsResponse(heads=heads).SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} holds no heads")


def decode_heads_response(data: bytes) -> ServerMessage:
    return Heads(tuple(check_head(head) for head in parse(pb.HeadsResponse, sized(data)).heads))


def encode_locate_request(message: ClientMessage) -> bytes:
    match message:
        case Locate(id=id, token=token, line=line, offset=offset):
            request = pb.LocateRequest(id=id, token=token, line=optional_place(line), offset=optional_place(offset))
            return sized(request.SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} does not ask for a place")


def decode_locate_request(data: bytes) -> ClientMessage:
    request = parse(pb.LocateRequest, sized(data))
    kind = request.WhichOneof("place")
    return Locate(
        id=request.id,
        token=request.token if request.HasField("token") else None,
        line=request.line if kind == "line" else None,
        offset=request.offset if kind == "offset" else None,
    )


def encode_locate_response(message: ServerMessage) -> bytes:
    match message:
        case Located(Position(line, offset)):
            return sized(pb.LocateResponse(line=line, offset=offset).SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} holds no place")


def decode_locate_response(data: bytes) -> ServerMessage:
    response = parse(pb.LocateResponse, sized(data))
    return Located(Position(response.line, response.offset))


def encode_list_request(message: ClientMessage) -> bytes:
    match message:
        case List(filter=filter, limit=limit, page_token=page_token):
            return sized(list_request_to_proto(filter, limit, page_token).SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} does not ask for a listing")


def decode_list_request(data: bytes) -> ClientMessage:
    request = parse(pb.ListRequest, sized(data))
    return List(
        filter=list_filter_from_proto(request),
        limit=request.limit,
        page_token=request.page_token if request.HasField("page_token") else None,
    )


def encode_list_response(message: ServerMessage) -> bytes:
    match message:
        case Listed(Page(statuses, next_token)):
            response = pb.ListResponse(
                statuses=[status_to_proto(status) for status in statuses], next_page_token=next_token
            )
            return sized(response.SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} holds no page")


def decode_list_response(data: bytes) -> ServerMessage:
    response = parse(pb.ListResponse, sized(data))
    statuses = tuple(status_from_proto(status) for status in response.statuses)
    return Listed(Page(statuses, response.next_page_token if response.HasField("next_page_token") else None))


def encode_delete_request(message: ClientMessage) -> bytes:
    match message:
        case Delete(id=id, token=token):
            return sized(pb.DeleteRequest(id=id, token=token).SerializeToString())
        case _:
            raise TypeError(f"{type(message).__name__} does not delete")


def decode_delete_request(data: bytes) -> ClientMessage:
    request = parse(pb.DeleteRequest, sized(data))
    return Delete(id=request.id, token=request.token if request.HasField("token") else None)


def encode_delete_response(message: ServerMessage) -> bytes:
    match message:
        case Done():
            return pb.DeleteResponse().SerializeToString()
        case _:
            raise TypeError(f"{type(message).__name__} does not answer a deletion")


def decode_delete_response(data: bytes) -> ServerMessage:
    parse(pb.DeleteResponse, sized(data))
    return Done()
