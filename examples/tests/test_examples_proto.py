"""The copy of the .proto file is the one in the protocol document."""

from __future__ import annotations

import re
from pathlib import Path


def test_the_proto_file_is_that_of_the_document(examples: Path) -> None:
    document = (examples.parent / "PROTOCOL.md").read_text()
    block = re.search(r"^```proto\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    assert block is not None
    assert (examples / "node-grpc" / "tailrace.proto").read_text() == block[1]
