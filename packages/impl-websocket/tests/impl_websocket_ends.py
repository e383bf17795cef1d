"""Ends of record streams that tests hold in their hands."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping

from tailrace_common_api import JSON, Argument, RecordBatch
from tailrace_server_api import RecordEnds, RecordSource, Source

Produce = Callable[[Mapping[str, Argument]], AsyncGenerator[RecordBatch, None]]


class Produced(RecordSource):
    """A source that gives what a generator yields."""

    def __init__(self, produce: Produce, **parameters: type) -> None:
        self._produce = produce
        self._parameters = parameters

    @property
    def parameters(self) -> Mapping[str, type]:
        return self._parameters

    @property
    def required(self) -> frozenset[str]:
        return frozenset(self._parameters) - {"optional"}

    def query(self, arguments: Mapping[str, Argument]) -> AsyncGenerator[RecordBatch, None]:
        return self._produce(arguments)


def source(produce: Produce, content_type: str = JSON, **parameters: type) -> RecordEnds:
    """Return the ends of a server that has one source, ``numbers``."""
    return RecordEnds(sources={"numbers": Source(source=Produced(produce, **parameters), content_type=content_type)})


def giving(*records: bytes, content_type: str = JSON) -> RecordEnds:
    """Return the ends of a server whose source gives these records."""

    async def produce(arguments: Mapping[str, Argument]) -> AsyncGenerator[RecordBatch, None]:
        yield RecordBatch(records)

    return source(produce, content_type)
