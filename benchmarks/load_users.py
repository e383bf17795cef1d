"""Users for Locust: each reads one result of many records, over and over, in its own way.

Run by `load.py`, which starts the servers and says what to do in the environment. The clients are hand-written on
purpose: they speak the protocols as any other program would, and cooperate with Locust's green threads.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import time
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.experimental.gevent
import requests
import websocket
from locust import User, constant, events, task

grpc.experimental.gevent.init_gevent()

RECORDS = int(os.environ["LOAD_RECORDS"])
"""Records of each result."""
TARGETS: dict[str, str] = json.loads(os.environ["LOAD_TARGETS"])
"""Addresses of the services."""
REPORT = os.environ["LOAD_REPORT"]
"""File for the figures."""

first_records: list[float] = []
"""Seconds from the request to the first record, of each result."""
results: list[float] = []
"""Seconds from the request to the last one."""


class ReadingUser(User):  # type: ignore[misc]  # Locust has no types
    """Reads a result, counts its records, and reports it."""

    abstract = True
    wait_time = constant(0)

    def records(self) -> Iterator[int]:
        """Yield how many records have arrived with each piece of the answer."""
        raise NotImplementedError("each kind of user reads in its own way")

    @task  # type: ignore[untyped-decorator]  # Locust has no types
    def read(self) -> None:
        """Read one result."""
        begin = time.perf_counter()
        seen = 0
        error: Exception | None = None
        try:
            for count in self.records():
                if not seen:
                    first_records.append(time.perf_counter() - begin)
                seen += count
            if seen != RECORDS:
                raise AssertionError(f"{seen} of {RECORDS} records")
            results.append(time.perf_counter() - begin)
        except Exception as exc:  # noqa: BLE001  # whatever it is counts as a failure of this user
            error = exc
        events.request.fire(
            request_type=type(self).__name__,
            name="result",
            response_time=(time.perf_counter() - begin) * 1e3,
            response_length=seen,
            exception=error,
            context={},
        )


class StreamingGrpcUser(ReadingUser):
    """The service `tailrace.v1.Records`, method `Query`."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb

        self._pb = pb
        self._channel = grpc.insecure_channel(TARGETS["grpc"])
        self._query = self._channel.stream_stream(
            "/tailrace.v1.Records/Query",
            pb.QueryRequest.SerializeToString,
            pb.QueryResponse.FromString,
        )

    def records(self) -> Iterator[int]:
        pb = self._pb
        request = pb.QueryRequest(open=pb.OpenQuery(source="people"))
        request.open.arguments["count"].int_value = RECORDS
        for response in self._query(iter([request])):
            if response.WhichOneof("message") == "records":
                yield len(response.records.data)


class UnaryGrpcUser(ReadingUser):
    """A plain service that answers with one message, of which large results need several."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._channel = grpc.insecure_channel(TARGETS["unary"])
        self._page: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary("/load.People/Page")

    def records(self) -> Iterator[int]:
        seen = 0
        while seen < RECORDS:
            page: bytes = self._page(struct.pack(">II", seen, RECORDS))
            (count,) = struct.unpack_from(">I", page)
            seen += count
            yield count


class WebSocketUser(ReadingUser):
    """The WebSocket binding of the protocol."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._socket: websocket.WebSocket | None = None
        self._request = 0

    def records(self) -> Iterator[int]:
        if self._socket is None:
            self._socket = websocket.create_connection(TARGETS["ws"] + "/v1/connect", subprotocols=["tailrace.v1"])
            json.loads(self._socket.recv())
        self._request += 1
        window = 4 * 1024 * 1024
        received, until = 0, window
        self._say(type="query", source="people", arguments={"count": RECORDS}, window=window)
        while True:
            message = self._socket.recv()
            if isinstance(message, bytes):
                received += len(message) - 16
                if until - received < window // 2:
                    until = received + window
                    self._say(type="window", until=until)
                yield struct.unpack_from(">I", message, 8)[0]
                continue
            kind = json.loads(message)["type"]
            if kind == "query_end":
                return
            if kind not in ("query_started", "pong"):
                raise AssertionError(message)

    def _say(self, **fields: object) -> None:
        assert self._socket is not None
        self._socket.send(json.dumps({"request": self._request, **fields}))


class StreamingRestUser(ReadingUser):
    """Newline-delimited JSON over plain HTTP."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._session = requests.Session()

    def records(self) -> Iterator[int]:
        with self._session.get(f"{TARGETS['http']}/query/people", params={"count": RECORDS}, stream=True) as answer:
            answer.raise_for_status()
            for piece in answer.iter_content(64 * 1024):
                yield piece.count(b"\n")


class PlainRestUser(ReadingUser):
    """A plain service that answers with one JSON array."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._session = requests.Session()

    def records(self) -> Iterator[int]:
        with self._session.get(f"{TARGETS['rest']}/people", params={"count": RECORDS}) as answer:
            answer.raise_for_status()
            yield len(answer.json())


@events.quitting.add_listener  # type: ignore[untyped-decorator]  # Locust has no types
def report(environment: Any, **_: object) -> None:
    """Leave the figures for the one who started this."""
    with open(REPORT, "w") as file:
        json.dump(
            {
                "first_record_seconds": first_records,
                "result_seconds": results,
                "failures": environment.stats.total.num_failures,
                "errors": [error.error for error in environment.stats.errors.values()],
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            },
            file,
        )
