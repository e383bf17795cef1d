from __future__ import annotations

import dataclasses

import pytest

import tailrace_server_api
from tailrace_common_api import Checkpoint, ConfigurationError, ResourceState
from tailrace_server_api import Snapshot, TransportServerSettings

RUNNING = Snapshot(
    version=3,
    epoch=1,
    state=ResourceState.IN_PROGRESS,
    reason=None,
    size=10,
    newlines=2,
    head=bytes(16),
    open_line=True,
)


def test_an_unterminated_line_counts_only_at_the_end() -> None:
    assert RUNNING.lines == 2
    for state in (ResourceState.COMPLETED, ResourceState.FAILED):
        assert dataclasses.replace(RUNNING, state=state).lines == 3
        assert dataclasses.replace(RUNNING, state=state, open_line=False).lines == 2


def test_the_announced_end_is_a_checkpoint() -> None:
    assert RUNNING.checkpoint == Checkpoint(10, 2, bytes(16))


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", -1), ("port", 65536), ("keepalive_interval", 0.0), ("keepalive_timeout", float("nan"))],
)
def test_settings_that_cannot_work_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError) as refused:
        TransportServerSettings(**{name: value})  # type: ignore[arg-type] # the wrong values are the test
    assert refused.value.field == name


def test_everything_exported_is_there_and_sorted() -> None:
    names = tailrace_server_api.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(tailrace_server_api, name) for name in names)
