"""What holds for every test of the workspace: a blocking call on an event loop is an error."""

import importlib.util
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx

_PACKAGES = (
    "tailrace_common_api",
    "tailrace_server_api",
    "tailrace_client_upload_api",
    "tailrace_client_download_api",
    "tailrace_impl_common",
    "tailrace_impl_server",
    "tailrace_impl_grpc",
    "tailrace_impl_websocket",
    "tailrace",
)

# A package's tests also run with that package and its dependencies alone.
_INSTALLED = [name for name in _PACKAGES if importlib.util.find_spec(name)]

# The contract tests are no test files by name; their assertions explain themselves only if pytest rewrites them.
for _name in _INSTALLED:
    pytest.register_assert_rewrite(f"{_name}.contracts")


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """Raise BlockingError in project code that blocks a running event loop; test code itself may touch files."""
    with blockbuster_ctx(_INSTALLED):
        yield
