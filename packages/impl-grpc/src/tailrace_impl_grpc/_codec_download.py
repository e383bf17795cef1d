"""The messages of the byte streams to protobuf and back."""

from __future__ import annotations

from tailrace_common_api import FromOffset, LastBytes, LastLines, Start
from tailrace_impl_common.messages import (
    Chunk,
    ClientMessage,
    End,
    Follow,
    Read,
    ReadLines,
    ServerMessage,
    Started,
    Window,
)
from tailrace_impl_grpc._chunk_frame import CHUNK_TAG, frame_chunk, parse_chunk
from tailrace_impl_grpc._codec_values import (
    MAX_CONTROL_MESSAGE,
    MAX_DATA_MESSAGE,
    checked_chunk,
    chunk_from_proto,
    limits_from_proto,
    limits_to_proto,
    optional_place,
    parse,
    place,
    sized,
    status_from_proto,
    status_to_proto,
    unknown,
)
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb


def encode_read_request(message: ClientMessage) -> bytes:
    match message:
        case Window(until):
            request = pb.ReadRequest(window=pb.Window(until=until))
        case Read():
            request = pb.ReadRequest(
                open=pb.OpenRead(
                    id=message.id,
                    token=message.token,
                    start=place(message.start),
                    end=optional_place(message.end),
                    suffix=optional_place(message.suffix),
                    window=message.window,
                    chunk_size=message.chunk_size,
                )
            )
        case _:
            raise TypeError(f"{type(message).__name__} is no message of a reader")
    return sized(request.SerializeToString())


def decode_read_request(data: bytes) -> ClientMessage:
    message = parse(pb.ReadRequest, sized(data))
    match message.WhichOneof("message"):
        case "window":
            return Window(message.window.until)
        case "open":
            opening = message.open
            return Read(
                id=opening.id,
                token=opening.token if opening.HasField("token") else None,
                start=opening.start,
                end=opening.end if opening.HasField("end") else None,
                suffix=opening.suffix if opening.HasField("suffix") else None,
                window=opening.window,
                chunk_size=opening.chunk_size,
            )
        case _:
            raise unknown(message)


def encode_follow_request(message: ClientMessage) -> bytes:
    match message:
        case Window(until):
            request = pb.FollowRequest(window=pb.Window(until=until))
        case Follow():
            opening = pb.OpenFollow(
                id=message.id, token=message.token, window=message.window, chunk_size=message.chunk_size
            )
            match message.start:
                case FromOffset(offset):
                    opening.offset = place(offset)
                case LastBytes(count):
                    opening.last_bytes = place(count)
                case LastLines(count):
                    opening.last_lines = place(count)
            request = pb.FollowRequest(open=opening)
        case _:
            raise TypeError(f"{type(message).__name__} is no message of a follower")
    return sized(request.SerializeToString())


def decode_follow_request(data: bytes) -> ClientMessage:
    message = parse(pb.FollowRequest, sized(data))
    match message.WhichOneof("message"):
        case "window":
            return Window(message.window.until)
        case "open":
            opening = message.open
            start: Start
            match opening.WhichOneof("start"):
                case "last_bytes":
                    start = LastBytes(opening.last_bytes)
                case "last_lines":
                    start = LastLines(opening.last_lines)
                case _:
                    start = FromOffset(opening.offset)
            token = opening.token if opening.HasField("token") else None
            return Follow(id=opening.id, token=token, start=start, window=opening.window, chunk_size=opening.chunk_size)
        case _:
            raise unknown(message)


def encode_read_lines_request(message: ClientMessage) -> bytes:
    match message:
        case Window(until):
            request = pb.ReadLinesRequest(window=pb.Window(until=until))
        case ReadLines():
            request = pb.ReadLinesRequest(
                open=pb.OpenReadLines(
                    id=message.id,
                    token=message.token,
                    first=place(message.first),
                    count=optional_place(message.count),
                    last=optional_place(message.last),
                    window=message.window,
                    chunk_size=message.chunk_size,
                )
            )
        case _:
            raise TypeError(f"{type(message).__name__} is no message of a reader of lines")
    return sized(request.SerializeToString())


def decode_read_lines_request(data: bytes) -> ClientMessage:
    message = parse(pb.ReadLinesRequest, sized(data))
    match message.WhichOneof("message"):
        case "window":
            return Window(message.window.until)
        case "open":
            opening = message.open
            return ReadLines(
                id=opening.id,
                token=opening.token if opening.HasField("token") else None,
                first=opening.first,
                count=opening.count if opening.HasField("count") else None,
                last=opening.last if opening.HasField("last") else None,
                window=opening.window,
                chunk_size=opening.chunk_size,
            )
        case _:
            raise unknown(message)


def encode_download_response(message: ServerMessage) -> bytes:
    match message:
        case Chunk():
            return sized(frame_chunk(message), MAX_DATA_MESSAGE)
        case Started():
            response = pb.DownloadResponse(
                started=pb.Started(
                    offset=message.offset,
                    end=message.end,
                    line=message.line,
                    status=status_to_proto(message.status),
                    limits=limits_to_proto(message.limits),
                )
            )
        case End():
            response = pb.DownloadResponse(
                end=pb.End(offset=message.offset, previous=message.previous, status=status_to_proto(message.status))
            )
        case _:
            raise TypeError(f"{type(message).__name__} is no message to a reader")
    return sized(response.SerializeToString())


def decode_download_response(data: bytes) -> ServerMessage | list[ServerMessage]:
    if data and data[0] == CHUNK_TAG:
        sized(data, MAX_DATA_MESSAGE)
        chunk = parse_chunk(data)
        if chunk is not None:
            return checked_chunk(chunk)
    message = parse(pb.DownloadResponse, data)
    has_chunk = message.HasField("chunk")
    sized(data, MAX_DATA_MESSAGE if has_chunk else MAX_CONTROL_MESSAGE)
    messages: list[ServerMessage] = []
    if message.HasField("started"):
        started = message.started
        messages.append(
            Started(
                offset=started.offset,
                end=started.end if started.HasField("end") else None,
                line=started.line if started.HasField("line") else None,
                status=status_from_proto(started.status),
                limits=limits_from_proto(started.limits),
            )
        )
    if has_chunk:
        messages.append(chunk_from_proto(message.chunk))
    if message.HasField("end"):
        status = status_from_proto(message.end.status)
        messages.append(End(offset=message.end.offset, previous=message.end.previous, status=status))
    if not messages:
        raise unknown(message)
    return messages[0] if len(messages) == 1 else messages
