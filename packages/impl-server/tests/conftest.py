"""Makes the modules beside the tests importable, whatever pytest's import mode, and holds the fixtures they share."""

import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from impl_server_manager_bench import Bench


@pytest.fixture(params=["memory", "filesystem"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Bench, None]:
    bench = Bench(None if request.param == "memory" else tmp_path / "data")
    yield bench
    await bench.close()


@pytest.fixture
async def disk_bench(tmp_path: Path) -> AsyncGenerator[Bench, None]:
    bench = Bench(tmp_path / "data")
    yield bench
    await bench.close()


@pytest.fixture
async def memory_bench() -> AsyncGenerator[Bench, None]:
    bench = Bench(None)
    yield bench
    await bench.close()
