"""What of the library's log is kept out of ours."""

import logging

import pytest

from tailrace_impl_grpc._library_log import quiet_library

GONE = 'Failed "execute_batch": (<operations>,)'
REFUSED = "Failed grpc_call_start_batch: 8 with grpc_call_error value: 'TOO_MANY_OPERATIONS'"


@pytest.mark.parametrize(
    ("method", "problem", "logged"),
    [
        ("/tailrace.v1.Resources/Read", GONE, False),
        ("/tailrace.v1.Resources/Read", REFUSED, True),
        ("/another.Service/Read", GONE, True),
    ],
)
def test_only_answers_that_nobody_was_there_to_take_are_kept_out(method: str, problem: str, logged: bool) -> None:
    quiet_library()
    library = logging.getLogger("grpc._cython.cygrpc")
    text, error = f"ExecuteBatchError raised in core by servicer method [{method}]", RuntimeError(problem)
    record = library.makeRecord(library.name, logging.ERROR, "", 0, text, (), (RuntimeError, error, None))
    assert bool(library.filter(record)) is logged
