"""The peers of the benchmarks are well described, and whoever lacks one is told what to install."""

import json
import re
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_each_peer_has_a_name_of_its_own_says_what_it_lacks_and_names_its_methods(tmp_path: Path) -> None:
    from peers import METHODS, PEERS, Peer

    names = [peer.name for peer in PEERS]
    assert len({re.sub(r"[^a-z0-9]+", "-", name.lower()) for name in names}) == len(names)
    for make in PEERS:
        peer: Peer = make(tmp_path)
        assert peer.does_less
        assert peer.supports
        assert peer.supports <= set(METHODS)
        assert peer.server_pids == peer.client_pids == []
    assert list(tmp_path.iterdir()) == [], "a peer that was not entered left something behind"


async def test_a_method_that_a_peer_does_not_support_does_nothing(tmp_path: Path) -> None:
    from peers import PEERS

    for make in PEERS:
        peer = make(tmp_path)
        if "follow" not in peer.supports:
            assert await peer.follow(1) is None
        if "latencies" not in peer.supports:
            assert await peer.latencies(1, 0) is None


def test_without_anything_installed_each_peer_is_missing_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peers import PEERS, driven_peer, missing

    monkeypatch.setattr(driven_peer, "PYTHON", tmp_path / "python" / "bin" / "python")
    monkeypatch.setattr(driven_peer, "NODE", tmp_path / "node")
    monkeypatch.setattr(driven_peer, "find_program", lambda name: None)
    reasons = missing()
    assert set(reasons) == {peer.name for peer in PEERS}
    assert all(reasons.values())


def test_what_is_installed_is_pinned() -> None:
    lines = (BENCHMARKS / "peers" / "requirements.txt").read_text("utf-8").split()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line)] == []
    package = json.loads((BENCHMARKS / "peers" / "node" / "package.json").read_text("utf-8"))
    assert [
        version for version in package["dependencies"].values() if not re.fullmatch(r"\d+\.\d+\.\d+", version)
    ] == []
    locked = json.loads((BENCHMARKS / "peers" / "node" / "package-lock.json").read_text("utf-8"))["packages"]
    for name, version in package["dependencies"].items():
        assert locked[f"node_modules/{name}"]["version"] == version
