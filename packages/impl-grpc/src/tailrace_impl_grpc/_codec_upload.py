"""The messages of an upload to protobuf and back."""

from __future__ import annotations

from tailrace_common_api import Checkpoint
from tailrace_impl_common.messages import (
    Abort,
    Chunk,
    ClientMessage,
    Finish,
    Finished,
    Opened,
    OpenUpload,
    ReopenUpload,
    ServerMessage,
    Window,
)
from tailrace_impl_grpc._chunk_frame import CHUNK_TAG, frame_checkpoint, frame_chunk, parse_chunk
from tailrace_impl_grpc._codec_values import (
    MAX_DATA_MESSAGE,
    check_count,
    check_head,
    checked_chunk,
    checkpoint_from_proto,
    chunk_from_proto,
    clean_text,
    limits_from_proto,
    limits_to_proto,
    metadata_from_proto,
    metadata_to_proto,
    parse,
    sized,
    status_from_proto,
    status_to_proto,
    unknown,
    visibility_from_proto,
    visibility_to_proto,
)
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb


def encode_upload_request(message: ClientMessage) -> bytes:
    match message:
        case Chunk():
            return sized(frame_chunk(message), MAX_DATA_MESSAGE)
        case OpenUpload():
            request = pb.UploadRequest(
                open=pb.OpenUpload(
                    metadata=metadata_to_proto(message.metadata),
                    visibility=visibility_to_proto(message.visibility),
                    length=message.length,
                    sha256=message.sha256,
                    idempotency_key=message.idempotency_key,
                )
            )
        case ReopenUpload(id=id, token=token):
            request = pb.UploadRequest(reopen=pb.ReopenUpload(id=id, token=token))
        case Finish(size, head):
            request = pb.UploadRequest(finish=pb.Finish(size=size, head=head))
        case Abort(reason):
            request = pb.UploadRequest(abort=pb.Abort(reason=clean_text(reason)))
        case _:
            raise TypeError(f"{type(message).__name__} is no message of an uploader")
    return sized(request.SerializeToString())


def decode_upload_request(data: bytes) -> ClientMessage:
    if data and data[0] == CHUNK_TAG:
        sized(data, MAX_DATA_MESSAGE)
        chunk = parse_chunk(data)
        if chunk is not None:
            return checked_chunk(chunk)
    message = parse(pb.UploadRequest, data)
    kind = message.WhichOneof("message")
    if kind == "chunk":
        return chunk_from_proto(message.chunk)
    sized(data)
    match kind:
        case "open":
            opening = message.open
            return OpenUpload(
                metadata=metadata_from_proto(opening.metadata),
                visibility=visibility_from_proto(opening.visibility),
                length=check_count("length", opening.length) if opening.HasField("length") else None,
                sha256=opening.sha256 if opening.HasField("sha256") else None,
                idempotency_key=opening.idempotency_key if opening.HasField("idempotency_key") else None,
            )
        case "reopen":
            return ReopenUpload(id=message.reopen.id, token=message.reopen.token)
        case "finish":
            return Finish(message.finish.size, check_head(message.finish.head))
        case "abort":
            return Abort(message.abort.reason)
        case _:
            raise unknown(message)


def encode_upload_response(message: ServerMessage) -> bytes:
    match message:
        case Opened():
            response = pb.UploadResponse(
                opened=pb.Opened(
                    status=status_to_proto(message.status),
                    token=message.token,
                    epoch=message.epoch,
                    offset=message.offset,
                    newlines=message.newlines,
                    head=message.head,
                    until=message.until,
                    limits=limits_to_proto(message.limits),
                )
            )
        case Checkpoint():
            return sized(frame_checkpoint(message))
        case Window(until):
            response = pb.UploadResponse(window=pb.Window(until=until))
        case Finished(status):
            finished = pb.Finished(status=None if status is None else status_to_proto(status))
            response = pb.UploadResponse(finished=finished)
        case _:
            raise TypeError(f"{type(message).__name__} is no message to an uploader")
    return sized(response.SerializeToString())


def decode_upload_response(data: bytes) -> ServerMessage | list[ServerMessage]:
    message = parse(pb.UploadResponse, sized(data))
    messages: list[ServerMessage] = []
    if message.HasField("opened"):
        opened = message.opened
        messages.append(
            Opened(
                status=status_from_proto(opened.status),
                token=opened.token,
                epoch=opened.epoch,
                offset=opened.offset,
                newlines=opened.newlines,
                head=check_head(opened.head),
                until=opened.until,
                limits=limits_from_proto(opened.limits),
            )
        )
    if message.HasField("checkpoint"):
        messages.append(checkpoint_from_proto(message.checkpoint))
    if message.HasField("window"):
        messages.append(Window(message.window.until))
    if message.HasField("finished"):
        finished = message.finished
        messages.append(Finished(status_from_proto(finished.status) if finished.HasField("status") else None))
    if not messages:
        raise unknown(message)
    return messages[0] if len(messages) == 1 else messages
