"""Messages of other services as the content of records."""

from __future__ import annotations

import json

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message


def content_of(message: Message | bytes, content_type: str) -> bytes:
    """Return the content of a record of this content type: bytes as they are, a message as JSON or as its own bytes.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(message, bytes):
        return message
    if not isinstance(message, Message):
        raise TypeError(f"{type(message).__name__} is neither a message nor bytes")
    return json_of(message) if _is_json(content_type) else message.SerializeToString()


def json_of(message: Message) -> bytes:
    """Return a message as one JSON object in UTF-8: protobuf's own mapping, with the names of the ``.proto`` file.

    Fields that cannot be absent are always there, so that columns and schemas find them; optional ones only where they
    are set. 64-bit integers are texts in that mapping, bytes are in Base64.
    """
    # Its second argument has got another name between the releases that are supported, and has kept its meaning.
    fields = MessageToDict(message, True, preserving_proto_field_name=True)
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")
