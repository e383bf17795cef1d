"""The text check finds what must not be committed, and nothing else."""

import importlib.machinery
import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "check-text"


@pytest.fixture(scope="module")
def script() -> Any:
    loader = importlib.machinery.SourceFileLoader("check_text", str(SCRIPT))
    spec = importlib.util.spec_from_loader("check_text", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "text",
    [
        "see /{}/x".format("root"),
        "cd /{}/main".format("work"),
        'open("/{}/ann/x")'.format("home"),
        "C:\\{}\\ann".format("Users"),
        "https://{}.org/simple".format("pypi"),
        "files.{}.org".format("pythonhosted"),
    ],
)
def test_offences_are_found_with_their_line(script: Any, text: str) -> None:
    assert [(number, found in text) for number, _, found in script.findings(f"fine\n{text}\n")] == [(2, True)]


@pytest.mark.parametrize(
    "text", ["the/home/flow", "/tmp/x", "python.org", "a/Users/b", "~/.config", "https://example.org/home/"]
)
def test_ordinary_text_passes(script: Any, text: str) -> None:
    assert script.findings(text) == []
