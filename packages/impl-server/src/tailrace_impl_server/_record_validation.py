"""What records of a collection have to be: JSON objects, documents of a JSON Schema, messages of Protocol Buffers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import orjson

from tailrace_common_api import (
    ConfigurationError,
    ProblemKind,
    RecordBatch,
    RecordProblem,
    refused_records,
)
from tailrace_server_api import Validator

if TYPE_CHECKING:
    from google.protobuf.message import Message

PROTOBUF = "application/protobuf"
"""Content type of records that are messages, unless something else is said."""
_LONGEST_PROBLEM = 300
_JSON_TYPE = re.compile(r"application/(?:[a-z0-9.-]+\+)?json\s*(?:;.*)?\Z", re.IGNORECASE)


def is_json(content_type: str) -> bool:
    """Return whether a content type says that each record is JSON."""
    return _JSON_TYPE.match(content_type) is not None


class BytesValidator(Validator):
    """Takes every record as it is; its value is its bytes."""

    def parse(self, batch: RecordBatch) -> Sequence[object]:
        return batch.data


class JsonObjectValidator(Validator):
    """Takes JSON objects (UTF-8); the value of each is a ``dict``."""

    def parse(self, batch: RecordBatch) -> Sequence[object]:
        loads = orjson.loads
        try:
            values = [loads(data) for data in batch.data]
        except orjson.JSONDecodeError:
            values = None
        if values is None or not all(type(value) is dict for value in values):
            raise refused_records(*_listed(map(self._problem, batch.data)))
        return values

    def _problem(self, data: bytes) -> tuple[str | None, str] | None:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            return None, f"not JSON: {error}"
        return None if type(value) is dict else (None, f"{_json_name(value)}, not a JSON object")


class JsonSchemaValidator(JsonObjectValidator):
    """Takes JSON objects that a JSON Schema allows."""

    def __init__(self, schema: Mapping[str, object]) -> None:
        """Check against ``schema``, of the draft that it names, or else the newest.

        References are resolved within the schema only: nothing is fetched.

        Raises:
            ConfigurationError: It is no schema; the field is ``schema``.
        """
        # Large, and only needed where a schema is declared.
        import jsonschema_rs

        try:
            self._schema = jsonschema_rs.validator_for(dict(schema), retriever=_fetch_nothing)
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            problem = f"not a JSON Schema: {_cut(str(error).partition(chr(10))[0])}"
            raise ConfigurationError(field="schema", problem=problem) from None

    def parse(self, batch: RecordBatch) -> Sequence[object]:
        values = super().parse(batch)
        if not all(map(self._schema.is_valid, values)):
            raise refused_records(*_listed(map(self._problem_of, values)))
        return values

    def _problem(self, data: bytes) -> tuple[str | None, str] | None:
        # Where one record is no object, the others are still looked at with the schema.
        return super()._problem(data) or self._problem_of(orjson.loads(data))

    def _problem_of(self, value: object) -> tuple[str | None, str] | None:
        error = next(iter(self._schema.iter_errors(value)), None)
        if error is None:
            return None
        path = [str(part) for part in error.instance_path]
        missing = getattr(error.kind, "property", None) if error.kind.name == "required" else None
        if missing is not None:
            path.append(str(missing))
        return ".".join(path) or None, error.message


class ProtobufValidator(Validator):
    """Takes messages of one type; the value of each is the message. Needs the extra ``protobuf``."""

    def __init__(self, descriptors: bytes, message: str) -> None:
        """Read messages of type ``message`` (with its package) of a serialised ``FileDescriptorSet``.

        Raises:
            ConfigurationError: The set cannot be read (field ``descriptors``), has no such message (field ``message``),
                or Protocol Buffers are not installed.
        """
        try:
            from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
            from google.protobuf.message import DecodeError
        except ImportError:
            problem = "needs Protocol Buffers: install tailrace-impl-server[protobuf]"
            raise ConfigurationError(field="message", problem=problem) from None
        self._decode_error: type[Exception] = DecodeError
        pool = descriptor_pool.DescriptorPool()
        try:
            for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors).file:
                pool.Add(file)
            found = pool.FindMessageTypeByName(message)
        except KeyError:
            raise ConfigurationError(field="message", problem=f"no message {message!a} is described") from None
        except (DecodeError, TypeError) as error:
            problem = f"not a set of file descriptors: {_cut(str(error))}"
            raise ConfigurationError(field="descriptors", problem=problem) from None
        self._read: Callable[[bytes], Message] = message_factory.GetMessageClass(found).FromString

    def parse(self, batch: RecordBatch) -> Sequence[object]:
        try:
            values = [self._read(data) for data in batch.data]
        except self._decode_error:
            values = None
        if values is None or not all(value.IsInitialized() for value in values):
            raise refused_records(*_listed(map(self._problem, batch.data)))
        return values

    def _problem(self, data: bytes) -> tuple[str | None, str] | None:
        try:
            value = self._read(data)
        except self._decode_error as error:
            return None, f"not such a message: {error}"
        missing = value.FindInitializationErrors()  # type: ignore[attr-defined]  # the stubs leave it out
        return (missing[0], "missing") if missing else None


class FileValidator(Validator):
    """What a file describes, which is not read before :meth:`load`."""

    def __init__(self, read: Callable[[], Validator]) -> None:
        """Have ``read`` called, which may block and raise ``ConfigurationError``."""
        self._read = read
        self._validator: Validator | None = None

    async def load(self) -> None:
        """Read the file; called before anything is validated.

        Raises:
            ConfigurationError: It cannot be read, or describes nothing that can be checked.
        """
        self._validator = await asyncio.to_thread(self._read)

    def parse(self, batch: RecordBatch) -> Sequence[object]:
        assert self._validator is not None
        return self._validator.parse(batch)


def validator_for(validator: Validator | None, content_type: str) -> Validator:
    """Return what checks records of a collection; see ``Collection.validator``."""
    if validator is not None:
        return validator
    return JsonObjectValidator() if is_json(content_type) else BytesValidator()


def _listed(found: Iterable[tuple[str | None, str] | None]) -> tuple[list[RecordProblem], int]:
    problems = [
        RecordProblem(index=index, kind=ProblemKind.INVALID, field=problem[0], problem=_cut(problem[1]))
        for index, problem in enumerate(found)
        if problem is not None
    ]
    return problems, len(problems)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_PROBLEM else text[: _LONGEST_PROBLEM - 1] + "…"


def _json_name(value: object) -> str:
    names = {list: "an array", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _fetch_nothing(uri: str) -> NoReturn:
    raise ValueError(f"{uri} is not part of the schema, and nothing is fetched")
