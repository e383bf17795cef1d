"""What every test of the workspace has: a blocking call on an event loop is an error, and there is a PostgreSQL."""

import importlib.util
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings
from postgres_server import PostgresServer

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

# How long an example takes says more of the machine than of the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """Raise BlockingError in project code that blocks a running event loop; test code itself may touch files."""
    with blockbuster_ctx(_INSTALLED) as blocking:
        for function in blocking.functions.values():
            # The driver of PostgreSQL looks for files of passwords and keys when it connects, and has no other way.
            function.can_block_in("asyncpg/connect_utils.py", "_parse_connect_dsn_and_args")
        yield


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests of this process that leave it running; made for the first one."""
    with PostgresServer(fsync=False) as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """URL of an empty database of one's own."""
    return postgres_server.create_database()
