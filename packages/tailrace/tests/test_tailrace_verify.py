"""`tailrace verify`: what it finds in the folder of a stopped server."""

import json
from pathlib import Path

from tailrace_processes import Run, serving


def uploaded(folder: Path, run: Run) -> str:
    """Store a resource and stop the server; return its id."""
    source = folder / "source"
    source.write_bytes(b"line\n" * 100_000)
    with serving(folder) as server:
        result = run("upload", str(source), "--server", server.grpc)
        assert result.code == 0
    return result.output.decode().strip().rpartition("/")[2]


def test_damage_is_reported_with_its_place_and_its_own_exit_code(tmp_path: Path, run: Run) -> None:
    stored = uploaded(tmp_path, run)
    data = ["--data", str(tmp_path / "data")]
    whole = run("verify", *data)
    assert (whole.code, whole.output) == (0, b"1 resources verified, 0 damaged\n")
    file = tmp_path / "data" / "resources" / stored / "data"
    content = bytearray(file.read_bytes())
    content[200_000] ^= 1
    file.write_bytes(content)
    for arguments in ((), (stored,), ("--repair",)):
        damaged = run("verify", *data, "--json", *arguments)
        assert damaged.code == 4
        assert [json.loads(line) for line in damaged.output.splitlines()] == [
            {
                "event": "damage",
                "id": stored,
                "offset": 131072,
                "problem": "the stored bytes do not have their digest",
                "repaired": False,
            },
            {"event": "verified", "resources": 1, "damaged": 1},
        ]
    shown = run("verify", *data)
    assert shown.output.startswith(f"{stored}: block at 131072: ".encode())


def test_a_damaged_record_is_repaired(tmp_path: Path, run: Run) -> None:
    stored = uploaded(tmp_path, run)
    journal = tmp_path / "data" / "resources" / stored / "journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:12300] + b"damage" + whole[12306:])
    repaired = run("verify", "--data", str(tmp_path / "data"), "--repair")
    assert repaired.code == 4
    assert b"(repaired)" in repaired.output
    assert journal.read_bytes() == whole
    assert run("verify", "--data", str(tmp_path / "data")).code == 0


def test_only_the_folder_of_a_stopped_server_is_verified(tmp_path: Path, run: Run) -> None:
    with serving(tmp_path):
        refused = run("verify", "--data", str(tmp_path / "data"))
    assert refused.code == 2
    assert "in use by another server" in refused.errors
    absent = run("verify", "--data", str(tmp_path / "absent"))
    assert absent.code == 2
    assert not (tmp_path / "absent").exists()
    assert run("verify", "--data", str(tmp_path / "data"), "0" * 32).code == 3


def test_ends_of_record_streams_are_not_opened(tmp_path: Path, run: Run) -> None:
    stored = uploaded(tmp_path, run)
    # A server with this database could not start.
    (tmp_path / "tailrace.toml").write_text(
        "[databases.shop]\nurl = 'postgresql://u@127.0.0.1:1/d'\n[queues.a]\n[queues.b]\ndatabase = 'shop'\n"
    )
    outcome = run("verify", "--data", str(tmp_path / "data"), stored)
    assert (outcome.code, outcome.output) == (0, b"1 resources verified, 0 damaged\n")
    assert not (tmp_path / "data" / "records").exists()
