from __future__ import annotations

import inspect
from collections.abc import Callable

import grpc
import pytest

from tailrace_common_api import (
    BulkRefused,
    ConnectionLost,
    InternalError,
    InvalidReference,
    ProblemKind,
    RangeNotSatisfiable,
    RecordProblem,
    TailraceError,
    WireValue,
    error_classes,
    record_problems,
    refused_records,
)
from tailrace_impl_grpc._error_table import ERROR_KEY, ERROR_TABLE, error_from_status, error_to_status
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb

SAMPLES: dict[str, WireValue] = {
    "int": 2**53 - 1,
    "int | None": None,
    "float": 1.5,
    "str": "with \x1b control, ü and \U0001f600",
}
OF_FIELDS: dict[str, WireValue] = {
    # JSON in itself, which the error reads.
    "problems": '[[3,"duplicate","e-mail","with \\u001b control, \u00fc"]]',
}


def sample(cls: type[TailraceError]) -> TailraceError:
    """Build an error with a value for each of its attributes."""
    parameters = inspect.signature(cls).parameters
    if not cls.fields:
        return cls("something is wrong")
    build: Callable[..., TailraceError] = cls
    return build(**{name: OF_FIELDS.get(name, SAMPLES[parameters[name].annotation]) for name in cls.fields})


def travelled(error: TailraceError) -> TailraceError:
    status, message, metadata = error_to_status(error)
    return error_from_status(status, message, metadata, address="server:1")


CLASSES: list[type[TailraceError]] = sorted(error_classes(), key=lambda cls: cls.code)


def test_every_error_has_a_status_and_no_status_is_superfluous() -> None:
    assert set(ERROR_TABLE) == {cls.code for cls in CLASSES}
    assert grpc.StatusCode.OK not in ERROR_TABLE.values()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.code)
def test_errors_travel_without_loss(cls: type[TailraceError]) -> None:
    error = sample(cls)
    rebuilt = travelled(error)
    assert type(rebuilt) is cls
    assert rebuilt.details() == error.details()
    assert {name: type(value) for name, value in rebuilt.details().items()} == {
        name: type(value) for name, value in error.details().items()
    }
    assert str(rebuilt) == str(error)


def test_large_and_odd_values_still_fit_into_the_metadata_of_a_call() -> None:
    error = InvalidReference(reference="ü\ud800" * 100_000)
    status, message, metadata = error_to_status(error)
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert len(message.encode()) * 3 + len(metadata[0][1]) * 4 / 3 < 8000
    rebuilt = travelled(error)
    assert isinstance(rebuilt, InvalidReference)
    assert rebuilt.reference.startswith("ü?ü?")
    huge = travelled(RangeNotSatisfiable(start=-(2**80), end=None, size=5))
    assert huge.details() == {"start": -(2**63), "end": None, "size": 5}


def test_long_lists_of_problems_are_cut_between_two_of_them() -> None:
    problems = [
        RecordProblem(index=i, kind=ProblemKind.INVALID, field="ü" * (i % 7), problem="\x00 \ud800 x" * i)
        for i in range(100)
    ]
    error = refused_records(problems, 5000)
    _, message, metadata = error_to_status(error)
    assert len(message.encode()) * 3 + len(metadata[0][1]) * 4 / 3 < 8000
    rebuilt = travelled(error)
    assert isinstance(rebuilt, BulkRefused)
    assert rebuilt.total == 5000
    found = record_problems(rebuilt)
    assert 10 <= len(found) < 100
    assert [problem.index for problem in found] == list(range(len(found)))
    assert found[2] == problems[2]
    for one, other in zip(found, problems, strict=False):
        assert (one.kind, one.field) == (other.kind, other.field)
        assert other.problem.startswith(one.problem.removesuffix("…"))


def test_one_endless_problem_still_says_which_record_it_is() -> None:
    endless = RecordProblem(index=7, kind=ProblemKind.DUPLICATE, field="a" * 100_000, problem="\x00" * 100_000)
    rebuilt = travelled(refused_records([endless], 1))
    assert isinstance(rebuilt, BulkRefused)
    (found,) = record_problems(rebuilt)
    assert (found.index, found.kind) == (7, ProblemKind.DUPLICATE)


def test_codes_of_a_later_version_are_internal_errors_with_their_text() -> None:
    wire = pb.Error(code="later", message="from the future").SerializeToString()
    rebuilt = error_from_status(grpc.StatusCode.UNKNOWN, "x", [(ERROR_KEY, wire)], address="server:1")
    assert type(rebuilt) is InternalError
    assert str(rebuilt) == "later: from the future"


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
def test_statuses_without_an_error_give_one_that_names_the_address(status: grpc.StatusCode) -> None:
    error = error_from_status(status, "no way", [("other", "x"), (ERROR_KEY, "text")], address="server:1")
    lost = "the connection to server:1 failed: no way"
    assert str(error) == (lost if isinstance(error, ConnectionLost) else "server:1: no way")


def test_unavailable_is_a_lost_connection() -> None:
    error = error_from_status(grpc.StatusCode.UNAVAILABLE, "", [], address="server:1")
    assert isinstance(error, ConnectionLost)
    assert str(error) == "the connection to server:1 failed: UNAVAILABLE"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
            "Failed to connect to remote host: Connection refused",
            "Connection refused",
        ),
        (
            "failed to connect to all addresses; last error: UNAVAILABLE: ipv6:%5B::1%5D:1: connection timed out",
            "connection timed out",
        ),
        (
            "errors resolving nowhere:1: [field:hostname lookup error:address lookup failed for nowhere:1: "
            "Domain name not found]",
            "Domain name not found",
        ),
    ],
)
def test_a_server_that_cannot_be_reached_is_named_once(said: str, told: str) -> None:
    error = error_from_status(grpc.StatusCode.UNAVAILABLE, said, (), address="host:1")
    assert isinstance(error, ConnectionLost)
    assert error.message == f"host:1 cannot be reached: {told}"


def test_unreadable_errors_are_internal_errors() -> None:
    error = error_from_status(grpc.StatusCode.NOT_FOUND, "x", [(ERROR_KEY, b"\xff")], address="server:1")
    assert isinstance(error, InternalError)
    assert "malformed Error of 1 bytes" in str(error)


def test_details_that_do_not_fit_their_code_are_internal_errors() -> None:
    wire = pb.Error(code="quota_exceeded", message="too much").SerializeToString()
    rebuilt = error_from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "x", [(ERROR_KEY, wire)], address="server:1")
    assert type(rebuilt) is InternalError
    assert str(rebuilt) == "quota_exceeded: too much"
